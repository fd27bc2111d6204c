"""Finished work is safe: more steps go on from it, and nothing is written over it unasked."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.finished import find_outcome, steps_of

pytest.importorskip("datasets")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[1] / "examples"
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
#: Seven batches of the few digits an epoch, so that four steps end within the first and eight
#: within the second.
TINY = {
    "dataset_name": "digits",
    "block_out_channels": [8, 16],
    "report_to": "none",
    "train_batch_size": 56,
    "dropout": 0.1,
    "lr_warmup_steps": 2,
    "lr_scheduler": "constant_with_warmup",
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
    def run(steps, folder="out", **kwargs):
        output = tmp_path / folder
        arguments = TINY | {"output_dir": str(output), "max_train_steps": steps}
        script.main(script.Arguments(**arguments | kwargs))
        return output

    return run


def content(folder):
    return {f: f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def weights(output, step):
    files = output / WEIGHTS, output / f"checkpoint-{step}" / "model.safetensors"
    return [load_file(file) for file in files]


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


# --- more steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler": "constant_with_warmup"},
        {"lr_scheduler": "constant", "lr_warmup_steps": None},
        {"lr_scheduler": "cosine", "lr_scheduler_steps": 8},
    ],
    ids=lambda given: given["lr_scheduler"],
)
def test_more_steps_end_as_if_they_had_been_asked_for_at_the_start(schedule, train, recwarn):
    whole = train(8, "whole", **schedule)
    train(4, **schedule)
    recwarn.clear()
    output = train(8, resume_from_checkpoint="latest", **schedule)
    assert not [w for w in recwarn if "not as it would have" in str(w.message)]
    assert_equal(weights(output, 8), weights(whole, 8))
    assert json.loads((output / "training.json").read_text())["steps"] == 8


def test_a_schedule_that_depends_on_its_end_says_that_more_steps_are_not_the_same(train):
    train(4, lr_scheduler="cosine")
    message = (
        r"checkpoint-4 was written with lr_scheduler_steps=4, this run has 8: it goes on, but not "
        r"as it would have; .* say --lr_scheduler_steps at the start, or --lr_scheduler constant_w"
    )
    with pytest.warns(UserWarning, match=message):
        output = train(8, lr_scheduler="cosine", resume_from_checkpoint="latest")
    assert steps_of(output) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr_warmup_steps": 3}, "written with lr_warmup_steps=2, this run has 3"),
        ({"gradient_accumulation_steps": 2}, "written with gradient_accumulation_steps=1"),
        ({"validation_split": "0.1"}, "written with validation_split=None, this run has '0.1'"),
    ],
)
def test_what_changes_the_rest_of_a_run_is_named(changed, message, train):
    train(4)
    with pytest.warns(UserWarning, match=message):
        train(5, resume_from_checkpoint="latest", **changed)


# --- nothing is written over ---------------------------------------------------------------------


def test_a_finished_run_asked_again_does_nothing_but_say_so(train, capsys):
    output = train(4, report_to="tensorboard")
    (output / "evaluation.json").write_text('{"rows": []}')
    before = content(output)
    capsys.readouterr()
    again = {"resume_from_checkpoint": "latest", "report_to": "tensorboard"}
    train(4, **again)
    assert "holds the outcome of all 4 steps: nothing is left to do" in capsys.readouterr().out
    assert content(output) == before
    train(None, num_train_epochs=None, **again | {"max_train_steps": 4})
    assert content(output) == before


@pytest.mark.parametrize("keep_checkpoint", [True, False])
@pytest.mark.parametrize("resume", [None, "latest"])
def test_a_trained_pipeline_is_not_replaced_unasked(resume, keep_checkpoint, train):
    output = train(4)
    if not keep_checkpoint:
        (output / "checkpoint-4").rename(output.parent / "checkpoint-4")
    elif resume:
        return  # there is something to go on from
    before = content(output)
    message = "holds a trained pipeline .*, but no checkpoint" if resume else "say --resume_from"
    with pytest.raises(ValueError, match=message):
        train(8, resume_from_checkpoint=resume)
    assert content(output) == before


def test_overwriting_deletes_what_the_earlier_run_left_and_nothing_else(train):
    output = train(4, validation_steps=2)
    (output / "evaluation.json").touch()
    (output / "notes.txt").write_text("mine")
    unet = FlowMatchingPipeline.from_pretrained(output)
    train(
        2,
        overwrite_output_dir=True,
        backbone="transformer",
        block_out_channels=None,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
    )
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert unet.unet is not None and pipe.unet is None
    left = {path.name for path in output.iterdir()}
    assert {"notes.txt", "transformer", "checkpoint-2"} < left
    assert not {"unet", "checkpoint-4", "samples-2.png", "evaluation.json"} & left
    assert json.loads((output / "training.json").read_text())["steps"] == 2


def test_a_run_that_begins_anew_though_asked_to_go_on_says_so(train, capsys):
    train(1, resume_from_checkpoint="latest")
    assert "nothing to resume in" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["outcome", "record"])
def test_a_run_that_was_killed_while_it_saved_is_saved_again(harm, train):
    output = train(4)
    trained = [{k: v.clone() for k, v in part.items()} for part in weights(output, 4)]
    file = "model_index.json" if harm == "outcome" else "training.json"
    (output / file).unlink()
    (output / WEIGHTS).write_bytes(b"half")
    train(4, resume_from_checkpoint="latest")
    assert_equal(weights(output, 4), trained)
    assert json.loads((output / "training.json").read_text())["images_per_second"] > 0


def test_work_that_came_later_is_not_undone(train, tmp_path):
    output = train(4, checkpointing_steps=2)
    before = content(output)
    for steps in (2, 3):
        with pytest.raises(ValueError, match=rf"come to step 4, and is asked to end at {steps}"):
            train(steps, resume_from_checkpoint="checkpoint-2")
        with pytest.raises(ValueError, match="say --max_train_steps 4 or more"):
            train(steps, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="with another learning_rate, but .* come to step 4"):
        train(6, resume_from_checkpoint="checkpoint-2", learning_rate=1e-5)
    assert content(output) == before
    other = train(3, "other", resume_from_checkpoint=str(output / "checkpoint-2"))
    assert steps_of(other) == 3 and content(output) == before
    with pytest.raises(ValueError, match="holds checkpoint-3 of an earlier run"):
        train(6, "other", resume_from_checkpoint=str(output / "checkpoint-4"))


def test_a_run_is_not_written_over_what_it_reads(train, script):
    output = train(2)
    for given in ({"init_from": str(output)}, {"dataset_name": str(output)}):
        for more in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
            with pytest.raises(ValueError, match=f"would be written over --{[*given][0]}"):
                train(4, **given | more)


# --- the other scripts ---------------------------------------------------------------------------


def small(**kwargs):
    return {k: v for k, v in TINY.items() if k not in ("dropout",)} | kwargs


def lora(module, output, base, **kwargs):
    given = small(model=str(base), output_dir=str(output), rank=2, **kwargs)
    del given["block_out_channels"]
    module.main(module.LoraArguments(**given))


def reflow(module, output, base, **kwargs):
    given = small(model=str(base), output_dir=str(output), num_pairs=112, pair_steps=1, **kwargs)
    del given["block_out_channels"], given["dataset_name"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.measure, "__defaults__", (4, 5))  # samples, and steps to compare with
        module.main(module.ReflowArguments(**given))


def autoencoder(module, output, base, **kwargs):
    module.main(module.AutoencoderArguments(**small(output_dir=str(output), **kwargs)))


def latent(module, output, base, **kwargs):
    vae = output.parent / "vae"
    blocks = {"down_block_types": 2 * ["DownEncoderBlock2D"], "block_out_channels": [8, 8]}
    blocks |= {"up_block_types": 2 * ["UpDecoderBlock2D"], "norm_num_groups": 4}
    if not vae.exists():
        AutoencoderKL(1, 1, **blocks, latent_channels=2, sample_size=8).save_pretrained(vae)
    given = small(vae=str(vae), output_dir=str(output), **kwargs)
    module.main(module.LatentArguments(**given))


def text(module, output, base, **kwargs):
    module.main(module.TextArguments(**small(output_dir=str(output), **kwargs)))


SCRIPTS = {
    "train_lora": lora,
    "reflow": reflow,
    "train_autoencoder": autoencoder,
    "train_latent": latent,
    "train_text_to_image": text,
}


@pytest.fixture(scope="module")
def base(script, few_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("base")
    script.main(script.Arguments(**TINY | {"output_dir": str(output), "max_train_steps": 1}))
    return output


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_goes_on_and_writes_over_nothing(name, base, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    module, run, output = importlib.import_module(name), SCRIPTS[name], tmp_path / "out"
    run(module, output, base, max_train_steps=2, validation_split="0.3")
    before = content(output)
    record = json.loads((output / "training.json").read_text())
    assert record["validation_loss"] > 0 and (output / "checkpoint-2").is_dir()
    with pytest.raises(ValueError, match="holds checkpoint-2 of an earlier run"):
        run(module, output, base, max_train_steps=2, validation_split="0.3")
    again = {"validation_split": "0.3", "resume_from_checkpoint": "latest"}
    run(module, output, base, max_train_steps=2, **again)
    assert "nothing is left to do" in capsys.readouterr().out
    assert content(output) == before and find_outcome(output) is not None
    run(module, output, base, max_train_steps=3, **again)
    assert steps_of(output) == 3
    (
        (output / "checkpoint-2").rename(tmp_path / "2"),
        (output / "checkpoint-3").rename(tmp_path / "3"),
    )
    with pytest.raises(ValueError, match="but no checkpoint to go on from"):
        run(module, output, base, max_train_steps=4, **again)


def test_an_adapter_does_not_write_over_its_base(base, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    before = content(base)
    for name in ("train_lora", "reflow"):
        with pytest.raises(ValueError, match="would be written over --model"):
            SCRIPTS[name](importlib.import_module(name), base, base, overwrite_output_dir=True)
    assert content(base) == before


@pytest.mark.parametrize("name", ["README.md", "samples.png"])
@pytest.mark.parametrize("resume", [None, "latest"])
def test_what_no_run_has_written_is_not_replaced_unasked(name, resume, train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("my own")
    with pytest.raises(ValueError, match=f"holds {name}, which is of no run of ours"):
        train(2, resume_from_checkpoint=resume)
    assert (tmp_path / "out" / name).read_text() == "my own"
    train(2, overwrite_output_dir=True)
    assert (tmp_path / "out" / name).read_bytes() != b"my own"


def test_an_empty_name_of_a_folder_is_refused(train):
    with pytest.raises(ValueError, match="--output_dir is empty: name a folder"):
        train(2, output_dir="")
