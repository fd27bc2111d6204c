"""Log-likelihoods on the pipeline against closed forms, with errors that cover them."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from test_editing import KINDS, as_tensor, latent_pipe, pictures
from test_pipeline import make_pipe
from test_pipeline_text import make_text_pipe

from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.predictions import target


class Gaussian(torch.nn.Module):
    """Predicts the field of data N(m, S) of 2 x 2 pixels that depend on each other."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, scheduler, seed=0):
        super().__init__()
        self.scheduler = scheduler
        self.config = FrozenDict(in_channels=1, out_channels=1, sample_size=2)
        generator = torch.Generator().manual_seed(seed)
        factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.cov = factor @ factor.T / 30 + 0.02 * torch.eye(4)
        self.mean = 0.2 * torch.randn(4, generator=generator, dtype=torch.float64)

    def forward(self, sample, timestep, condition=None, return_dict=True):
        clock, kind = self.scheduler.clock, self.scheduler.config.prediction_type
        t = clock.convention.time(clock.path, clock.num_train_timesteps, timestep[0].double())
        alpha, beta = clock.path(t)[:2]
        x = sample.double().flatten(1)
        spread = alpha**2 * self.cov + beta**2 * torch.eye(4)
        surprise = torch.linalg.solve(spread, x - alpha * self.mean, left=False)
        z, eps = self.mean + alpha * surprise @ self.cov, beta * surprise
        return (target(clock.path, kind, z, eps, t).reshape(sample.shape),)

    def log_prob(self, pixels):
        law = torch.distributions.MultivariateNormal(self.mean, self.cov)
        return law.log_prob((2 * pixels - 1).double().flatten(1))


