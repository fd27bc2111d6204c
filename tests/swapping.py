"""A network and a sampling loop that know nothing of schedulers."""

import torch

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(48, 48, generator=torch.Generator().manual_seed(1)) / 8


def network(x, timestep):
    output = torch.tanh(x.reshape(-1, 48) @ WEIGHT).reshape(x.shape)
    return output * (1 + torch.tanh(torch.as_tensor(timestep).float() / 1000))


def timeless(x, timestep):
    return network(x, 0.0)


def sample(scheduler, net=network, x=X, seed=None, **grid):
    """Sample as a diffusers pipeline does."""
    scheduler.set_timesteps(**grid)
    noise = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    scaled = hasattr(scheduler, "scale_model_input")
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t) if scaled else x, t)
        x = scheduler.step(output, t, x, return_dict=False, **noise)[0]
    return x


def assert_same(ours, theirs, rtol=1e-5, **kwargs):
    x, y = sample(ours, **kwargs), sample(theirs, **kwargs)
    assert (x - y).norm() < rtol * y.norm(), kwargs
