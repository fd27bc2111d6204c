"""Folders of `save_to_disk`, and folders that hold no data set."""

import numpy as np
import pytest
import torch
from PIL import Image

from fm_diffusers.training.data import load_images

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("quick_datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 6), dtype=np.uint8)


def rows(first, last, split=None):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"])
    )
    columns = {
        "image": [Image.fromarray(x) for x in PIXELS[first:last]],
        "label": [i % 3 for i in range(first, last)],
    }
    return datasets.Dataset.from_dict(columns, features=features, split=split)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    splits = {"train": rows(0, 6), "test": rows(6, 9)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize(("split", "first", "last"), [("train", 0, 6), ("test", 6, 9)])
def test_splits_that_were_saved_to_disk_are_read(split, first, last, memory_limit, saved):
    data = load_images(saved, split=split, memory_limit=memory_limit)
    assert data.shape == (1, 6, 6) and data.class_names == ("a", "b", "c")
    assert data.labels.tolist() == [i % 3 for i in range(first, last)]
    found = torch.stack([data.dataset[i]["image"] for i in range(data.length)])
    assert torch.equal(found[:, 0], torch.from_numpy(PIXELS[first:last]))


def test_a_stream_of_them_has_the_same_rows(saved):
    batch = next(iter(load_images(saved, streaming=True).loader(6)))
    order = batch["image"].flatten(1).tolist()
    assert sorted(order) == sorted(PIXELS[:6].reshape(6, -1).tolist())


def test_a_single_split_is_read_by_its_name(tmp_path):
    for name, split in (("unnamed", None), ("named", datasets.Split.TEST)):
        rows(0, 6, split).save_to_disk(tmp_path / name)
    assert load_images(str(tmp_path / "unnamed")).length == 6
    assert load_images(str(tmp_path / "named"), split="test").length == 6
    for name, split, others in (("unnamed", "test", "train"), ("named", "train", "test")):
        with pytest.raises(ValueError, match=f"no split '{split}', it was saved with {others}: "):
            load_images(str(tmp_path / name), split=split)


def test_what_a_saved_data_set_does_not_have_is_told(saved):
    with pytest.raises(
        ValueError, match="no split 'valid', it was saved with train, test: choose"
    ):
        load_images(saved, split="valid")
    with pytest.raises(
        ValueError, match="--dataset_config_name plain is for data sets of several"
    ):
        load_images(saved, config_name="plain")


def test_folders_of_nothing_of_several_and_of_models_are_told(saved, tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="'.*empty' is a folder without files: name one of images"
    ):
        load_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is one level too high, it holds the data sets saved: "):
        load_images(str(tmp_path))
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a trained pipeline .* no data set: name a folder"):
        load_images(str(tmp_path / "empty"))


def test_the_folder_above_several_data_sets_is_told(tmp_path):
    """Read together they would be one data set, with the classes of the first."""
    folder = tmp_path / "data"
    for name, names in (("one", ["a", "b", "c"]), ("two", ["x"])):
        (folder / name).mkdir(parents=True)
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=names)
        )
        columns = {"image": [Image.fromarray(PIXELS[0])], "label": [len(names) - 1]}
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(folder / name / "train-00000-of-00001.parquet")
    assert load_images(str(folder / "one")).num_classes == 3
    with pytest.raises(ValueError, match="one level too high, it holds the data sets one, two: "):
        load_images(str(folder))
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.xyz").write_text("nothing")
    with pytest.raises(ValueError, match="'.*notes' cannot be read as one data set of images"):
        load_images(str(folder / "notes"))
