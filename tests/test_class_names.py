"""Classes of the same name are the same, whatever their numbers in the data."""

import importlib
import warnings
from pathlib import Path

import pytest
from pictures import CLASSES, picture, write
from test_pipeline_names import NAMES, named

from fm_diffusers import FlowMatchingPipeline
from fm_diffusers.training.captions import warn_of_long
from fm_diffusers.training.data import load_images
from fm_diffusers.training.tuning import class_map

datasets = pytest.importorskip("datasets")
ANIMALS = dict(enumerate(CLASSES[:3]))


def data_of(folder, names):
    features = {"label": datasets.ClassLabel(names=list(names))} if names else None
    labels = [i % 3 % max(len(names), 1) for i in range(6)] if names else [0, 1, 2] * 2
    return load_images(write(folder / "data", map(picture, range(6)), features, label=labels))


@pytest.mark.parametrize(
    ("known", "names", "numbers", "left"),
    [
        (ANIMALS, ("cow", "ant", "bee"), [2, 0, 1], ANIMALS),
        (ANIMALS, ("cow", "bee"), [2, 1], ANIMALS),
        (NAMES, ("cut in half", "circle"), [2, 0], NAMES),
        (ANIMALS, (), [0, 1, 2], ANIMALS),
        (None, ("x", "y"), [0, 1], {0: "x", 1: "y"}),
        (None, (), [0, 1, 2], None),
    ],
    ids=str,
)
def test_classes_are_found_by_their_names(known, names, numbers, left, tmp_path, quick_datasets):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = class_map("base", named(names=known), data_of(tmp_path, names))
    assert found == (numbers, left)


def test_other_names_are_taken_by_number_and_it_is_said(tmp_path, quick_datasets):
    with pytest.warns(UserWarning, match="of base, ant, bee, cow, are not .*, cow, dog: classes"):
        found = class_map("base", named(names=ANIMALS), data_of(tmp_path, ("cow", "dog")))
    assert found == ([0, 1], {0: "cow", 1: "dog", 2: "cow"})


@pytest.mark.parametrize(
    ("column", "names"), [("folders", ("bee", "cow")), ("strings", ("bee, wild", "cow"))]
)
def test_names_come_from_folders_and_from_columns(column, names, tmp_path, quick_datasets):
    if column == "folders":
        for i, name in enumerate(names):
            (tmp_path / "data" / name).mkdir(parents=True)
            picture(i).save(tmp_path / "data" / name / "a.png")
        data = load_images(str(tmp_path / "data"))
    else:
        data = load_images(write(tmp_path / "data", map(picture, range(2)), label=[*names]))
    assert data.id2label == dict(enumerate(names))


def test_digits_have_names_that_a_trained_pipeline_keeps(tmp_path, monkeypatch, quick_datasets):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    script = importlib.import_module("train_mnist")
    run = {"block_out_channels": [8], "train_batch_size": 64, "max_train_steps": 1}
    output = str(tmp_path / "digits")
    script.main(
        script.Arguments(dataset_name="digits", output_dir=output, report_to="none", **run)
    )
    pipe = FlowMatchingPipeline.from_pretrained(output)
    assert pipe.labels == {str(i): i for i in range(10)}


def test_long_captions_are_counted_once():
    from test_pipeline_text import LONG, make_tokenizer

    captions = ["seven", LONG, "zero", LONG]
    with pytest.warns(UserWarning, match="^2 of all 4 captions .* 6 tokens .*'seven digit'$"):
        warn_of_long(make_tokenizer(), captions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_long(make_tokenizer(), ["seven", "zero"])
