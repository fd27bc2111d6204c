r"""The loss on samples that are not trained on: always of the same noise and times.

It is the loss of the training, of the averaged weights, without dropout. The samples are dealt
into batches once and for all, and before each of them all generators are seeded by its number: so
the figure of a network is the same at every step, in a resumed run, and, bit for bit, on any
number of processes, which take the batches in turn.
"""

from collections.abc import Callable, Sized
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Samples that are not trained on.

    Args:
        dataset: by index.
        collate: of a batch, None for that of torch.
        batch_size: of all batches but the last.
        seed: of noise and times.
    """

    dataset: Dataset[Any]
    collate: Callable[[Any], Any] | None
    batch_size: int
    seed: int

    @property
    def batches(self) -> list[list[int]]:
        """The samples of every batch, by index."""
        assert isinstance(self.dataset, Sized)
        return [c.tolist() for c in torch.arange(len(self.dataset)).split(self.batch_size)]

    @torch.no_grad()
    def loss(self, accelerator: Accelerator, network: nn.Module, loss_of: Loss) -> float:
        """Return the mean loss over the samples; to be called on all processes."""
        batches, count = self.batches, accelerator.num_processes
        # all take as many turns, as a sharded network needs: the last batch again, and for nothing
        turns = range(accelerator.process_index, -(-len(batches) // count) * count, count)
        own = [min(turn, len(batches) - 1) for turn in turns]
        loader = DataLoader(
            self.dataset, batch_sampler=[batches[i] for i in own], collate_fn=self.collate
        )
        losses = torch.zeros(len(batches), device=accelerator.device)
        for turn, i, batch in zip(turns, own, loader, strict=True):
            set_seed((self.seed * 1_000_003 - 1 - i) % 2**32)
            loss = loss_of(network, send_to_device(batch, accelerator.device))
            if turn < len(batches):
                losses[i] = loss
        weights = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
        losses = accelerator.reduce(losses, "sum").cpu().double()
        return (losses @ weights / weights.sum()).item()

    def log(self, accelerator: Accelerator, network: nn.Module, loss_of: Loss, step: int) -> float:
        """Return the loss, and hand it to the trackers as `validation_loss`."""
        loss = self.loss(accelerator, network, loss_of)
        accelerator.log({"validation_loss": loss}, step=step)
        return loss


def held_out_share(split: str) -> float | None:
    """Return the share that `--validation_split` names; None if it names a split."""
    try:
        share = float(split)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ValueError(
            f"--validation_split must be a share between 0 and 1, or a split, got {split}"
        )
    return share


def overlap(one: str, other: str) -> str | None:
    """Return a split that two names have in common, `train` and `train[:10%]` for example."""
    for mine, theirs in product(one.split("+"), other.split("+")):
        bases = mine.partition("[")[0], theirs.partition("[")[0]
        whole = "[" not in mine or "[" not in theirs
        if bases[0] == bases[1] and (whole or mine == theirs):
            return bases[0]
    return None
