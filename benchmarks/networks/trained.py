r"""A trained pipeline as a field, and the samples that it converges to.

With guidance the field is

.. math:: u(x, t) = u_{null}(x, t) + w\,[u_{label}(x, t) - u_{null}(x, t)],

and one call of the network with both halves is one evaluation.

**The truth** is Heun's method with 200 equal steps. 100 are not enough, they leave an error that
is comparable with that of good samplers at 20 evaluations. How far the truth is from RK4 with 100
steps is reported as the floor.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from benchmarks.samplers.peers import counted
from fm_diffusers import FlowMatchingPipeline, GaussianFlowScheduler
from fm_diffusers.calibration import calibrate

Velocity = Callable[[Tensor, Tensor], Tensor]

#: The converged samples, and a second opinion about a few of them: solver, evaluations, samples.
TRUTH = ("heun", 400, None), ("rk4", 400, 8)


class Network:
    """The U-Net of a pipeline, with noise and labels spread over its classes.

    Args:
        model: a folder or Hub id; its network predicts the velocity on the linear path, or minus
            the velocity, which is `flow_prediction`.
    """

    def __init__(self, model: str) -> None:
        trained = GaussianFlowScheduler.load_config(model, subfolder="scheduler")
        kind = trained["path"], trained["prediction_type"], trained["num_train_timesteps"]
        signs = {("linear", "velocity", 1000): 1, ("linear", "flow_prediction", 1000): -1}
        if kind not in signs:
            raise ValueError(f"{model} is {kind}: peers need a velocity on the linear path")
        self.sign = signs[kind]
        self.null_label = FlowMatchingPipeline.load_config(model)["null_label"]
        if self.null_label is None:
            raise ValueError(f"{model} was trained without labels: it cannot be guided")
        unet = UNet2DModel.from_pretrained(model, subfolder="unet").eval()
        self.unet = unet.to(memory_format=torch.channels_last)
        digest = hashlib.sha256()
        for weights in self.unet.state_dict().values():
            digest.update(weights.contiguous().numpy().tobytes())
        self.key = {"network": Path(model).name, "weights": digest.hexdigest()[:8]}

    def start(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return noise and labels."""
        config, generator = self.unet.config, torch.Generator().manual_seed(seed)
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=generator), torch.arange(count) % self.null_label

    def velocity(self, labels: Tensor, guidance: float) -> Velocity:
        """Return the guided field, of samples with the first of `labels`."""

        def field(x: Tensor, t: Tensor) -> Tensor:
            x, timestep = x.float(), (1000 * (1 - torch.as_tensor(t).double())).float()
            label = labels[: len(x)]
            if guidance == 1:
                return self.sign * self.unet(x, timestep, label).sample
            null = torch.full_like(label, self.null_label)
            both = self.unet(torch.cat([x, x]), timestep, torch.cat([null, label])).sample
            return self.sign * torch.lerp(*both.chunk(2), guidance)

        return field


def ours(
    scheduler: GaussianFlowScheduler,
    velocity: Velocity,
    x: Tensor,
    nfe: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample with this package, with as many steps as fit into `nfe` evaluations."""
    scheduler.set_timesteps(nfe // scheduler.order)
    x, ask = x * scheduler.init_noise_sigma, counted(velocity, nfe)
    for t in scheduler.timesteps:
        output = ask(x, scheduler.to_time(t))
        x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
    return x


def converged(velocity: Velocity, x: Tensor, cache: Path) -> tuple[Tensor, Tensor]:
    """Return the converged samples, and the first few by another method; from disk if there."""
    if not cache.exists():
        ends = tuple(
            ours(GaussianFlowScheduler(solver=solver, grid="uniform"), velocity, x[:count], nfe)
            for solver, nfe, count in TRUTH
        )
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(ends, cache)
    return torch.load(cache, weights_only=True)


def calibrated(
    network: Network, guidance: float, steps: list[int], count: int, folder: Path
) -> GaussianFlowScheduler:
    """Return a scheduler fitted on `count` noises of its own; from disk if there."""
    if not folder.exists():
        scheduler = GaussianFlowScheduler()
        pipe = FlowMatchingPipeline(network.unet, scheduler, null_label=network.null_label)
        generator = torch.Generator().manual_seed(10_000)
        options = {"num_samples": count, "generator": generator, "guidance_scale": guidance}
        calibrate(scheduler, pipe, steps, progress=False, **options).save_pretrained(folder)
    return GaussianFlowScheduler.from_pretrained(folder)
