import io
import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from PIL import Image

from fm_diffusers.training.data import load_images
from fm_diffusers.training.decoding import convert

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")

MNIST = Path(__file__).parents[2] / "shared" / "datasets" / "mnist"
COUNT, CLASSES = 50, ("ant", "bee", "cow", "doe")
#: The three ways to the images of a data set.
WAYS = {"memory": {}, "on access": {"memory_limit": 0}, "stream": {"streaming": True}}


@pytest.fixture(autouse=True)
def quick_and_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # of 5 s, at the end of every shuffled stream
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def picture(index, mode="RGB", size=(6, 6)):
    """An image whose top left pixel is its number, and the rest noise."""
    channels = Image.new(mode, (1, 1)).im.bands
    shape = (*size[::-1], channels) if channels > 1 else size[::-1]
    pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    pixels[0, 0] = index
    return Image.fromarray(pixels)


def write(folder, images, features=None, shards=1, **columns):
    """Write images, or dictionaries of bytes, and columns as parquet files; return the folder."""
    folder.mkdir()
    encoded = [png(image) if isinstance(image, Image.Image) else image for image in images]
    types = {"image": datasets.Image(), **(features or {})}
    table = datasets.Dataset.from_dict({"image": encoded, **columns})
    table = table.cast(datasets.Features({**table.features, **types}))
    for i in range(shards):
        name = f"train-{i:05}-of-{shards:05}.parquet"
        table.shard(shards, i, contiguous=True).to_parquet(folder / name)
    return str(folder)


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


def numbers(batch):
    """Return the rows of a batch, having checked that its columns belong together."""
    found = batch["image"][:, 0, 0, 0].tolist()
    for i, image in zip(found, batch["image"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(i)))
    assert batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [i % 4 for i in found]
    assert batch["caption"] == [f"number {i}" for i in found]
    return found


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


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", WAYS)
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
    loader.set_epoch(1)
    assert list(map(numbers, accelerator.skip_first_batches(loader, 3))) == epochs[1][3:]
    loader.set_epoch(2)
    assert list(map(numbers, loader)) == epochs[2]
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
    loader.set_epoch(1)
    rest = list(map(numbers, accelerator.skip_first_batches(loader, 2)))
    Path(folder, f"{accelerator.process_index}.json").write_text(json.dumps([seen, rest]))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_share_the_rows_of_an_epoch(way, numbered, tmp_path):
    debug_launcher(share, (numbered, way, str(tmp_path)), num_processes=2)
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


# --- modes and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_images_keep_their_mode_and_their_size(mode, tmp_path):
    images = [picture(i, mode, (7, 5)) for i in range(3)]
    data = load_images(write(tmp_path / "data", images), label_column=None)
    assert data.shape == (len(images[0].getbands()), 5, 7)
    pixels = np.stack([np.asarray(image).reshape(5, 7, -1) for image in images])
    assert np.array_equal(data.images.permute(0, 2, 3, 1), pixels)


@pytest.mark.parametrize("way", WAYS)
def test_several_modes_need_a_conversion(way, tmp_path):
    source = write(tmp_path / "data", [picture(0), picture(1), picture(2, "L")])
    with pytest.raises(
        ValueError, match=r"modes, (RGB and L|L and RGB) .* with --image_mode L, RGB, RGBA"
    ):
        list(load_images(source, label_column=None, **WAYS[way]).loader(3))
    data = load_images(source, label_column=None, image_mode="RGB", **WAYS[way])
    (batch,) = data.loader(3)
    grey = batch["image"][batch["image"][:, 0, 0, 0] == 2][0]
    assert np.array_equal(grey, np.stack([np.asarray(picture(2, "L"))] * 3))


def test_what_is_transparent_is_laid_on_white():
    image = picture(0, "RGBA", (40, 40))
    pixels = np.asarray(image).astype(float)
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    expected = alpha * colour + (1 - alpha) * 255
    assert np.abs(np.asarray(convert(image, "RGB")) - expected).max() <= 1
    assert np.array_equal(convert(image, "RGBA"), image)
    opaque = picture(0, "RGB")
    assert np.array_equal(convert(opaque.convert("RGBA"), "RGB"), opaque)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_become_eight(order):
    values = np.arange(2**16, dtype=order).reshape(256, 256)
    image = Image.fromarray(values)
    assert image.mode.startswith("I;16")
    expected = (values.astype(int) + 128) // 257  # half up, and no half is hit: 257 is odd
    assert np.array_equal(convert(image, "L"), expected)
    eight = Image.fromarray((np.arange(256) * 257).astype(order)[None])
    assert np.asarray(convert(eight, "L"))[0].tolist() == list(range(256))


def test_palettes_and_cmyk_become_colours():
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 0]]], np.uint8))
    for mode in ("P", "CMYK"):
        assert np.array_equal(convert(colours.convert(mode), "RGB"), colours), mode
    black = np.asarray(convert(Image.fromarray(np.eye(3, dtype=bool)), "L"))
    assert np.array_equal(black, 255 * np.eye(3))


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA", "I;16", "1"])
def test_other_modes_are_not_converted_unasked(mode, tmp_path):
    image = Image.new(mode, (4, 4))
    file = io.BytesIO()
    image.save(file, "tiff" if mode == "CMYK" else "png")
    source = write(tmp_path / "data", [{"bytes": file.getvalue(), "path": None}] * 2)
    with pytest.raises(ValueError, match=f"images are {mode}: convert them with --image_mode L"):
        load_images(source, label_column=None)
    data = load_images(source, label_column=None, image_mode="L")
    assert data.images.unique().tolist() == {"LA": [255]}.get(mode, [data.images[0, 0, 0, 0]])


