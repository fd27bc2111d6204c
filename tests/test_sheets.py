"""Pictures of samples: every pixel where it belongs, with gaps, titles and names."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.training.pictures import column_names, sample_grid, sample_parts, states
from fm_diffusers.training.sheets import GAP, LEGIBLE, contact_sheet


def cut(sheet, size):
    """Return the pictures of a sheet of black, white and grey: rows of arrays, found by the gaps.

    `size` is that of a picture in the sheet, and the pictures have no white column or row.
    """
    pixels = np.array(sheet)
    cells = []
    top = 0
    while top + size <= len(pixels):
        row = [
            pixels[top : top + size, GAP + i * (size + GAP) :][:, :size]
            for i in range((pixels.shape[1] - GAP) // (size + GAP))
        ]
        if all(dense(cell) for cell in row):
            cells.append(row)
            top += size
        else:
            top += 1
    return cells


def dense(cell):
    """Return whether no line of a cell is white, as gaps and the space of titles are."""
    white = (cell == 255).all(-1)
    return not white.all(0).any() and not white.all(1).any()


def noise(count, size, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 200, (count, size, size, channels))
    return [Image.fromarray(p.astype(np.uint8).squeeze()) for p in pixels]


@pytest.mark.parametrize("size, factor", [(8, 7), (28, 2), (32, 2), (60, 1)])
def test_every_pixel_is_there_larger_by_a_whole_number(size, factor):
    pictures = noise(12, size)
    parts = {"ODE, 20 steps": pictures[:6], "SDE, 50 steps": pictures[6:]}
    rows = cut(contact_sheet(parts, ["zero", "one", "two"]), factor * size)
    assert len(rows) == 4 and factor * size >= LEGIBLE
    for i, picture in enumerate(pictures):
        expected = np.array(picture).repeat(factor, 0).repeat(factor, 1)
        assert np.array_equal(rows[i // 3][i % 3], expected)


def test_titles_and_names_are_written_where_they_belong():
    pictures = [Image.new("L", (56, 56)) for _ in range(4)]
    plain = np.array(contact_sheet({"": pictures}, ["", ""]))
    assert plain.shape == (2 * 60 + GAP, 2 * 60 + GAP, 3)
    named = np.array(contact_sheet({"": pictures}, ["", "seven"]))
    strip = named[: len(named) - len(plain) + GAP].min(-1)
    assert np.array_equal(named[-len(plain) + GAP :], plain[GAP:])
    assert strip[:, :64].min() == 255 and strip[:, 64:].min() < 50  # above its column alone
    titled = np.array(contact_sheet({"a title": pictures[:2], "": pictures[2:]}, ["", ""]))
    assert titled[: len(titled) - len(plain) + GAP].min() < 50


def test_long_names_take_several_lines_and_stay_above_their_columns():
    black = [Image.new("L", (56, 56))]
    heights = []
    for name in ("cat", "automobile", "smiling face with heart-eyes"):
        sheet = np.array(contact_sheet({"": 3 * black}, ["", name, ""]))
        strip = sheet[:-60].min(-1)
        heights.append(len(strip))
        assert strip[:, :62].min() == 255 == strip[:, 126:].min() and strip.min() < 50
    assert heights[0] == heights[1] < heights[2]  # the names of CIFAR's classes fit in a line


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0))
    assert np.array(contact_sheet({"": [clear]}, [""])).min() == 255


@pytest.mark.parametrize("count", [0, 3])
def test_pictures_that_are_no_whole_rows_are_refused(count):
    with pytest.raises(ValueError, match=f"'ODE' has {count} pictures.* rows of 2"):
        contact_sheet({"ODE": noise(count, 8)}, ["a", "b"])


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    widths = {"block_out_channels": [8], "norm_num_groups": 4, "num_class_embeds": 11}
    unet = UNet2DModel(8, 1, 1, **widths, **blocks)
    names = {3: "three", 7: "seven"}
    return FlowMatchingPipeline(unet, GaussianFlowScheduler(), null_label=10, id2label=names)


def test_columns_have_the_names_of_what_is_asked_for():
    assert column_names({"class_labels": [3, "seven", 4]}, {3: "three"}) == ["three", "seven", "4"]
    assert column_names({"class_labels": [1, 0]}, None) == ["1", "0"]
    assert column_names({"prompt": ["a cat", ""]}, None) == ["a cat", ""]
    assert column_names({"batch_size": 3}, None) == ["", "", ""]


def test_samples_of_both_processes_are_those_of_the_pipeline(pipe):
    configured = pipe.scheduler
    asked = {"class_labels": [3, 7]}
    parts = sample_parts(pipe, asked, rows=3, ode_steps=1, sde_steps=2, seed=5)
    assert [*parts] == ["ODE, 1 step", "SDE (memoryless), 2 steps"]
    assert pipe.scheduler is configured
    sheet = sample_grid(pipe, asked, 3, ode_steps=1, sde_steps=2, seed=5)
    assert sheet.tobytes() == contact_sheet(parts, ["three", "seven"]).tobytes()
    for diffusion, steps, images in zip((None, "memoryless"), (1, 2), parts.values(), strict=True):
        pipe.scheduler = GaussianFlowScheduler.from_config(configured.config, diffusion=diffusion)
        generator = torch.Generator().manual_seed(5)
        drawn = pipe([3, 7] * 3, num_inference_steps=steps, generator=generator).images
        assert [image.tobytes() for image in images] == [image.tobytes() for image in drawn]
    pipe.scheduler = configured
    assert [*sample_parts(pipe, asked, stochastic=False, ode_steps=2)] == ["ODE, 2 steps"]


def test_states_begin_with_the_noise_and_end_with_the_samples(pipe):
    pipe.scheduler = GaussianFlowScheduler.from_config(pipe.scheduler.config, diffusion="constant")
    seen = states(pipe, [3, 7], steps=4, seed=2)
    latents = pipe.prepare_latents(2, torch.Generator().manual_seed(2), None)
    start = (latents.clamp(-1, 1) / 2 + 0.5).mul(255).round().byte()
    assert len(seen) == 5 and all(len(images) == 2 for images in seen)
    assert np.array_equal(np.array(seen[0][1]), start[1, 0])
    generator = torch.Generator().manual_seed(3)
    done = pipe([3, 7], latents=latents, num_inference_steps=4, generator=generator).images
    assert np.array_equal(np.array(seen[-1][0]), np.array(done[0]))
