r"""The loss of a run, read when it is logged; what has diverged is told, and not saved."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from fm_diffusers.training.sharding import parts

#: What to do about a loss that has diverged.
LOWER = (
    "go on from the last checkpoint, which is from before, with a lower --learning_rate or "
    "--max_grad_norm, or with --mixed_precision bf16 in place of fp16"
)


def log_loss(
    accelerator: Accelerator, losses: list[tuple[int, Tensor]], rate: float, step: int, bar: tqdm
) -> None:
    """Log the mean over the latest batches of all processes; the only wait for the device.

    Raises:
        ValueError: if it is not finite.
    """
    values = torch.stack([loss for _, loss in losses])
    mean = accelerator.reduce(values.mean(), "mean").item()
    if not math.isfinite(mean):
        worst = accelerator.gather(values[None]).sum(0).isfinite().tolist()
        first = next(place for (place, _), finite in zip(losses, worst, strict=True) if not finite)
        raise ValueError(f"the loss is {mean} at step {first}: {LOWER}")
    bar.set_postfix(loss=f"{mean:.4f}")
    accelerator.log({"loss": mean, "lr": rate}, step=step)


def check_weights(accelerator: Accelerator, weights: list[nn.Parameter], step: int) -> None:
    """Raise a `ValueError` rather than save weights that are not finite."""
    finite = torch.stack([w.detach().isfinite().all() for w in parts(weights)]).all()
    if accelerator.reduce((~finite).float(), "sum").item():
        raise ValueError(f"weights are not finite after step {step}, which is not saved: {LOWER}")
