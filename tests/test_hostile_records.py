"""Files that training scripts read: records, checkpoints and arguments that are broken or hostile.

Nothing outside of a folder is touched, whatever the folder says, and no code of it runs.
"""

import json
import shutil

import pytest
from hostile_files import RAN, TEXTS, bomb, write, zipped_bomb

from fm_diffusers.training.cards import write_card
from fm_diffusers.training.checkpoints import Checkpoints
from fm_diffusers.training.command_line import read_config
from fm_diffusers.training.finished import clear, steps_of
from fm_diffusers.training.manifests import MANIFEST, damage, write_manifest
from fm_diffusers.training.public import public
from fm_diffusers.training.publishing import retitle

#: How a record is read, by what reads it.
READERS = {
    "steps": steps_of,
    "card": write_card,
    "title": lambda folder: retitle(folder, "user/name"),
    "place": lambda folder: public(str(folder)),
}


@pytest.mark.parametrize("text", [name for name in TEXTS if name != "empty dictionary"])
@pytest.mark.parametrize("reader", READERS)
def test_a_record_that_is_none_is_named(reader, text, tmp_path):
    write("model_index.json", "{}", tmp_path)
    write("training.json", TEXTS[text], tmp_path)
    with pytest.raises(ValueError) as error:
        READERS[reader](tmp_path)
    assert str(tmp_path / "training.json") in str(error.value)
    assert str(error.value).count("\n") == 0


RECORDS = {
    "nothing": {},
    "kind unknown": {"kind": "evil"},
    "kind list": {"kind": []},
    "title missing": {"kind": "pipeline", "conditioning": None, "path": "linear"},
    "conditioning unknown": {"kind": "pipeline", "conditioning": "evil", "path": "linear"},
    "id2label list": {"kind": "pipeline", "conditioning": "class", "id2label": [1]},
    "plugins number": {"kind": "pipeline", "conditioning": "class", "plugins": 3},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_other_values_is_named(name, tmp_path):
    write("training.json", json.dumps(RECORDS[name]), tmp_path)
    with pytest.raises(ValueError, match="training.json.* cannot be read"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("steps", ["20", [20], 2.5, {"a": 1}, True])
def test_a_number_of_steps_is_a_number(steps, tmp_path):
    write("model_index.json", "{}", tmp_path)
    write("training.json", json.dumps({"steps": steps}), tmp_path)
    with pytest.raises(ValueError, match="must hold a number of steps, got"):
        steps_of(tmp_path)


@pytest.mark.parametrize("name", ["../kept", "..", ".", "", "/{0}", "unet/../../kept", "a/../.."])
def test_what_an_index_names_outside_of_its_folder_is_not_deleted(name, tmp_path):
    folder, kept = tmp_path / "out", tmp_path / "kept"
    for place in (folder / "unet", kept, folder / "notes", folder / "a"):
        write("file", "text", place)
    name = str(kept) if name == "/{0}" else name
    write("model_index.json", json.dumps({name: ["a", "b"], "unet": ["a", "b"]}), folder)
    clear(folder)
    assert (kept / "file").is_file() and (folder / "notes" / "file").is_file()
    assert not (folder / "unet").exists() and not (folder / "model_index.json").exists()


@pytest.mark.parametrize("text", [*TEXTS, "files list", "files number", "no run"])
def test_a_manifest_that_is_none_is_damage(text, tmp_path):
    others = {"files list": '{"files": [1], "run": {}}', "files number": '{"files": 3, "run": {}}'}
    write(MANIFEST, (TEXTS | others | {"no run": '{"files": {}}'})[text], tmp_path)
    assert "its manifest.json " in damage(tmp_path)


@pytest.mark.parametrize("make", [bomb, zipped_bomb])
def test_a_state_that_is_a_program_is_not_run(make, tmp_path):
    folder = tmp_path / "checkpoint-5"
    write("custom_checkpoint_0.pkl", make(folder), folder)
    write_manifest(folder, {})
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="custom_checkpoint_0.pkl may hold a program"):
        checkpoints.load(_Accelerator(), "latest")
    assert not (tmp_path / RAN).exists()


class _Accelerator:
    """As much of one as comes before the state is read."""

    is_main_process, distributed_type = True, None

    def wait_for_everyone(self):
        pass

    def print(self, *words):
        pass


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: " + "[" * 20_000,
        "!!python/object/apply:os.system ['true']",
        "seed: !!python/name:os.system",
        "- seed\n- 3",
        "seed",
        "3",
        "seed: 3\n" * 100_000,
        "evil: " + "x" * 1000,
        "\x00",
        "{seed: 3",
    ],
    ids=[
        "laughs",
        "deep",
        "call",
        "name",
        "list",
        "text",
        "number",
        "long",
        "unknown",
        "0",
        "cut",
    ],
)
def test_a_file_of_arguments_that_is_none_is_named(text, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        read_config(str(file), ["seed"])
    assert str(file) in str(error.value) and len(str(error.value)) < 600


def test_a_folder_that_leads_to_itself_is_not_followed(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "unet").symlink_to(folder)
    write("model_index.json", '{"unet": ["a", "b"]}', folder)
    write("notes.txt", "text", folder)
    with pytest.raises(OSError, match="symbolic link"):
        clear(folder)
    assert (folder / "notes.txt").is_file()
    shutil.rmtree(folder)
