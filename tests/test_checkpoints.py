"""Checkpoints that are complete or are not there, and the place of a run."""

import json
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from fm_diffusers.training.checkpoints import Checkpoints
from fm_diffusers.training.manifests import damage
from fm_diffusers.training.progress import Progress

STATE = "progress.safetensors"


@pytest.fixture
def run(tmp_path):
    """Return an Accelerator, the place of its run, and its checkpoints."""
    configuration = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=1)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    progress = Progress()
    yield (
        accelerator,
        progress,
        Checkpoints(tmp_path, run={"seed": 1}, states={"progress": progress}),
    )
    accelerator.free_memory()


def save(run, *steps):
    accelerator, progress, checkpoints = run
    for step in steps:
        progress.step = step
        checkpoints.save(accelerator, step)
    progress.step = 0


def names(run):
    return sorted(path.name for path in run[2].folder.iterdir())


def test_a_checkpoint_is_found_by_latest_by_name_and_by_folder(run):
    accelerator, progress, checkpoints = run
    save(run, 9, 10)
    for name, step in (
        ("latest", 10),
        ("checkpoint-9", 9),
        (str(checkpoints.folder / "checkpoint-10"), 10),
    ):
        assert checkpoints.load(accelerator, name)
        assert progress.step == step


def test_the_limit_keeps_the_newest(run):
    run[2].total_limit = 2
    save(run, 5, 9, 10, 100)
    assert names(run) == ["checkpoint-10", "checkpoint-100"]


def test_a_run_begins_anew_where_there_is_nothing_to_go_on_with(run):
    accelerator, progress, checkpoints = run
    assert not checkpoints.load(accelerator, None)
    assert not checkpoints.load(accelerator, "latest")


def test_what_a_killed_run_left_half_written_goes(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    accelerator.save_state(str(checkpoints.folder / "partial-6"))
    (checkpoints.folder / "partial-discarded-checkpoint-1").mkdir()
    assert checkpoints.load(accelerator, "latest")
    assert progress.step == 3 and names(run) == ["checkpoint-3"]


def test_two_runs_are_not_mixed(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    with pytest.raises(ValueError, match="holds checkpoint-3 of an earlier run: say --resume"):
        checkpoints.load(accelerator, None)
    assert names(run) == ["checkpoint-3"]
    assert not checkpoints.load(accelerator, None, overwrite=True)
    assert names(run) == []


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "file", "fault"),
    [
        (truncate, STATE, f"changed: {STATE}"),
        (flip_a_bit, STATE, f"changed: {STATE}"),
        (lambda file: file.unlink(), STATE, f"missing: {STATE}"),
        (truncate, "manifest.json", "its manifest.json is missing or unreadable"),
        (lambda file: file.unlink(), "manifest.json", "its manifest.json is missing"),
    ],
    ids=["truncated", "flipped", "missing", "manifest truncated", "manifest missing"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(harm, file, fault, run):
    accelerator, progress, checkpoints = run
    save(run, 3, 6)
    newest = checkpoints.folder / "checkpoint-6"
    assert damage(newest) is None
    text = (newest / "manifest.json").read_text()
    (newest / "manifest.json").write_text(text.strip())  # so that cutting it cuts JSON
    harm(newest / file)
    with pytest.warns(UserWarning, match=f"checkpoint-6 is damaged, {re.escape(fault)}.*passed"):
        assert checkpoints.load(accelerator, "latest")
    assert progress.step == 3
    with pytest.raises(ValueError, match=f"checkpoint-6 is damaged, {re.escape(fault)}"):
        checkpoints.load(accelerator, "checkpoint-6")


def test_with_nothing_but_damage_a_run_does_not_begin_anew_by_itself(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    truncate(checkpoints.folder / "checkpoint-3" / STATE)
    with (
        pytest.warns(UserWarning, match="checkpoint-3 is damaged"),
        pytest.raises(ValueError, match="every checkpoint of .* is damaged: begin anew"),
    ):
        checkpoints.load(accelerator, "latest")


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    truncate(checkpoints.folder / "checkpoint-3" / STATE)
    save(run, 3)
    assert names(run) == ["checkpoint-3"] and damage(checkpoints.folder / "checkpoint-3") is None


def test_names_of_something_else_are_refused(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    (checkpoints.folder / "checkpoint-x").mkdir()
    for name in ("checkpoint-4", "checkpoint-x"):
        with pytest.raises(ValueError, match=r"there are \['checkpoint-3'\] in .*, or say `late"):
            checkpoints.load(accelerator, name)


def test_a_changed_setting_is_named(run):
    accelerator, progress, checkpoints = run
    save(run, 3)
    checkpoints.run["seed"] = 2
    with pytest.warns(UserWarning, match="was written with seed=1, this run has 2"):
        checkpoints.load(accelerator, "latest")


def test_the_manifest_holds_what_is_there(run):
    save(run, 3)
    folder = run[2].folder / "checkpoint-3"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest["run"] == {"seed": 1}


# --- the place of a run --------------------------------------------------------------------------


def draws(accelerator, progress, loader, updates):
    """Return data, noise and place of every batch; two batches are an update."""
    seen = []
    for (batch,) in progress.rest(accelerator, loader, 7, updates):
        seen.append((batch.tolist(), torch.rand(()).item(), progress.epoch))
        progress.step = progress.batches // 2
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_a_run_is_the_same_from_any_place(workers, run):
    """5 batches an epoch, 2 an update: stops are within and at the end of epochs."""
    accelerator, progress, _ = run
    data = TensorDataset(torch.arange(20))
    loader = accelerator.prepare(DataLoader(data, 4, shuffle=True, num_workers=workers))
    whole = draws(accelerator, progress, loader, 10)
    assert len(whole) == 20 and [place[2] for place in whole[::5]] == [0, 1, 2, 3]
    epochs = [sum((batch for batch, _, e in whole if e == epoch), []) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({noise for _, noise, _ in whole}) == 20
    for stop in (1, 4, 5, 9):
        first = Progress()
        head = draws(accelerator, first, loader, stop)
        resumed = Progress()
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        torch.manual_seed(stop)  # whatever came between
        assert head + draws(accelerator, resumed, loader, 10) == whole
        assert resumed.seconds >= first.earlier


def test_a_finished_run_has_no_rest(run):
    accelerator, progress, _ = run
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(20)), 4))
    progress.step = 10
    assert draws(accelerator, progress, loader, 10) == []


def test_a_data_set_without_a_batch_is_refused(run):
    accelerator, progress, _ = run
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(3)), 4, drop_last=True))
    with pytest.raises(ValueError, match="smaller than one batch"):
        draws(accelerator, progress, loader, 1)
