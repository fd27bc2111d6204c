"""The model card says what was measured, and nothing that was not."""

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from fm_diffusers.pipelines.cards import INSTALL, LISTED, URL, listed
from fm_diffusers.training.cards import write_card
from fm_diffusers.training.public import public

TRAINING = {
    "title": "user/flow",
    "dataset": "ylecun/mnist",
    "dataset_on_hub": True,
    "license": "mit",
    "conditioning": "class",
    "asked": '["ant", "bee"]',
    "num_classes": 3,
    "id2label": {"0": "ant", "1": "bee", "2": "cow"},
    "path": "cosine",
    "prediction_type": "velocity",
    "coupling": "independent",
    "steps": 5500,
    "seconds": 4408.2,
    "hardware": "2 x H100",
    "commit": "0123abc",
    "command": "accelerate launch examples/train_mnist.py --path=cosine",
}
NO_CLASSES = {"num_classes": 0, "id2label": None}
PROMPTED = {"conditioning": "prompt", "asked": '["a red car"]', **NO_CLASSES}
UNCONDITIONAL = {"conditioning": None, "asked": "batch_size=4", **NO_CLASSES}
ROW = {
    "solver": "predictor_corrector",
    "diffusion": None,
    "num_inference_steps": 10,
    "evaluations": 10,
    "guidance_scale": 1.0,
    "frechet_distance": 0.3456,
    "precision": 0.91,
    "recall": 0.87,
    "accuracy": 0.976,
    "sliced_wasserstein": 0.0123,
}
EVALUATION = {
    "dataset": "user/other_digits",
    "num_samples": 1000,
    "real": {"frechet_distance": 0.0567, "accuracy": 0.989},
    "rows": [
        ROW,
        ROW | {"diffusion": "memoryless", "evaluations": 50, "frechet_distance": 0.2345},
    ],
}


@pytest.fixture
def card(tmp_path):
    def write(training=TRAINING, evaluation=None):
        (tmp_path / "training.json").write_text(json.dumps(training))
        if evaluation is not None:
            (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
        write_card(tmp_path)
        return ModelCard.load(tmp_path / "README.md")

    return write


def test_a_card_tells_the_hub_what_the_model_is(card):
    data = card().data
    assert data.license == "mit" and data.datasets == ["ylecun/mnist"]
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"flow-matching", "fm_diffusers", "cosine"} <= set(data.tags)
    assert data.eval_results is None


def test_a_card_tells_people_how_it_was_made_and_how_to_use_it(card):
    text = card().text
    for said in ("2 x H100", "0123abc", "4408.2", "samples.png", TRAINING["command"]):
        assert said in text
    assert 'FlowMatchingPipeline.from_pretrained("user/flow")' in text
    assert 'pipe(["ant", "bee"], num' in text and "Evaluation" not in text
    assert "by number: 0 ant, 1 bee, 2 cow." in text and "| asked" not in text
    assert text.count(INSTALL) == 1 and URL in INSTALL


def test_the_figures_are_those_of_the_evaluation(card):
    written = card(evaluation=EVALUATION)
    lines = [line for line in written.text.splitlines() if "predictor_corrector" in line]
    assert [line.split(" | ")[1:5] for line in lines] == [
        ["ODE", "10", "1", "0.346"],
        ["SDE (memoryless)", "50", "1", "0.234"],
    ]
    assert "Fréchet distance 0.0567" in written.text
    assert "1,000 samples beside images of `user/other_digits`" in written.text
    assert {result.dataset_name for result in written.data.eval_results} == {"user/other_digits"}
    best = {result.metric_type: result.metric_value for result in written.data.eval_results}
    assert best == {
        "frechet_distance": 0.2345,
        "precision": 0.91,
        "recall": 0.87,
        "accuracy": 0.976,
        "sliced_wasserstein": 0.0123,
    }


