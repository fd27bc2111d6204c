"""Runs of a scheduler on exact fields: the network is the conditional mean of known data."""

import math
import warnings

import torch

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.fields import GaussianMixture
from fm_diffusers.predictions import CANONICAL, conversion, target

#: Words of which every refusal and every warning has one: what to do instead.
WAYS_OUT = ("stay", "keep", "take", "give", "set", "leave", "pass", "choose", "must", "make")
WAYS_OUT += ("write", "call", "say", "install", "begin", "ask", "did you mean")
#: What torch says once in a process, of what it was given; no word of ours.
OF_TORCH = "Creating a tensor from a list of numpy"


def mixture():
    """Two components in one dimension."""
    means = torch.tensor([[-0.8], [0.9]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.35, 0.5]), torch.tensor([0.4, 0.6]))


def distribution(data, path, t, x):
    """Return the distribution function of a mixture's marginal at time `t`, in one dimension."""
    c = path(t)
    std = torch.sqrt(c.alpha**2 * data.stds**2 + c.beta**2)
    return (data.weights * torch.special.ndtr((x - c.alpha * data.means.T) / std)).sum(1)


class Gaussian:
    """Data N(mean, std^2) in any shape, with fields that no large or small number breaks."""

    def __init__(self, mean=0.7, std=0.5):
        self.mean, self.std = mean, std

    def spread(self, path, t):
        """Return the factor of the mean and the deviation of the marginal."""
        c = path(t)
        return c.alpha * self.mean, torch.hypot(c.alpha * self.std, c.beta)

    def field(self, path, prediction):
        def field(x, t):
            c, (centre, size) = path(t), self.spread(path, t)
            r = (x - centre) / size
            z = self.mean + self.std * (c.alpha * self.std / size) * r
            return target(path, prediction, z, c.beta / size * r, t)

        return field

    def flow_map(self, path, prediction):
        """Return the average slope from one time to another on the clock, as a prediction."""

        def field(x, t, advance):
            c = path(t)
            u = c.alpha / (c.alpha + c.beta)
            v = (u + advance).clamp(0, 1)
            now, end = (torch.hypot(k * self.std, 1 - k) for k in (u, v))
            y = x / (c.alpha + c.beta)
            # (end - now)/(v - u), which a step of no length has too
            growth = ((u + v) * (1 + self.std**2) - 2) / (now + end)
            slope = self.mean + growth / now * (y - u * self.mean)
            c_x, c_q = conversion(path, prediction, CANONICAL, t)
            return (slope - c_x * x) / c_q

        return field


def network(scheduler, data):
    """Return the exact network of a scheduler, asked as pipelines ask it."""
    path, prediction = scheduler.path, scheduler.config.prediction_type
    clock, field = scheduler.clock, data.field(path, prediction)
    mapped = data.flow_map(path, prediction) if scheduler.is_flow_map else None

    def ask(x, fed):
        n = clock.num_train_timesteps
        t = clock.convention.time(path, n, fed.double().cpu()).clamp(0, 1)
        own = scheduler.scale_model_input(x.double(), fed)
        if mapped is None:
            return field(own, t).to(x.dtype), {}
        advance = scheduler.advance(fed)
        return mapped(own, t, advance.double()).to(x.dtype), {"advance": advance}

    return ask


def first_sample(scheduler, data, noise):
    """Return samples of Gaussian data at the first timestep."""
    t = scheduler.to_time(scheduler.timesteps[:1].double())[0].clamp(0, 1)
    centre, size = data.spread(scheduler.sampling_path, t)
    return centre + size * noise


def loop(scheduler, data, x, generator=None, **kwargs):
    """Yield the samples of a loop; the model's output and the timestep stand beside them."""
    ask = network(scheduler, data)
    for t in scheduler.timesteps:
        q, told = ask(x, t)
        out = scheduler.step(q, t, x, generator=generator, **told, **kwargs)
        yield t, x, q, out
        x = out.prev_sample


def refusal(make, *names):
    """Return what a call makes, or None where it refuses; only a `ValueError` may do so.

    What it says must tell a way out, and have one of the names in it.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made = make()
        except ValueError as error:
            made, text = None, str(error)
            assert any(word in text for word in WAYS_OUT), f"no way out: {text}"
            assert not names or any(name in text for name in names), f"no name {names}: {text}"
    for one in said:
        if str(one.message).startswith(OF_TORCH):
            continue
        assert issubclass(one.category, UserWarning | FutureWarning), one
        assert any(word in str(one.message) for word in WAYS_OUT), one.message
    return made


def scheduler_of(config, *names):
    """Return the scheduler of a configuration, or None where it is refused."""
    return refusal(lambda: GaussianFlowScheduler(**config), *names)


def planned(scheduler, *names, **arguments):
    """Whether a plan was made; see `refusal`."""

    def plan():
        scheduler.set_timesteps(**arguments)
        return True

    return bool(refusal(plan, *names))


def is_finite(x, largest=math.inf):
    return bool(x.isfinite().all()) and x.abs().max().item() <= largest
