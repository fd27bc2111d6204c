"""Latents: samples are codes of an autoencoder, and images are what it makes of them."""

import pytest
import torch
from diffusers import AutoencoderKL, LDMPipeline
from test_pipeline import CLASSES, STEPS, draw, generators, make_unet
from tiny_networks import vae

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler

SCALES = {
    "scaled": {"scaling_factor": 0.4},
    "shifted": {"scaling_factor": 1.7, "shift_factor": 0.3},
}


def make_pipe(autoencoder, classes=CLASSES, **config):
    pipe = FlowMatchingPipeline(
        make_unet(classes and classes + 1, channels=4),
        GaussianFlowScheduler(**config),
        null_label=classes,
        vae=autoencoder.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(vae(**SCALES["shifted"]))


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_decoding_inverts_the_scaling_of_codes(scales):
    pipe = make_pipe(vae(**scales))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = pipe.vae.encode(images).latent_dist.mean
        expected = pipe.vae.decode(codes).sample
        scaled = (codes - scales.get("shift_factor", 0)) * scales["scaling_factor"]
        torch.testing.assert_close(pipe.decode_latents(scaled), expected, rtol=1e-4, atol=1e-5)


def test_output_types_are_one_sample_decoded_or_not(pipe):
    asked = {"class_labels": [0, 1], "num_inference_steps": STEPS, "guidance_scale": 2.0}
    latent, pt, pil = (
        pipe(**asked, output_type=output_type, generator=generators(0, 1)).images
        for output_type in ("latent", "pt", "pil")
    )
    plain = FlowMatchingPipeline(pipe.unet, pipe.scheduler, CLASSES)
    plain.set_progress_bar_config(disable=True)
    expected = draw(plain, [0, 1], guidance_scale=2.0, generator=generators(0, 1))
    assert torch.equal(latent, expected)  # the flow knows nothing of the autoencoder
    with torch.no_grad():
        decoded = pipe.vae.decode(latent / 1.7 + 0.3).sample
    torch.testing.assert_close(pt, (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert [image.size for image in pil] == [(16, 16)] * 2


def test_the_pipeline_is_diffusers_latent_pipeline_over_the_same_components():
    ours = make_pipe(vae(scaling_factor=0.4), classes=None)
    theirs = LDMPipeline(ours.vae, ours.unet, ours.scheduler)
    theirs.set_progress_bar_config(disable=True)
    asked = {"batch_size": 2, "num_inference_steps": STEPS}
    found = ours(**asked, output_type="np", generator=torch.Generator().manual_seed(0)).images
    expected = theirs(**asked, output_type="np", generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_height_and_width_are_pixels_and_default_to_the_networks_sample_size(pipe):
    sizes = {(): (8, 8), (("height", 32),): (16, 8), (("height", 8), ("width", 24)): (4, 12)}
    for asked, size in sizes.items():
        assert draw(pipe, 0, **dict(asked)).shape == (1, 4, *size)
    image = pipe(0, height=8, width=24, num_inference_steps=1, output_type="pt").images
    assert image.shape == (1, 3, 8, 24)
    assert pipe.vae_scale_factor == 2


def test_a_vae_keeps_its_precision_and_samples_theirs():
    pipe = make_pipe(vae())
    exact = pipe(0, num_inference_steps=STEPS, output_type="pt", generator=generators(0)).images
    pipe.vae.to(torch.bfloat16)
    low = pipe(0, num_inference_steps=STEPS, output_type="pt", generator=generators(0)).images
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0.1, atol=0.1)


def test_saved_pipelines_draw_the_same_images(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = FlowMatchingPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert type(again.vae) is AutoencoderKL and again.text_encoder is None
    asked = {"class_labels": [0, 1], "num_inference_steps": STEPS, "output_type": "pt"}
    found, expected = (p(**asked, generator=generators(0, 1)).images for p in (again, pipe))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_field_that_is_calibrated_is_that_of_the_codes(pipe):
    field, noise = pipe.calibration_field(4, torch.Generator().manual_seed(0))
    assert noise.shape == (4, 4, 8, 8)
    part = slice(1, 3)
    with torch.no_grad():
        expected = pipe.unet(noise[part], 400.0, torch.tensor([1, 2])).sample
        found = field(noise[part], torch.tensor(0.6), part)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_cannot_be_drawn_are_refused(pipe):
    with pytest.raises(ValueError, match="width must be a multiple of 2 pixels, got 9"):
        draw(pipe, 0, width=9)
    with pytest.raises(ValueError, match=r"must have the shape \(1, 4, 16, 8\), got \(1, 4, 8, 8"):
        draw(pipe, 0, height=32, latents=torch.zeros(1, 4, 8, 8))


def test_offloaded_components_draw_the_same_images(pipe):
    asked = {"class_labels": [0, 1], "num_inference_steps": STEPS, "output_type": "pt"}
    expected = pipe(**asked, generator=generators(0, 1)).images
    other = make_pipe(vae(**SCALES["shifted"]))
    other.vae.load_state_dict(pipe.vae.state_dict())
    other.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert torch.equal(other(**asked, generator=generators(0, 1)).images, expected)
