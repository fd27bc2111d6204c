"""From images back to noise: how well a run returns, and exactly where it is asked for."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from exact_network import exact_pipe, noise
from PIL import Image
from test_editing import KINDS, as_pil, as_tensor, pictures
from test_pipeline import make_pipe
from test_pipeline_text import make_text_pipe

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.pipelines.inversion import between, rms, solved

ODES = ["predictor_corrector", "euler", "ddim", "heun", "midpoint", "adams_bashforth", "unipc"]
STEPS = 4


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_latents_of_an_inversion_lead_back_within_its_error(kind):
    make, channels, side, asked = kind
    pipe, image = make(), as_tensor(pictures(channels, side))
    found = pipe.invert(image, STEPS, **asked)
    again = pipe(
        **asked,
        **({} if asked else {"batch_size": 2}),
        latents=found.latents,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    error = rms(again - pipe.canvas.encode(image))
    torch.testing.assert_close(error, found.round_trip_error, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("path", ["linear", "cosine", "variance_preserving"])
@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "sample", "v_prediction"])
def test_the_noise_of_a_gaussian_is_the_exact_one(path, prediction):
    """Data N(0, 0.3^2): along the ODE of the linear clock x = 0.3 y."""
    data = [GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), 0.3)] * 2
    pipe = exact_pipe(path, prediction, data)
    pipe.scheduler = GaussianFlowScheduler.from_config(
        pipe.scheduler.config, t_min=None, t_max=None
    )
    image = (0.3 * noise(2) / 2 + 0.5).clamp(0, 1)
    found = pipe.invert(image, 30, class_labels=0)
    pipe.scheduler.set_timesteps(30)
    start = pipe.scheduler.sampling_path(pipe.scheduler.to_time(pipe.scheduler.timesteps[0]))
    std = (start.alpha**2 * 0.09 + start.beta**2).sqrt()
    expected = (2 * image.float() - 1).double() / 0.3 * std
    torch.testing.assert_close(found.latents.double(), expected, rtol=5e-3, atol=5e-3)


def drawn(pipe):
    """Return images as the pipeline draws them, of which few lie outside of [0, 1]."""
    latents = noise(3, seed=5)
    asked = {"class_labels": [0, 1, 1], "latents": latents, "num_inference_steps": 40}
    return pipe(**asked, output_type="pt").images


@pytest.mark.parametrize(
    ("solver", "prediction"),
    [*((solver, "velocity") for solver in ODES), ("predictor_corrector", "sample")],
)
def test_an_exact_inverse_returns_to_rounding_whatever_the_solver(solver, prediction):
    pipe = exact_pipe("linear", prediction, solver=solver)
    image = drawn(pipe)
    loose = pipe.invert(image, 12, class_labels=[0, 1, 1])
    exact = pipe.invert(image, 12, tolerance=1e-6, class_labels=[0, 1, 1])
    assert exact.round_trip_error.max() <= 1e-6 < loose.round_trip_error.min()
    again = pipe(
        class_labels=[0, 1, 1], latents=exact.latents, num_inference_steps=12, output_type="latent"
    ).images
    assert rms(again - (2 * image.float() - 1)).max() <= 1.1e-6


def test_more_steps_return_better():
    image = drawn(exact_pipe())
    errors = [
        exact_pipe().invert(image, n, class_labels=[0, 1, 1]).round_trip_error.max()
        for n in (5, 20, 80)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize("guidance", [{}, {"negative_prompt": "dark"}])
def test_guided_images_are_inverted_by_the_same_words(guidance):
    pipe = make_text_pipe()
    asked = {"prompt": "seven", "guidance_scale": 1.5, **guidance}
    image = as_tensor(pictures(4, 8, 1))
    found = pipe.invert(image, 12, **asked)
    unguided = pipe.invert(image, 12, prompt="seven")
    assert (found.latents - unguided.latents).abs().max() > 1e-3
    again = pipe(
        **asked, latents=found.latents, num_inference_steps=12, output_type="latent"
    ).images
    torch.testing.assert_close(rms(again - (2 * image - 1)), found.round_trip_error)
    assert found.round_trip_error < 0.5


def test_a_sampling_path_is_inverted_on_it():
    pipe = exact_pipe(sampling_path="cosine")
    image = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert pipe.invert(image, 50, class_labels=[0, 1]).round_trip_error.max() < 1e-2


def test_the_pipeline_is_left_as_it_was():
    pipe = exact_pipe()
    pipe(class_labels=0, latents=noise(1), num_inference_steps=4)
    config = dict(pipe.scheduler.config)
    pipe.invert(torch.rand(1, 1, 2, 2), 6, class_labels=0)
    assert dict(pipe.scheduler.config) == config and pipe.scheduler.step_index in (None, 6)
    assert not pipe._calls


def test_a_map_that_cannot_be_inverted_says_so():
    with pytest.raises(ValueError, match="within tolerance=1e-06, got a root mean square of"):
        solved(torch.round, lambda x: x, torch.tensor([[0.3]]), 1e-6)


def test_what_cannot_be_inverted_is_refused():
    image = torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="diffusion='memoryless' draws noise at every step"):
        make_pipe(diffusion="memoryless").invert(image, 4, class_labels=0)
    pipe = make_pipe()
    with pytest.raises(ValueError, match="one for each of the 2 images, got 3"):
        pipe.invert(image, 4, class_labels=[0, 1, 2])
    with pytest.raises(ValueError, match="num_inference_steps must be"):
        pipe.invert(image, 0, class_labels=0)
    theirs = FlowMatchingPipeline(
        make_pipe("unconditional").unet, FlowMatchEulerDiscreteScheduler()
    )
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no inverse: take"):
        theirs.invert(torch.rand(1, 3, 8, 8), 4)


# --- the scheduler by itself ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", ODES)
def test_reversed_timesteps_are_stepped_by_the_same_loop(solver):
    data = GaussianMixture(torch.zeros(1, 3, dtype=torch.float64), 0.5)
    scheduler = GaussianFlowScheduler(solver=solver)
    field = data.field(scheduler.path)
    scheduler.set_timesteps(200)
    forth = scheduler.timesteps
    factor = scheduler.reverse_timesteps()
    x = start = 0.5 * torch.randn(
        4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = factor * x
    for t in scheduler.timesteps:
        x = scheduler.step(field(x, scheduler.to_time(t.double())), t, x).prev_sample
    torch.testing.assert_close(x, start / 0.5, rtol=2e-2, atol=2e-2)
    assert scheduler.timesteps[0] <= forth.min() and factor > 0.99
    with pytest.raises(ValueError, match="call set_timesteps before"):
        GaussianFlowScheduler().reverse_timesteps()


# --- between images ------------------------------------------------------------------------------


def test_points_between_noises_lie_on_a_great_circle():
    a, b = noise(2, seed=3)
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    points = between(a, b, shares)
    assert torch.equal(points[0], a) and torch.equal(points[-1], b)
    unit = b / b.norm() * a.norm()
    lengths = between(a, unit, shares).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, a.norm().expand(5))
    same = between(a, a, shares)
    torch.testing.assert_close(same, a.expand_as(same))
    middle = between(a, unit, shares)[2].flatten()
    torch.testing.assert_close(middle @ a.flatten(), middle @ unit.flatten())


def test_an_interpolation_begins_and_ends_with_its_images(kind):
    make, channels, side, asked = kind
    pipe, bytes_ = make(), pictures(channels, side)
    asked = {name: value[0] for name, value in asked.items()}
    found = pipe.interpolate(*as_pil(bytes_), 4, STEPS, output_type="pt", **asked).images
    assert len(found) == 4
    for x, image in zip(found[[0, -1]], as_tensor(bytes_), strict=True):
        inverted = pipe.invert(image, STEPS, **asked)
        again = pipe(
            **asked, latents=inverted.latents, num_inference_steps=STEPS, output_type="pt"
        ).images
        torch.testing.assert_close(x, again[0], rtol=1e-4, atol=1e-4)
    assert len({x.numpy().tobytes() for x in found}) == 4


def test_noises_are_joined_as_they_are():
    pipe = make_pipe()
    a, b = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pipe.interpolate(a, b[None], 3, STEPS, output_type="latent", class_labels=2).images
    ends = pipe(
        class_labels=[2, 2],
        latents=torch.stack([a, b]),
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    torch.testing.assert_close(found[[0, 2]], ends, rtol=1e-5, atol=1e-5)
    # noise between images of an SDE needs no inverse
    sde = make_pipe(diffusion="memoryless")
    assert len(sde.interpolate(a, b, 3, STEPS, class_labels=2).images) == 3


def test_what_cannot_be_interpolated_is_refused():
    pipe, image = make_pipe(), torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="num_images must be at least 2"):
        pipe.interpolate(image, image, 1, 4, class_labels=0)
    with pytest.raises(ValueError, match="one image or noise each, of one size"):
        pipe.interpolate(image, torch.randn(1, 4, 4), 3, 4, class_labels=0)
    with pytest.raises(ValueError, match="have one condition, got 2"):
        pipe.interpolate(torch.randn(1, 8, 8), torch.randn(1, 8, 8), 3, 4, class_labels=[0, 1])
    with pytest.raises(ValueError, match="must be a PIL picture"):
        pipe.interpolate("a", "b", 3, 4, class_labels=0)
    grey = [Image.fromarray(np.zeros((8, 8), np.uint8))] * 2
    with pytest.raises(ValueError, match="one image or noise each"):
        pipe.interpolate(grey, grey, 3, 4, class_labels=0)
