"""A training that is stopped, runs out of disk or diverges keeps what it has, and says so."""

import importlib
import os
import resource
import shlex
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.faults import Fault
from fm_diffusers.training.finished import find_outcome, steps_of

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
TINY = {
    "dataset_name": "digits",
    "block_out_channels": [8, 16],
    "report_to": "none",
    "train_batch_size": 56,
    "lr_scheduler": "constant",
    "max_train_steps": 4,
}
pytestmark = [
    pytest.mark.usefixtures("few_digits"),
    pytest.mark.filterwarnings("ignore:.*lie beyond the:UserWarning"),
]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_mnist")


@pytest.fixture
def train(script, tmp_path):
    def run(folder="out", **kwargs):
        output = tmp_path / folder
        script.main(script.Arguments(**TINY | {"output_dir": str(output)} | kwargs))
        return output

    return run


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    script.main(script.Arguments(**TINY | {"output_dir": str(output), "checkpointing_steps": 2}))
    return output


@pytest.fixture
def at_batch(script, monkeypatch):
    """Do something to the loss of a batch, the first one is 1."""

    def arrange(number, change):
        loss, seen = script.flow_loss, []

        def changed(*args):
            seen.append(1)
            found = loss(*args)
            return change(found) if len(seen) == number else found

        monkeypatch.setattr(script, "flow_loss", changed)

    return arrange


def names(output, pattern):
    return {path.name for path in output.glob(pattern)}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- stopped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_stopped_run_saves_its_step_and_says_how_it_goes_on_to_the_same_end(
    number, train, at_batch, script, whole, capsys
):
    at_batch(3, lambda loss: os.kill(os.getpid(), number) or loss)
    with pytest.raises(SystemExit) as stopped:
        train()
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"stopped by {number.name} after step 3: accelerate launch ")
    words = shlex.split(said.partition("accelerate launch ")[2])[1:]
    args = script.parse(script.Arguments, words)
    output = Path(args.output_dir)
    assert names(output, "checkpoint-*") == {"checkpoint-3"} and find_outcome(output) is None
    script.main(args)
    assert_equal(load_file(output / WEIGHTS), load_file(whole / WEIGHTS))


# --- a full disk ---------------------------------------------------------------------------------


def half_written(self, folder, **kwargs):
    Path(folder, "unet").mkdir()
    Path(folder, "unet", "config.json").write_text("{}")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (28)")


def test_a_disk_that_is_full_at_the_last_save_leaves_no_half_of_a_pipeline(
    train, whole, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(FlowMatchingPipeline, "save_pretrained", half_written)
        message = r"could not be written \(.*No space left.*\), about [\d,]+ bytes are needed and "
        with pytest.raises(Fault, match=message) as told:
            output = train()
        assert len(str(told.value).splitlines()) == 1
    output = Path(str(told.value).partition(" are free in ")[2].partition(":")[0])
    assert names(output, "[!.]*") == {"checkpoint-4"}
    assert_equal(
        load_file(train(resume_from_checkpoint="latest") / WEIGHTS), load_file(whole / WEIGHTS)
    )

    before = load_file(output / WEIGHTS)  # what is there stays, until all of the new is there
    with monkeypatch.context() as patch:
        patch.setattr(FlowMatchingPipeline, "save_pretrained", half_written)
        with pytest.raises(Fault, match="make room"):
            train(max_train_steps=5, resume_from_checkpoint="latest")
    assert_equal(load_file(output / WEIGHTS), before)
    assert steps_of(output) == 4 and not names(output, "partial-*")


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_one_before(train, at_batch, tmp_path):
    """No file can become larger than 20,000 bytes after the second step."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(loss):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return loss

    at_batch(3, fill)
    try:
        message = (
            r"partial-4 could not be written .* bytes are needed .*: make .* checkpoint-2 is kep"
        )
        with pytest.raises(Fault, match=message) as told:
            train(checkpointing_steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(told.value).splitlines()) == 1
    assert names(tmp_path / "out", "[!.]*") == {"checkpoint-2"}
    assert steps_of(train(checkpointing_steps=2, resume_from_checkpoint="latest")) == 4


# --- a loss that diverges ------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_told_with_its_step_and_nothing_of_it_saved(
    train, at_batch, tmp_path
):
    at_batch(3, lambda loss: loss * float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 3: go on from the last checkp"):
        train(checkpointing_steps=2)
    assert names(tmp_path / "out", "[!.]*") == {"checkpoint-2"}


def test_weights_that_are_no_numbers_are_not_saved(train, at_batch, tmp_path):
    """The loss of the last step is finite, its gradient is not."""

    def spoil(loss):
        zero = loss.detach() * 0
        return loss + ((loss - loss.detach() + zero).sqrt() * zero)

    at_batch(4, spoil)
    with pytest.raises(ValueError, match="weights are not finite after step 4, which is not save"):
        train(checkpointing_steps=2)
    assert names(tmp_path / "out", "[!.]*") == {"checkpoint-2"}


# --- a run that would learn something else -------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [{"path": "cosine"}, {"prediction_type": "velocity"}, {"block_out_channels": [8, 8]}],
    ids=lambda changed: [*changed][0],
)
def test_what_changes_what_is_learned_is_refused_in_one_line(changed, train, whole, tmp_path):
    start = str(whole / "checkpoint-2")
    with pytest.raises(
        ValueError, match=f"written with .*{[*changed][0]}=.*something else"
    ) as told:
        train(resume_from_checkpoint=start, **changed)
    assert len(str(told.value).splitlines()) == 1
    assert not names(tmp_path / "out", "checkpoint-*")
