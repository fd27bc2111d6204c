"""The picture of the loss by time: its estimates, and the theorem that it shows."""

import importlib
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

for name in ("matplotlib", "sklearn", "datasets"):
    pytest.importorskip(name, reason=f"the picture needs {name}: install the extra `bench`")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "examples")
        patch.setenv("MPLBACKEND", "agg")
        yield importlib.import_module("plot_loss_by_time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(
        8, 1, 1, block_out_channels=[8], norm_num_groups=4, num_class_embeds=11, **blocks
    )
    folder = tmp_path_factory.mktemp("untrained")
    FlowMatchingPipeline(unet, GaussianFlowScheduler(), null_label=10).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(script, folder):
    return script.PlotArguments(
        str(folder), dataset_name="digits", num_times=4, num_batches=5, batch_size=16
    )


@pytest.fixture(scope="module")
def results(script, arguments):
    return script.main(arguments)


def test_score_matching_is_flow_matching_with_a_weight_gradients_and_all(results):
    """(alpha/D)^2 = t^2 on the linear path, at t = 1/8, 3/8, ..."""
    t = (torch.arange(4) + 0.5).double() / 4
    flow, score = results[0].values()
    torch.testing.assert_close(score.loss, t**2 * flow.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(score.variance, t**4 * flow.variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(score.moment, t**4 * flow.moment, rtol=1e-4, atol=0)


def test_losses_are_those_of_the_network_at_these_times(script, arguments, folder, results):
    unet, batches = (
        UNet2DModel.from_pretrained(folder, subfolder="unet"),
        script.draw_batches(arguments),
    )
    for i, t in enumerate((0.125, 0.375, 0.625, 0.875)):
        with torch.no_grad():
            errors = [
                unet(t * z + (1 - t) * eps, 1000 * (1 - t), label).sample - (z - eps)
                for z, eps, label in batches
            ]
        expected = torch.stack(errors).square().mean().double()
        torch.testing.assert_close(
            results[0]["flow_matching"].loss[i], expected, rtol=1e-4, atol=0
        )


def test_moments_of_one_sample_follow_from_those_of_batches(script):
    """Batches of 8 gradients ~ N(mean, 9 I) in 50 dimensions, of which the moments are known."""
    generator, mean = torch.Generator().manual_seed(0), torch.linspace(-1, 1, 50)
    gradients = mean + 3 / 8**0.5 * torch.randn(2000, 50, generator=generator)
    losses = tuple(torch.ones(2000))
    loss, variance, moment = script.moments(losses, tuple(gradients), batch_size=8)
    assert loss == 1
    assert variance.item() == pytest.approx(50 * 9, rel=0.02)
    assert moment.item() - variance.item() == pytest.approx(mean.square().sum().item(), rel=0.02)


def test_the_best_density_has_no_excess_and_uniform_times_a_known_one(script):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:]
    curve = script.Curve(t, t**2, t**2)  # a squared gradient of t^2: p* = 2t
    assert script.excess(curve, 2 * t, t) == pytest.approx(1, abs=1e-6)
    assert script.excess(curve, torch.ones_like(t), t) == pytest.approx(4 / 3, rel=1e-3)


def test_the_picture_shows_something_in_every_part_and_the_table_is_a_ratio(
    arguments, results, folder
):
    with Image.open(folder / "loss_by_time.png") as image:
        grey = image.convert("L")
    for panel in range(3):
        left, right = (round(grey.width * k / 3) for k in (panel, panel + 1))
        tones = grey.crop((left, 0, right, grey.height)).getcolors(256)
        assert len(tones) > 50
    assert list(results[1]) == arguments.weightings
    assert all(excess >= 1 for row in results[1].values() for excess in row.values())


def test_too_few_images_are_refused(script, arguments):
    arguments = script.PlotArguments(**vars(arguments) | {"num_batches": 1000})
    with pytest.raises(ValueError, match="has 112 batches of --batch_size 16, fewer than"):
        script.draw_batches(arguments)


def test_classes_of_the_data_are_none_of_a_network_without_classes(script, tmp_path):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    unet = UNet2DModel(8, 1, 1, block_out_channels=[8], norm_num_groups=4, **blocks)
    FlowMatchingPipeline(unet, GaussianFlowScheduler()).save_pretrained(tmp_path)
    sizes = {"num_times": 2, "num_batches": 2, "batch_size": 4}
    script.main(script.PlotArguments(str(tmp_path), dataset_name="digits", **sizes))
    assert (tmp_path / "loss_by_time.png").is_file()


def test_a_network_with_classes_is_not_asked_without(script, arguments):
    with pytest.raises(ValueError, match="takes classes: name their column by --label_column"):
        script.main(script.PlotArguments(**vars(arguments) | {"label_column": ""}))
