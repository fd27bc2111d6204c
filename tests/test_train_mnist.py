import importlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.pictures import sample_grid
from fm_diffusers.training.states import read_state

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")
event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_mnist.py"
MNIST = ROOT.parent / "shared" / "datasets" / "mnist"
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
#: 7 batches, two of them an update: 4 updates an epoch, the last one of a single batch.
RUN = {"train_batch_size": 256, "gradient_accumulation_steps": 2, "max_train_steps": 6}
RUN |= {"reference_batch_size": 4}
TINY = {
    "dataset_name": "digits",
    "block_out_channels": [8, 32],
    "lr_warmup_steps": 2,
    "validation_steps": 10**6,
    "checkpointing_steps": 10**6,
}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("train_mnist")


@pytest.fixture
def train(script, tmp_path, monkeypatch):
    """Return a function that trains in this process and returns the output folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    threads, output = torch.get_num_threads(), tmp_path / "output"

    def run(**kwargs):
        script.main(script.Arguments(**{"output_dir": str(output), **TINY, **kwargs}))
        return output

    yield run
    torch.set_num_threads(threads)


def words(**kwargs):
    """Return the words of a command line."""
    for name, value in kwargs.items():
        yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def events(output):
    return event_accumulator.EventAccumulator(str(output / "logs" / "train")).Reload()


def losses(output):
    return [event.value for event in events(output).Scalars("loss")]


def checkpoints(output):
    return sorted(path.name for path in output.glob("checkpoint-*"))


def draw(output, **kwargs):
    pipe = FlowMatchingPipeline.from_pretrained(output)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(num_inference_steps=2, output_type="pt", generator=generator, **kwargs).images


def write_parquet(folder, side, mode="L", count=40):
    """Write a data set in the layout of the Hub's MNIST."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images = [PIL.Image.fromarray(image).convert(mode) for image in pixels]
    names = [str(digit) for digit in range(4)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    columns = {"image": images, "label": [i % 4 for i in range(count)]}
    folder.mkdir()
    data = datasets.Dataset.from_dict(columns, features=features)
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


# --- one run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(script, tmp_path_factory):
    """Train by a command line, without a stop and with a checkpoint of every step."""
    output = tmp_path_factory.mktemp("straight")
    line = words(**TINY | RUN | {"checkpointing_steps": 1, "output_dir": output})
    script.main(script.parse(script.Arguments, [*line]))
    return output


def test_a_run_leaves_a_pipeline_a_picture_and_figures(straight):
    assert draw(straight, class_labels=[3, 7], guidance_scale=2.0).shape == (2, 1, 8, 8)
    pipe = FlowMatchingPipeline.from_pretrained(straight)
    assert pipe.num_classes == 10 and isinstance(pipe.scheduler, GaussianFlowScheduler)
    picture, asked = PIL.Image.open(straight / "samples.png"), {"class_labels": list(range(10))}
    assert np.array_equal(picture, sample_grid(pipe, asked))
    figures = json.loads((straight / "training.json").read_text())
    assert figures["steps"] == 6 and figures["parameters"] == pipe.unet.num_parameters()
    assert len(losses(straight)) == 6  # with every checkpoint
    assert checkpoints(straight) == [f"checkpoint-{step}" for step in range(1, 7)]
    assert not list(straight.glob("partial-*"))


def test_what_is_saved_is_the_average_of_the_weights(straight):
    saved = FlowMatchingPipeline.from_pretrained(straight).unet
    ema = read_state(straight / "checkpoint-6" / "ema.safetensors")
    for weight, average in zip(saved.parameters(), ema["shadow_params"], strict=True):
        assert torch.equal(weight, average)
    last = load_file(straight / "checkpoint-6" / "model.safetensors")
    assert any(not torch.equal(weight, last[name]) for name, weight in saved.state_dict().items())


def assert_same_weights(output, straight):
    for file in (WEIGHTS, Path("checkpoint-6", "model.safetensors")):
        ours, theirs = load_file(output / file), load_file(straight / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("step", [3, 4], ids=["within an epoch", "between epochs"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(step, train, straight):
    output = train(
        **RUN, checkpointing_steps=6, resume_from_checkpoint=str(straight / f"checkpoint-{step}")
    )
    assert_same_weights(output, straight)


def test_pictures_on_the_way_do_not_change_the_training(train, straight):
    output = train(
        **RUN,
        checkpointing_steps=6,
        validation_steps=5,
        resume_from_checkpoint=str(straight / "checkpoint-4"),
    )
    assert_same_weights(output, straight)
    size = PIL.Image.open(straight / "samples.png").size
    assert PIL.Image.open(output / "samples-5.png").size == size
    assert events(output).Tags()["images"] == ["samples"]


def test_a_picture_before_the_first_checkpoint_needs_no_tracker(train):
    output = train(report_to="none", train_batch_size=256, max_train_steps=2, validation_steps=1)
    assert (output / "samples-1.png").exists()
    assert not (output / "logs").exists()


@pytest.mark.slow  # inductor compiles forward and backward with a C++ compiler
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_is_the_plain_one_and_resumes(train, straight, tmp_path):
    options = RUN | {"compile": True, "checkpointing_steps": 3}
    whole = train(**options)
    weights = load_file(whole / WEIGHTS)
    for name, plain in load_file(straight / WEIGHTS).items():
        assert torch.allclose(weights[name], plain, rtol=0, atol=5e-4), name
    folder = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoint-3", folder / "checkpoint-3")
    resumed = train(**options, output_dir=str(folder), resume_from_checkpoint="latest")
    assert_same_weights(resumed, whole)


def test_latest_resumes_from_the_newest_and_the_limit_drops_the_oldest(
    train, straight, tmp_path, capsys
):
    for step in (1, 3, 5):
        shutil.copytree(
            straight / f"checkpoint-{step}", tmp_path / "output" / f"checkpoint-{step}"
        )
    output = train(
        **RUN, checkpointing_steps=1, checkpoints_total_limit=2, resume_from_checkpoint="latest"
    )
    assert f"resumed from {output / 'checkpoint-5'}" in capsys.readouterr().out
    assert checkpoints(output) == ["checkpoint-5", "checkpoint-6"]
    assert_same_weights(output, straight)


def test_a_resumed_run_takes_its_rates_from_the_command_line(train, straight):
    start = straight / "checkpoint-4"
    with pytest.warns(UserWarning, match="written with learning_rate=0.001, this run has 0.0"):
        output = train(
            **RUN,
            checkpointing_steps=6,
            resume_from_checkpoint=str(start),
            learning_rate=0.0,
            ema_decay=0.0,
        )
    stood = load_file(start / "model.safetensors")
    for name, weight in load_file(output / WEIGHTS).items():
        assert torch.equal(weight, stood[name]), name


@pytest.mark.parametrize(
    "kwargs",
    [
        {"objective": "score_matching"},
        {"prediction_type": "epsilon", "path": "cosine", "reference_batch_size": 16},
    ],
    ids=["score_matching", "epsilon"],
)
def test_training_lowers_the_loss(kwargs, train):
    output = train(**kwargs, train_batch_size=32, max_train_steps=60, learning_rate=3e-3)
    first, last = losses(output)
    assert last < 0.95 * first
    config = FlowMatchingPipeline.from_pretrained(output).scheduler.config
    assert config.prediction_type == kwargs.get("prediction_type", "flow_prediction")
    assert config.path == kwargs.get("path", "linear")


# --- data ----------------------------------------------------------------------------------------


def test_local_folders_in_the_layout_of_mnist_train(train, tmp_path):
    data = write_parquet(tmp_path / "data", side=12)
    output = train(dataset_name=data, train_batch_size=16, max_train_steps=2)
    assert draw(output, class_labels=[0, 3]).shape == (2, 1, 12, 12)
    assert FlowMatchingPipeline.from_pretrained(output).num_classes == 4


def test_colour_images_train_without_labels_at_another_resolution(train, tmp_path):
    data = write_parquet(tmp_path / "data", side=12, mode="RGB")
    output = train(
        dataset_name=data, label_column="", resolution=8, train_batch_size=16, max_train_steps=2
    )
    assert draw(output, batch_size=3).shape == (3, 3, 8, 8)
    assert FlowMatchingPipeline.from_pretrained(output).num_classes == 0


def test_images_and_labels_are_those_of_the_data_set(script, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = write_parquet(tmp_path / "data", side=6, mode="RGB", count=5)
    found = script.load_data(
        script.Arguments(dataset_name=data, train_batch_size=5), label_column="label"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    assert torch.equal(found.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert found.labels.tolist() == [0, 1, 2, 3, 0]


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_mnist_trains(train):
    output = train(
        dataset_name=str(MNIST),
        dataset_split="test",
        block_out_channels=[8, 8, 32],
        train_batch_size=16,
        max_train_steps=2,
    )
    assert draw(output, class_labels=list(range(10))).shape == (10, 1, 28, 28)
    figures = json.loads((output / "training.json").read_text())
    assert figures["steps"] == 2


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [[8, 16], [8, 32], [16, 16, 16]], ids=str)
def test_narrow_networks_run(widths, script):
    args, images = script.Arguments(block_out_channels=widths), torch.zeros(2, 1, 8, 8)
    unet = script.BACKBONES["unet"](args, (1, 8, 8), num_classes=10)
    assert unet(images, 500.0, torch.tensor([0, 10])).sample.shape == images.shape


# --- errors --------------------------------------------------------------------------------------


def test_a_missing_data_set_is_refused_without_a_network(train, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = "'no_such_folder' is neither a local folder nor .* `digits` needs no network"
    with pytest.raises(ValueError, match=message):
        train(dataset_name="no_such_folder")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"objective": "maximum_likelihood"},
            r"unknown --objective 'maximum_likelihood': choose one of flow_matching, score",
        ),
        (
            {"objective": "flow_matching", "prediction_type": "score"},
            r"predicts 'score' is unbounded at t = 1: choose another --prediction_type",
        ),
        (
            {"objective": "score_matching", "prediction_type": "sample"},
            r"the 'snr' loss .* predicts 'sample' is unbounded at t = 1: .* or --objective",
        ),
        ({"label_dropout": 1.5}, r"--label_dropout must lie in \[0, 1\], got 1.5"),
        ({"reference_batch_size": 0}, r"--reference_batch_size must be at least 1, got 0"),
        (
            {"reference_batch_size": 8, "coupling": "optimal_transport"},
            r"--reference_batch_size 8 needs noise .* drop it, or --coupling optimal_transport",
        ),
        (
            {"reference_batch_size": 8, "memory_limit": 1e-5},
            r"--reference_batch_size 8 draws from images that are held in memory: raise",
        ),
        ({"report_to": "wandb", "hub_token": "hf_x"}, r"--hub_token would be logged by wandb"),
        ({"path": "geodesic"}, r"unknown path 'geodesic': choose one of linear"),
        ({"prediction_type": "x0"}, r"unknown prediction type 'x0': choose one of velocity"),
        ({"time_sampler": "sobol"}, r"unknown time sampler 'sobol': choose one of uniform"),
        (
            {"block_out_channels": [8, 8, 8, 8, 32]},
            r"side 8 cannot be halved 4 times: choose another --resolution or fewer "
            r"--block_out_channels",
        ),
        ({"block_out_channels": [12, 32]}, r"block_out_channels"),
        (
            {"train_batch_size": 2000},
            r"--train_batch_size 2000 on 1 processes exceeds the 1797",
        ),
        (
            {"resume_from_checkpoint": "checkpoint-77"},
            r"'checkpoint-77' is not a folder `checkpoint-N`; there are \[\]",
        ),
    ],
)
def test_impossible_arguments_are_refused(kwargs, message, train):
    with pytest.raises(ValueError, match=message):
        train(**{"train_batch_size": 32, "max_train_steps": 1, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"image_column": "picture"},
            r"no column \['picture'\], it has \['image', 'label'\]: choose with --image_column",
        ),
        ({"label_column": "digit"}, r"no column \['digit'\], it has \['image', 'label'\]"),
        ({"resolution": 9}, r"side 9 cannot be halved 1 times: choose another --resolution"),
        ({"train_batch_size": 41}, r"--train_batch_size 41 on 1 processes exceeds the 40 samples"),
    ],
)
def test_arguments_that_do_not_fit_the_data_are_refused(kwargs, message, train, tmp_path):
    data = write_parquet(tmp_path / "data", side=12)
    with pytest.raises(ValueError, match=message):
        train(**{"dataset_name": data, "train_batch_size": 16, "max_train_steps": 1, **kwargs})
