"""Noise and velocities of the training, by the timesteps of `GaussianFlowScheduler`."""

import pytest
import torch

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.paths import PATHS


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)


TIMESTEP_BATCHES = [
    torch.tensor([1, 250, 600, 999]),
    torch.tensor([0, 250, 600, 1000], dtype=torch.int32),
    torch.tensor([0.5, 250.25, 600.0, 999.5]),
    torch.tensor([250.25] * 4, dtype=torch.float64),
    torch.tensor([250]),
    torch.tensor([600.5]),
    torch.tensor(250),
]


@pytest.mark.parametrize("timesteps", TIMESTEP_BATCHES, ids=repr)
@pytest.mark.parametrize("path", PATHS)
def test_noise_is_added_by_value_of_the_timestep_in_every_situation(path, timesteps, pair):
    (z, eps), scheduler = pair, GaussianFlowScheduler(path=path)
    expected, velocity = [], []
    for i, timestep in enumerate(timesteps.double().expand(4)):
        alpha, beta = scheduler.path(1 - timestep / 1000)[:2]
        expected.append(alpha * z[i] + beta * eps[i])
        velocity.append(alpha * eps[i] - beta * z[i])
    expected, velocity = torch.stack(expected), torch.stack(velocity)

    def check():
        for noisy in (
            scheduler.add_noise(z, eps, timesteps),
            scheduler.add_noise(original_samples=z, noise=eps, timesteps=timesteps),
            scheduler.scale_noise(z, timesteps, eps),
            scheduler.scale_noise(sample=z, timestep=timesteps, noise=eps),
        ):
            torch.testing.assert_close(noisy, expected, rtol=1e-10, atol=1e-10)
        found = scheduler.get_velocity(sample=z, noise=eps, timesteps=timesteps)
        torch.testing.assert_close(found, velocity, rtol=1e-10, atol=1e-10)

    check()  # in training, before there is a grid
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    check()  # at the start of image-to-image
    scheduler.step(z, scheduler.timesteps[2], z)
    check()  # in the loop of inpainting
    assert scheduler.step_index == 3


def test_noise_is_added_in_the_dtype_of_the_samples(pair):
    z, eps = pair.to(torch.bfloat16)
    scheduler = GaussianFlowScheduler()
    timesteps = torch.tensor([1, 250, 600, 999])
    noisy = scheduler.add_noise(z, eps, timesteps)
    exact = scheduler.add_noise(z.float(), eps.float(), timesteps)
    assert noisy.dtype == torch.bfloat16
    torch.testing.assert_close(noisy.float(), exact, rtol=2e-2, atol=2e-2)