def test_a_transparent_colour_is_seen(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, "png", transparency=(9, 9, 9))
    source = write(tmp_path / "data", [{"bytes": file.getvalue(), "path": None}])
    with pytest.raises(ValueError, match="images are RGB with transparency: convert"):
        load_images(source, label_column=None)
    data = load_images(source, label_column=None, image_mode="RGB")
    assert data.images.unique().tolist() == [255]


def test_pixels_of_unknown_range_are_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(file, "tiff")
    source = write(tmp_path / "data", [{"bytes": file.getvalue(), "path": None}])
    with pytest.raises(ValueError, match="images are F, 32 bits of unknown range"):
        load_images(source, label_column=None, image_mode="L")


def test_rotated_photographs_stand_upright(tmp_path):
    image, exif, file = picture(0, "L", (6, 4)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image.save(file, "png", exif=exif)
    source = write(tmp_path / "data", [{"bytes": file.getvalue(), "path": None}])
    data = load_images(source, label_column=None)
    assert np.array_equal(data.images[0, 0], np.rot90(np.asarray(image), -1))


def test_resolution_scales_the_shorter_side_and_crops_the_centre(tmp_path):
    blocks = np.repeat(np.array([[10, 10, 90, 150, 250, 250]], np.uint8), 2, axis=0)
    wide = np.kron(blocks, np.ones((8, 8), np.uint8))  # 16 x 48, its middle square 90 and 150
    images = [Image.fromarray(x) for x in (wide, wide.T)]
    source = write(tmp_path / "data", images)
    data = load_images(source, label_column=None, resolution=16)
    assert np.array_equal(data.images[0, 0], wide[:, 16:32])
    assert np.array_equal(data.images[1, 0], wide[:, 16:32].T)
    with pytest.raises(ValueError, match=r"alike, the first is \(1, 16, 48\) and image 1 is"):
        load_images(source, label_column=None)


def test_scaling_down_has_no_aliases(tmp_path):
    stripes = np.tile(np.array([[0, 255]], np.uint8), (64, 32))
    stripes[0] = 128
    source = write(tmp_path / "data", [Image.fromarray(stripes)])
    small = load_images(source, label_column=None, resolution=16).images[0, 0, 2:-2, 2:-2]
    assert (small.int() - 128).abs().max() <= 1


# --- broken images -------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """Twelve images, of which 3 is no image and 7 stops short."""
    images = [png(picture(i)) for i in range(12)]
    images[3] = {"bytes": b"no image", "path": "three.png"}
    images[7]["bytes"] = images[7]["bytes"][:60]
    labels = [i % 4 for i in range(12)]
    return write(tmp_path / "data", images, label=labels, text=[f"number {i}" for i in range(12)])


@pytest.mark.parametrize("way", ["memory", "on access"])
def test_a_broken_image_is_named(way, broken):
    with pytest.raises(ValueError, match=r"image 3 \(three.png\) cannot be read .*skip_broken"):
        load_images(broken, **WAYS[way]).dataset.fetch([3])


def test_broken_images_are_left_out_when_asked(broken):
    rest = [i for i in range(12) if i not in (3, 7)]
    with pytest.warns(UserWarning, match="2 of 12 images cannot be read: left out") as caught:
        data = load_images(broken, skip_broken=True, caption_column="text")
    assert len(caught) == 1 and data.skipped == 2 and data.length == 10
    whole = {"image": data.images, "label": data.labels, "caption": data.captions}
    assert numbers(whole) == rest
    assert sorted(sum(map(numbers, data.loader(5)), [])) == rest


def test_batches_lack_the_broken_images_that_they_come_upon(broken, tmp_path):
    data = load_images(broken, skip_broken=True, caption_column="text", memory_limit=0)
    with pytest.warns(UserWarning, match="2 of 12 images cannot be read"):
        (batch,) = data.loader(12)
    assert sorted(numbers(batch)) == [i for i in range(12) if i not in (3, 7)]
    with pytest.raises(ValueError, match=r"none of the images \[3, 7\] can be read"):
        data.dataset.__getitems__([3, 7])

    named = {"label": datasets.ClassLabel(names=list(CLASSES))}
    table = datasets.load_dataset(broken, split="train").cast_column("label", named["label"])
    shutil.rmtree(broken)
    Path(broken).mkdir()
    table.to_parquet(Path(broken, "train.parquet"))
    stream = load_images(broken, skip_broken=True, caption_column="text", streaming=True)
    with pytest.warns(UserWarning, match="2 of 12 images cannot be read"):
        (batch,) = stream.loader(12)
    assert sorted(numbers(batch)) == [i for i in range(12) if i not in (3, 7)]


def test_a_lost_connection_is_not_a_broken_image(broken, monkeypatch):
    def lose(self, value):
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets.Image, "decode_example", lose)
    with pytest.raises(ValueError, match=r"image 0 cannot be read \(gone\)"):
        load_images(broken, skip_broken=True)


def test_the_first_image_may_be_broken_but_not_all(tmp_path):
    nothing = {"bytes": b"", "path": None}
    source = write(tmp_path / "some", [nothing, picture(1)])
    with pytest.warns(UserWarning, match="1 of 2 images"):
        data = load_images(source, label_column=None, skip_broken=True)
    assert data.images[:, 0, 0, 0].tolist() == [1]
    source = write(tmp_path / "none", [nothing, nothing])
    with pytest.raises(ValueError, match="none of the images can be read: choose another"):
        load_images(source, label_column=None, skip_broken=True)


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
