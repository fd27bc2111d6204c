"""The curve of `finetune_reward.py`: mean reward and KL of every batch, kept in checkpoints."""

from pathlib import Path

import matplotlib
import torch
from accelerate import Accelerator
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


class Curve:
    """Mean reward and KL of the batches so far, over all processes.

    Args:
        batches_per_step: of the optimizer.
    """

    def __init__(self, batches_per_step: int = 1) -> None:
        self.rows: list[tuple[float, float]] = []
        self.batches_per_step = batches_per_step

    def state_dict(self) -> dict[str, list]:
        """Return the state, for the checkpoints of a run."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Take over a state."""
        self.rows = list(state["rows"])

    def add(self, accelerator: Accelerator, rewards: Tensor, kl: Tensor) -> None:
        """Add a batch, and log it at the step that it is a part of."""
        means = torch.stack([rewards.mean(), kl.detach().mean()])
        reward, divergence = accelerator.reduce(means, "mean").tolist()
        self.rows.append((reward, divergence))
        step = -(-len(self.rows) // self.batches_per_step)
        accelerator.log({"reward": reward, "kl": divergence}, step=step)

    def draw(self, file: Path, title: str) -> None:
        """Draw the rewards, and below them the KL of the noisy steps of a batch."""
        figure, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
        names = (f"mean reward ({title})", "KL of the window, nats")
        for ax, name, values in zip(axes, names, zip(*self.rows, strict=True), strict=True):
            ax.plot(range(1, 1 + len(values)), values, linewidth=1)
            ax.set_ylabel(name)
            ax.grid(alpha=0.3)
        axes[-1].set_xlabel("batch")
        figure.savefig(file, dpi=80)
        plt.close(figure)
