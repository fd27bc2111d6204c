"""A sampling loop over an exact field, as a diffusers pipeline runs it and by `integrate`."""

import torch
from oracles import mixture

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.fields import from_model
from fm_diffusers.solvers import SOLVERS, integrate

DATA = mixture(seed=3)
#: Where the intervals start, strictly inside: every coefficient and conversion exists there.
STARTS = torch.tensor([950.0, 700.0, 410.0, 90.0], dtype=torch.float64)
TIMES = torch.cat([1 - STARTS / 1000, torch.ones(1, dtype=torch.float64)])


def model_of(scheduler, data=DATA):
    """Return the exact field as a network, called as `model(x, timestep)`."""
    field = data.field(scheduler.path, scheduler.config.prediction_type)
    return lambda x, timestep: field(x, scheduler.to_time(timestep.double()))


def start(scheduler, batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    return scheduler.init_noise_sigma * noise


def told(scheduler, timestep, **options):
    """Return what a step says that its network was told, which of a flow map's is more."""
    maps = scheduler.solver.two_times
    return {"advance": scheduler.advance(timestep, **options)} if maps else {}


def loop(scheduler, x, timesteps=None, generator=None, model=None):
    """Sample as a diffusers pipeline does."""
    model = model or model_of(scheduler)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        output = model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, generator=generator, **told(scheduler, t)).prev_sample
    return x


def reference(scheduler, x, times, generator=None):
    """Return what `integrate` makes of the same field, asked at the same float32 timesteps."""
    c = scheduler.config
    solver = SOLVERS[c.solver](
        path=scheduler.path,
        prediction=c.prediction_type,
        diffusion=scheduler.diffusion,
        **(c.solver_kwargs or {}),
    )

    def noise(t, s):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return integrate(solver, from_model(model_of(scheduler)), x, times, noise)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def brownian(steps=6, **config):
    """Return a scheduler with its timesteps whose noise is read from Brownian paths."""
    scheduler = GaussianFlowScheduler(**{"diffusion": "memoryless", "noise": "brownian"} | config)
    scheduler.set_timesteps(steps)
    return scheduler