def gaussian_pipe(**config):
    scheduler = GaussianFlowScheduler(**config)
    pipe = FlowMatchingPipeline(Gaussian(scheduler), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(count, seed=0):
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [None, 40], ids=["adaptive", "grid"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["velocity", "flow_prediction", "v_prediction"])
def test_the_density_of_a_gaussian_is_the_closed_form(path, prediction, steps):
    pipe, x = gaussian_pipe(path=path, prediction_type=prediction), images(5)
    found = pipe.log_likelihood(x, num_probes=None, num_inference_steps=steps)
    error = (found.log_likelihood - pipe.unet.log_prob(x)).abs() / 4
    assert error.max() < 1e-4  # nats per dimension
    expected = -found.log_likelihood / (4 * math.log(2)) + math.log2(127.5)
    torch.testing.assert_close(found.bits_per_dimension, expected)


@pytest.mark.parametrize("config", [{"sampling_path": "cosine"}, {"diffusion": "memoryless"}])
def test_it_is_a_property_of_the_model_not_of_the_sampler(config):
    x = images(3)
    expected = gaussian_pipe().log_likelihood(x, num_probes=None).log_likelihood
    found = gaussian_pipe(**config).log_likelihood(x, num_probes=None).log_likelihood
    torch.testing.assert_close(found, expected)


def test_two_standard_errors_cover_the_truth():
    pipe, x, generator = gaussian_pipe(), images(1), torch.Generator().manual_seed(0)
    many = x.expand(200, 1, 2, 2)
    found = pipe.log_likelihood(many, num_inference_steps=30, generator=generator)
    covered = (found.log_likelihood - pipe.unet.log_prob(x)).abs() <= 2 * found.standard_error
    assert covered.double().mean() >= 0.9
    few = pipe.log_likelihood(
        many, num_probes=4, num_inference_steps=30, generator=generator
    ).standard_error.square()
    ratio = few.mean() / found.standard_error.square().mean()
    assert 3 < ratio < 5.5  # of 16 and 4 random vectors: 4


def test_the_tolerance_is_part_of_the_error():
    found = gaussian_pipe().log_likelihood(images(3), num_probes=None, tolerance=1e-4)
    torch.testing.assert_close(found.standard_error, torch.full((3,), 4e-4, dtype=torch.float64))


def test_bytes_are_measured_at_points_of_their_cells():
    """The mean over points of a cell, by brute force."""
    pipe = gaussian_pipe()
    bytes_ = np.random.default_rng(0).integers(60, 200, (2, 2), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    picture = Image.fromarray(bytes_)
    found = pipe.log_likelihood(
        picture, num_probes=400, num_inference_steps=20, generator=generator
    )
    shift = torch.rand(20000, 1, 2, 2, generator=generator) - 0.5
    points = (torch.from_numpy(bytes_)[None, None] + shift) / 255
    expected = pipe.unet.log_prob(points).mean()
    assert (found.log_likelihood[0] - expected).abs() < 3 * found.standard_error[0]
    assert 0 < found.standard_error[0] < 0.2
    alone = pipe.log_likelihood(picture, num_probes=1, num_inference_steps=20, generator=generator)
    assert alone.standard_error.isnan().all()  # one point does not tell


def test_the_noise_that_it_finds_is_the_inverse():
    pipe, x = gaussian_pipe(), images(3)
    found = pipe.log_likelihood(x, num_probes=None).latents
    torch.testing.assert_close(
        found.float(), pipe.invert(x, 200).latents.float(), rtol=1e-3, atol=1e-3
    )


def test_conditions_are_those_of_the_images():
    pipe, x = make_pipe(), as_tensor(pictures(1, 8))
    asked = {"num_probes": 4, "num_inference_steps": 2}
    both, one, other = (
        pipe.log_likelihood(
            image, class_labels=label, generator=torch.Generator().manual_seed(0), **asked
        ).log_likelihood
        for image, label in ((x, [0, 2]), (x, 0), (x, [2]))
    )
    torch.testing.assert_close(both[0], one[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(both[1], other[1], rtol=1e-5, atol=1e-3)
    assert not torch.allclose(one, other)


def test_every_pipeline_measures_its_images():
    for make, channels, side, asked in KINDS.values():
        pipe = make(diffusion="memoryless")
        found = pipe.log_likelihood(
            as_tensor(pictures(channels, side)), num_probes=2, num_inference_steps=1, **asked
        )
        assert found.log_likelihood.shape == found.standard_error.shape == (2,)
        assert found.log_likelihood.isfinite().all()
        assert (found.bits_per_dimension is None) == (pipe.vae is not None)


def test_what_has_no_density_is_refused():
    image = torch.rand(2, 1, 8, 8)
    theirs = FlowMatchingPipeline(make_pipe().unet, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no density"):
        theirs.log_likelihood(image, class_labels=0)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        make_pipe().log_likelihood(image, num_probes=0, class_labels=0)
    with pytest.raises(ValueError, match="num_inference_steps must be"):
        make_pipe().log_likelihood(image, num_inference_steps=0, class_labels=0)
    with pytest.raises(ValueError, match="must have 3 channels"):
        latent_pipe().log_likelihood(torch.rand(1, 4, 16, 16), class_labels=0)
    with pytest.raises(ValueError, match="one for each of the 2 images, got 3"):
        make_text_pipe().log_likelihood(torch.rand(2, 4, 8, 8), prompt=["a", "b", "c"])


def test_a_guider_without_steps_is_a_scale():
    pipe, x = make_pipe(), as_tensor(pictures(1, 8))
    asked = {"class_labels": [0, 2], "num_probes": 2, "num_inference_steps": 1}

    def measured(**guidance):
        generator = torch.Generator().manual_seed(0)
        return pipe.log_likelihood(x, generator=generator, **asked, **guidance).log_likelihood

    expected = measured(guidance_scale=3.0)
    for original, scale in ((False, 3.0), (True, 2.0)):
        guider = ClassifierFreeGuidance(scale, use_original_formulation=original)
        torch.testing.assert_close(measured(guider=guider), expected)
    for guider in (ClassifierFreeGuidance(3.0, stop=0.5), AdaptiveProjectedGuidance(3.0)):
        with pytest.raises(ValueError, match="a log-likelihood has no steps, in which"):
            measured(guider=guider)
        pipe.guider = guider
        with pytest.raises(ValueError, match="a calibration has no steps, in which"):
            pipe.calibration_field(2)
        pipe.guider = None