def test_figures_that_were_not_measured_are_not_there(card):
    row = {name: value for name, value in ROW.items() if name != "accuracy"}
    written = card(evaluation=EVALUATION | {"rows": [row | {"recall": None}]})
    assert "classifier accuracy |" not in written.text and "| recall" not in written.text
    assert {result.metric_type for result in written.data.eval_results} == {
        "frechet_distance",
        "precision",
        "sliced_wasserstein",
    }


@pytest.mark.parametrize(
    ("training", "said", "unsaid"),
    [
        (PROMPTED, 'pipe(["a red car"], num', "class_labels"),
        (UNCONDITIONAL, "Unconditional images", "class_labels"),
        (UNCONDITIONAL, "pipe(batch_size=4, num", "Classes"),
        ({"id2label": None, "asked": "[0, 1, 2]"}, "numbers from 0 to 2", "by name"),
        ({"coupling": "optimal_transport"}, "it is sampled as an ODE", "diffusion="),
        ({"dataset_on_hub": False, "dataset": "photos"}, "`photos`", "datasets:"),
    ],
)
def test_a_card_is_about_its_model(training, said, unsaid, card):
    written = card(TRAINING | training)
    assert said in written.text and unsaid not in written.content
    prompted = training.get("conditioning") == "prompt"
    assert (written.data.pipeline_tag == "text-to-image") == prompted


def test_records_of_earlier_versions_have_cards_whose_code_runs(card):
    old = {k: v for k, v in TRAINING.items() if k not in ("asked", "num_classes", "id2label")}
    for kind, asked in {
        "class": "pipe(0,",
        "prompt": 'pipe("",',
        None: "pipe(batch_size=4",
    }.items():
        assert asked in card(old | {"conditioning": kind}).text


def test_bits_per_dimension_are_told_with_their_sampler(card):
    bits = {"value": 3.21, "standard_error": 0.02, "num_images": 100, "sampler": "RK4 on 20 steps"}
    written = card(evaluation=EVALUATION | {"bits_per_dimension": bits})
    assert "of 100 further real images, by RK4 on 20 steps: 3.210, with a" in written.text
    found = {result.metric_type: result for result in written.data.eval_results}
    assert found["bits_per_dimension"].metric_value == 3.21
    names = [result.metric_name for result in found.values()]
    assert all("RK4" in name or "SDE (memoryless), 50 evaluations" in name for name in names)


def test_the_address_of_the_package_is_that_of_its_setup():
    setup = ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    assert setup["metadata"]["url"] == URL


def test_many_classes_are_listed_in_part():
    names = {i: f"class {i}" for i in range(1000)}
    line = listed(names, 1000)
    assert line.count("class ") == LISTED and "and 900 more in `pipe.labels`" in line


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("/home/me/pictures", "pictures"),
        ("/home/me/pictures/", "pictures"),
        ("~/pictures", "pictures"),
        ("../pictures/train.parquet", "train.parquet"),
        (Path("/srv/flow"), "flow"),
        ("user/flow", "user/flow"),
        ("a handwritten {}", "a handwritten {}"),
        (["/a/b.py", "module.of"], ["b.py", "module.of"]),
        ({"model": "/a/b", "n": 3, "none": None}, {"model": "b", "n": 3, "none": None}),
    ],
    ids=str,
)
def test_what_is_published_names_no_place_on_this_machine(given, told):
    assert public(given) == told


def test_a_folder_that_is_there_is_told_by_its_name_or_by_its_id_if_it_was_pushed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("outputs", "mnist").mkdir(parents=True)
    assert public("outputs/mnist") == "mnist" and public(".") == tmp_path.name
    Path("outputs", "mnist", "training.json").write_text('{"repo_id": "user/mnist"}')
    assert public("outputs/mnist") == "user/mnist"


def test_the_rows_that_a_pipeline_needs_are_added_before_it_is_loaded(card):
    text = card(TRAINING | {"plugins": "my_rows.py other_rows"}).text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert code.index("load_plugins(['my_rows.py', 'other_rows'])") < code.index("from_pretrained")
    compile(code, "card", "exec")
