"""Exact oracles that the tests share."""

import math
from functools import cache

import numpy as np
import torch

from fm_diffusers.diffusions import DIFFUSIONS
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.predictions import _row
from fm_diffusers.solvers import SOLVERS, EulerMaruyama, integrate, memory_size

STD = 0.5
#: Data N(0, 0.5^2), one component in one dimension.
GAUSSIAN = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), STD)

#: Diffusions with a rate sigma_t, and those that say what a whole step does. The K of two of these
#: does not shrink with the step: they are steps of no SDE.
RATES = [name for name, diffusion in DIFFUSIONS.items() if diffusion.profile is not None]
STEPS = [name for name in DIFFUSIONS if name not in RATES]
NO_SDES = ["cps", "refresh"]


def takes(solver, diffusion):
    """Whether a solver takes a diffusion: those of the SDE itself need a rate."""
    return diffusion not in STEPS or solver not in ("euler_maruyama", "stochastic_heun")


def is_tame(solver):
    """Whether the drift that a solver follows is finite at pure noise without a rule for it."""
    if not solver.exists(0.0):
        return False
    of_sde = isinstance(solver, EulerMaruyama) and solver.noisy
    return not of_sde or bool(solver.diffusion.squared(solver.path, 0.0).isfinite())


def mixture(seed=0, components=4, dim=3):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    stds = 0.2 + torch.rand(components, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, stds, 1 + torch.rand(components, generator=generator))


def marginal_std(path, t):
    c = path(t)
    return (c.alpha**2 * STD**2 + c.beta**2).sqrt()


def gaussian_std_by_sources(solver, times):
    """Return the exact standard deviation of what `solver` makes of Gaussian data.

    The field is linear, so a sample is a linear function of the initial noise and of every noise
    drawn on the way. Carrying the coefficients of these independent sources as a batch gives the
    variance as the sum of their squares, without sampling.
    """
    draws = sum(step.std > 0 for step in solver.plan(times))
    x = torch.zeros(draws + 1, 1, dtype=torch.float64)
    x[0] = marginal_std(solver.path, times[0])
    sources = iter(torch.eye(draws + 1, dtype=torch.float64)[1:, :, None])
    field = GAUSSIAN.field(solver.path, solver.prediction)
    return integrate(solver, field, x, times, lambda t, s: next(sources)).norm().item()


def gaussian_std(solver, times):
    """Return the same in closed form, from `moments`: ten times faster."""
    return moments(solver, times, mean=0.0)[1]


def nonlinear_error(solver, times):
    """Return how far `solver` ends from the exact flow of 16 samples of a mixture."""
    found = integrate(solver, *_nonlinear(solver.path), times)
    return (found - _nonlinear_end(solver.path, *times[[0, -1]].tolist())).norm()


def _nonlinear(path):
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return mixture(seed=2, dim=2).field(path), x


@cache
def _nonlinear_end(path, start, end):
    times = torch.linspace(start, end, 401, dtype=torch.float64)  # to 1e-10
    return integrate(SOLVERS["rk4"](path), *_nonlinear(path), times)


def slope(errors):
    """Return the order of convergence from errors at step sizes that halve."""
    errors = torch.tensor(errors, dtype=torch.float64)
    return torch.log2(errors[:-1] / errors[1:])[-1].item()


def moments(solver, times, mean=0.7, std=STD):
    """Return the exact mean and standard deviation of what `solver` makes of data N(mean, std^2).

    The field is affine, so the joint mean and covariance of the sample and the slopes that are
    remembered go from step to step in closed form.
    """
    plan, net = solver.plan(times), solver.model_path or solver.path
    t = torch.tensor([step.t for step in plan], dtype=torch.float64)
    own = solver.model_time(t)
    c, (a, b, w) = net(own), _row(net, solver.prediction, own)
    variance = c.alpha**2 * std**2 + c.beta**2
    # q = (a E[z|x] + b E[eps|x])/w at the sample's point on the path of the network
    gain = (a * c.alpha * std**2 + b * c.beta) / variance / w
    offset = (a * mean / w - gain * c.alpha * mean).tolist()
    gain = (gain * solver.rescaling(t)).tolist()
    size = memory_size(plan) + 3
    first = solver.path(torch.tensor(plan[0].t, dtype=torch.float64))
    centre, spread = np.zeros(size), np.zeros((size, size))
    centre[0] = first.alpha * mean
    spread[0, 0] = first.alpha**2 * std**2 + first.beta**2
    for past, step in enumerate(plan):
        moved, pushed = np.eye(size, k=-1), np.zeros(size)
        moved[1], pushed[1] = 0, step.slope[1] * offset[past]
        moved[1, 0] = step.slope[0] + step.slope[1] * gain[past]
        row = np.zeros(size)
        row[: len(step.row(past))] = step.row(past)
        moved[0] = row[1:] @ moved[1:]
        moved[0, 0] += row[0]
        pushed[0] = row[1:] @ pushed[1:]
        centre, spread = moved @ centre + pushed, moved @ spread @ moved.T
        spread[0, 0] += step.std**2
    return centre[0], math.sqrt(spread[0, 0])
