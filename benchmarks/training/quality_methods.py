"""What `quality` compares: losses of three libraries, and samplers of their networks."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from fm_diffusers import GaussianFlowScheduler
from fm_diffusers.couplings import couple
from fm_diffusers.objectives import prediction_loss, sample_times

FLOW, NOISE = GaussianFlowScheduler(), DDPMScheduler(clip_sample=False)
Loss = Callable[[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


# --- trainings: the loss of a network on data and labels; `drop` hides some labels ---------------


def ours(coupling: str) -> Loss:
    """Return the loss of `examples/train_mnist.py`."""

    def loss(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
        eps = couple(z, torch.randn_like(z), coupling, condition=label)
        t = sample_times(len(z), "low_discrepancy")
        x_t = FLOW.path.flow_map(z, eps, t)
        output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
        return prediction_loss(output, FLOW.path, z, eps, t).mean()

    return loss


def torchcfm(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return torchcfm's loss with independent noise."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    flow = ConditionalFlowMatcher(sigma=0.0)
    t, x_t, u_t = flow.sample_location_and_conditional_flow(torch.randn_like(z), z)
    output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
    return (output - u_t).square().mean()


def torchcfm_ot(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return torchcfm's loss with optimal transport, which draws pairs by numpy's generator."""
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

    flow = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    t, x_t, u_t, _, label = flow.guided_sample_location_and_conditional_flow(
        torch.randn_like(z), z, y1=label
    )
    output = network(x_t, FLOW.to_timestep(t), drop(label)).sample
    return (output - u_t).square().mean()


def ddpm(network: nn.Module, z: Tensor, label: Tensor, drop: Callable) -> Tensor:
    """Return the loss of diffusers' training scripts."""
    eps = torch.randn_like(z)
    timesteps = torch.randint(0, NOISE.config.num_train_timesteps, (len(z),))
    output = network(NOISE.add_noise(z, eps, timesteps), timesteps, drop(label)).sample
    return (output - eps).square().mean()


#: Trainings with the samplers of their networks; the first one is that of its users.
TRAININGS: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "ours": (ours("independent"), ("ours", "Euler")),
    "ours, OT in classes": (ours("optimal_transport"), ("ours", "Euler")),
    "torchcfm": (torchcfm, ("Euler", "midpoint", "ours")),
    "torchcfm, OT": (torchcfm_ot, ("Euler", "midpoint", "ours")),
    "DDPM": (ddpm, ("DDIM", "DPM-Solver++", "ours")),
}


# --- samplers: from noise and labels to images, in a number of evaluations -----------------------

Field = Callable[[Tensor, Tensor], Tensor]  # what the network says of samples at a timestep
Sampler = Callable[[Field, Tensor, int], Tensor]


def loop(scheduler: object, field: Field, x: Tensor, evaluations: int) -> Tensor:
    """Sample with a scheduler of diffusers' kind."""
    scheduler.set_timesteps(evaluations)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = field(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def euler(field: Field, x: Tensor, evaluations: int) -> Tensor:
    """Sample by equal Euler steps, as torchcfm's examples do."""
    for i in range(evaluations):
        t = torch.full((len(x),), i / evaluations)
        x = x + field(x, FLOW.to_timestep(t)) / evaluations
    return x


def midpoint(field: Field, x: Tensor, evaluations: int) -> Tensor:
    """Sample by equal midpoint steps, of two evaluations each."""
    steps = evaluations // 2
    for i in range(steps):
        t, half = (torch.full((len(x),), (i + c) / steps) for c in (0, 0.5))
        middle = x + field(x, FLOW.to_timestep(t)) / (2 * steps)
        x = x + field(middle, FLOW.to_timestep(half)) / steps
    return x


def samplers(training: str) -> Iterator[tuple[str, Sampler]]:
    """Yield the samplers of a training's networks: its users' first."""
    trained_with = (NOISE if training == "DDPM" else FLOW).config
    table = {
        "ours": partial(loop, GaussianFlowScheduler.from_config(trained_with)),
        "Euler": euler,
        "midpoint": midpoint,
        "DDIM": partial(loop, DDIMScheduler.from_config(NOISE.config)),
        "DPM-Solver++": partial(loop, DPMSolverMultistepScheduler.from_config(NOISE.config)),
    }
    for name in TRAININGS[training][1]:
        yield name, table[name]
