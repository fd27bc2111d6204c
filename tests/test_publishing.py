"""The model card says what was measured, and nothing that was not."""

import json

import pytest
from huggingface_hub import ModelCard

from fm_diffusers.training.publishing import write_card

TRAINING = {
    "title": "user/flow",
    "dataset": "ylecun/mnist",
    "dataset_on_hub": True,
    "license": "mit",
    "conditioning": "class",
    "path": "cosine",
    "prediction_type": "velocity",
    "coupling": "independent",
    "steps": 5500,
    "seconds": 4408.2,
    "hardware": "2 x H100",
    "commit": "0123abc",
    "command": "accelerate launch examples/train_mnist.py --path=cosine",
}
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
    assert "class_labels=[3, 7]" in text and "Evaluation" not in text


def test_the_figures_are_those_of_the_evaluation(card):
    written = card(evaluation=EVALUATION)
    lines = [line for line in written.text.splitlines() if "predictor_corrector" in line]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["ODE", "10", "0.346"],
        ["SDE (memoryless)", "50", "0.234"],
    ]
    assert "Fréchet distance 0.0567" in written.text and "1,000 samples" in written.text
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
        ({"conditioning": "prompt"}, 'prompt="..."', "class_labels"),
        ({"conditioning": None}, "Unconditional images", "class_labels"),
        ({"coupling": "optimal_transport"}, "it is sampled as an ODE", "diffusion="),
        ({"dataset_on_hub": False, "dataset": "photos"}, "`photos`", "datasets:"),
    ],
)
def test_a_card_is_about_its_model(training, said, unsaid, card):
    written = card(TRAINING | training)
    assert said in written.text and unsaid not in written.content
    prompted = training.get("conditioning") == "prompt"
    assert (written.data.pipeline_tag == "text-to-image") == prompted
