"""Images of every mode and size, and broken ones, as training reads them."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import CLASSES, WAYS, numbers, picture, png, write
from PIL import Image

from fm_diffusers.training.data import load_images
from fm_diffusers.training.decoding import convert

datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")


pytestmark = pytest.mark.usefixtures("quick_datasets")


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
