"""Data sets of images as training reads them: rows, order, layouts and what is refused."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from covers import covering
from pictures import CLASSES, COUNT, WAYS, numbers, picture, png, write
from PIL import Image
from processes import on_processes

from fm_diffusers.training.data import load_images
from fm_diffusers.training.progress import rest_of_epoch

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")

MNIST = Path(__file__).parents[2] / "shared" / "datasets" / "mnist"

pytestmark = pytest.mark.usefixtures("quick_datasets")


@pytest.fixture
def numbered(tmp_path):
    """A data set of images, labels and captions that all tell the number of their row."""
    return write(
        tmp_path / "data",
        [picture(i) for i in range(COUNT)],
        {"label": datasets.ClassLabel(names=list(CLASSES))},
        shards=2,
        label=[i % 4 for i in range(COUNT)],
        text=[f"number {i}" for i in range(COUNT)],
    )


# --- the same images, whichever way --------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data, source = load_images("digits"), load_digits()
    assert np.array_equal(data.images[:, 0], np.rint(source.images * 255 / 16))
    assert np.array_equal(data.labels, source.target)
    assert data.class_names == tuple("0123456789")
    stream = load_images("digits", streaming=True, shuffle_buffer=100)
    first = next(iter(stream.loader(50)))
    for x, k in zip(first["image"], first["label"], strict=True):
        same = (data.images == x).flatten(1).all(1)
        assert same.any() and (data.labels[same] == k).all()


@pytest.mark.parametrize("way", WAYS)
def test_batches_hold_every_row_once_with_its_label_and_caption(way, numbered):
    data = load_images(numbered, caption_column="text", **WAYS[way])
    assert data.shape == (3, 6, 6) and data.num_classes == 4 and data.class_names == CLASSES
    assert data.length == (None if way == "stream" else COUNT) and data.skipped == 0
    assert (data.images is not None) == (way == "memory")
    found = [numbers(batch) for batch in data.loader(10)]
    assert sorted(sum(found, [])) == list(range(COUNT)) != sum(found, [])
    assert [len(batch) for batch in [numbers(batch) for batch in data.loader(15)]] == [15] * 3
    again = pickle.loads(pickle.dumps(data.loader(10)))  # as workers that are spawned need it
    assert sorted(sum(map(numbers, again), [])) == list(range(COUNT))


def test_images_have_the_order_of_the_data_set(numbered):
    data = load_images(numbered, caption_column="text")
    whole = {"image": data.images, "label": data.labels, "caption": data.captions}
    assert numbers(whole) == list(range(COUNT))
    lazy = load_images(numbered, caption_column="text", memory_limit=data.images.numel() - 1)
    assert lazy.images is None and torch.equal(lazy.labels, data.labels)
    for i in (0, 3, COUNT - 1):
        assert torch.equal(lazy.dataset[i]["image"], data.dataset[i]["image"])
        assert lazy.dataset[i]["caption"] == data.dataset[i]["caption"] == f"number {i}"
    assert load_images(numbered, memory_limit=data.images.numel()).images is not None


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
def test_mnist_is_read_as_it_is():
    import pyarrow.parquet

    data = load_images(str(MNIST), split="test")
    assert data.shape == (1, 28, 28) and data.class_names == tuple("0123456789")
    file = next(MNIST.rglob("test-*.parquet"))
    table = pyarrow.parquet.read_table(file).to_pydict()
    assert data.labels.tolist() == table["label"] and data.length == len(table["label"])
    for i in range(0, data.length, 97):
        pixels = np.asarray(Image.open(io.BytesIO(table["image"][i]["bytes"])))
        assert np.array_equal(data.images[i, 0], pixels)


# --- order and resumption ------------------------------------------------------------------------


def prepared(source, way, workers=0, seed=5):
    """Return the loader of a run, as `training.arguments.start` configures it."""
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=seed, dispatch_batches=False
        ),
    )
    options = {"caption_column": "text", "shuffle_seed": seed, **WAYS[way]}
    data = load_images(source, shuffle_buffer=20, **options)
    return accelerator, accelerator.prepare(data.loader(5, workers))


@pytest.mark.parametrize(("way", "workers"), covering(WAYS, [0, 2]))
def test_a_resumed_epoch_goes_on_with_the_same_batches(way, workers, numbered):
    _, loader = prepared(numbered, way, workers)
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        torch.manual_seed(epoch)  # must not matter
        epochs.append([numbers(batch) for batch in loader])
        assert sorted(sum(epochs[-1], [])) == list(range(COUNT))
    assert epochs[0] != epochs[1] != epochs[2]

    accelerator, loader = prepared(numbered, way, workers)
    assert list(map(numbers, rest_of_epoch(accelerator, loader, 1, 3))) == epochs[1][3:]
    assert list(map(numbers, rest_of_epoch(accelerator, loader, 2, 0))) == epochs[2]
    _, other = prepared(numbered, way, workers, seed=6)
    other.set_epoch(1)
    assert list(map(numbers, other)) != epochs[1]


def share(source, way, folder):
    """Write what one process of several sees of an epoch, and of its rest."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator, loader = prepared(source, way)
    assert accelerator.num_processes == 2
    loader.set_epoch(1)
    seen = list(map(numbers, loader))
    rest = list(map(numbers, rest_of_epoch(accelerator, loader, 1, 2)))
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps([seen, rest]))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_share_the_rows_of_an_epoch(way, numbered, tmp_path):
    on_processes(2, share, numbered, way, str(tmp_path))
    runs = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(seen) for seen, _ in runs] == [COUNT // 10] * 2
    assert sorted(sum(runs[0][0] + runs[1][0], [])) == list(range(COUNT))
    assert all(rest == seen[2:] for seen, rest in runs)


# --- layouts -------------------------------------------------------------------------------------


def test_a_parquet_file_needs_no_features(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {
        "picture": [png(picture(i, "L"))["bytes"] for i in range(4)],
        "kind": ["cow", "ant", "cow", "bee"],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    file = str(tmp_path / "x.parquet")
    data = load_images(file, image_column="picture", label_column="kind")
    assert data.class_names == ("ant", "bee", "cow") and data.labels.tolist() == [2, 0, 2, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("way", WAYS)
def test_class_folders_are_labels(way, tmp_path):
    for i, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for j in range(3):
            picture(10 * i + j).save(tmp_path / "data" / name / f"{j}.png")
    data = load_images(str(tmp_path / "data"), **WAYS[way])
    (batch,) = data.loader(12)
    assert data.class_names == CLASSES
    assert (batch["image"][:, 0, 0, 0] // 10).tolist() == batch["label"].tolist()
    assert set(batch) == {"image", "label"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_files_hold_captions(suffix, way, tmp_path):
    rows = [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(4)]
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    lines = {
        "jsonl": map(json.dumps, rows),
        "csv": [",".join(columns) for columns in [rows[0], *(row.values() for row in rows)]],
    }
    (tmp_path / f"metadata.{suffix}").write_text("\n".join(lines[suffix]) + "\n")
    options = {"label_column": "", "caption_column": "text", **WAYS[way]}
    data = load_images(str(tmp_path), **options)
    (batch,) = data.loader(4)
    assert data.num_classes == 0 and data.class_names is None and "label" not in batch
    assert batch["caption"] == [f"number {i}" for i in batch["image"][:, 0, 0, 0]]


def test_the_first_of_several_captions_counts(tmp_path):
    texts = [["one", "eins"], ["two", "zwei"]]
    source = write(tmp_path / "data", [picture(0), picture(1)], text=texts)
    data = load_images(source, label_column=None, caption_column="text")
    assert data.captions == ["one", "two"] and data.labels is None


def test_whole_numbers_are_classes_without_names(tmp_path):
    source = write(tmp_path / "data", [picture(i) for i in range(4)], label=[2, 0, 1, 2])
    data = load_images(source)
    assert (data.num_classes, data.class_names, data.labels.tolist()) == (3, None, [2, 0, 1, 2])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 0], "column label has -1 among 3 values: make it a ClassLabel feature, or"),
        ([0, 1, 3, 0], "column label has 3 among 3 values: .* '' trains without classes"),
        ([0, 1, None, 0], "column label has None among 3 values"),
        (["a", None, "b", "a"], "column label has None, a, b among 3 values"),
        ([0.5, 1.0, 0.0, 0.0], "column label has 0.5 among 3 values"),
        ([[0], [1], [1], [0]], r"column label holds List\(.*\), no labels: make it"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message, tmp_path):
    source = write(tmp_path / "data", [picture(i) for i in range(4)], label=labels)
    with pytest.raises(ValueError, match=message):
        load_images(source)


@pytest.mark.parametrize("way", WAYS)
def test_images_without_a_class_are_refused(way, tmp_path):
    feature = {"label": datasets.ClassLabel(names=["a", "b"])}
    source = write(tmp_path / "data", [picture(0), picture(1)], feature, label=[1, -1])
    with pytest.raises(ValueError, match="has the label -1, which is none of the 2 classes .* ''"):
        list(load_images(source, **WAYS[way]).loader(2))
    assert load_images(source, label_column="", **WAYS[way]).num_classes == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("texts", [["a", None], [["a"], []]])
def test_missing_captions_are_refused(texts, way, tmp_path):
    source = write(tmp_path / "data", [picture(0), picture(1)], text=texts)
    options = {"label_column": None, "caption_column": "text", **WAYS[way]}
    with pytest.raises(
        ValueError, match=r"image .* has the caption (None|\[\]): --caption_column"
    ):
        list(load_images(source, **options).loader(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_column": "photo"},
            r"no column \['photo'\], it has \['image', 'label', 'text'\]: choose with "
            r"--image_column, --label_column \('' trains without classes\) and --caption_column",
        ),
        ({"label_column": "digit"}, r"no column \['digit'\], it has"),
        ({"caption_column": "story"}, r"no column \['story'\], it has"),
        (
            {"caption_column": "label"},
            r"image 0.* has the caption [0-3]: --caption_column must hold",
        ),
        ({"image_column": "label"}, r"--image_column label holds ClassLabel.*, no encoded images"),
        ({"image_mode": "CMYK"}, r"unknown --image_mode 'CMYK': choose one of L, RGB, RGBA"),
        ({"split": "tests"}, r"split:? \"?tests\"?.*train"),
    ],
)
@pytest.mark.parametrize("way", ["memory", "stream"])
def test_options_that_do_not_fit_the_data_are_refused(options, message, way, numbered):
    with pytest.raises(ValueError, match=message):
        list(load_images(numbered, **options, **WAYS[way]).loader(4))


def test_a_stream_must_know_its_classes(tmp_path):
    source = write(tmp_path / "data", [picture(0), picture(1)], label=[0, 1])
    with pytest.raises(ValueError, match="stream does not tell .*: drop --streaming, make it a"):
        load_images(source, streaming=True)


def test_digits_have_one_split():
    with pytest.raises(ValueError, match="`digits` has the split 'train' only, got 'test'"):
        load_images("digits", split="test")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["no_such_folder", "nobody/nothing"])
def test_a_missing_data_set_is_refused_without_a_network(name, way):
    message = f"'{name}' is neither a local folder nor .*HF_HUB_OFFLINE.* `digits` needs no netw"
    with pytest.raises(ValueError, match=message):
        load_images(name, **WAYS[way])
