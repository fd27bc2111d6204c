r"""Where a run is, from which its data and all its randomness follow.

That a resumed run is *equal* to an uninterrupted one needs nothing else than its state and its
place: the order of the data follows from the epoch, and before every batch all generators are
seeded from its number. So no state of a generator has to be kept.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


def rest_of_epoch(accelerator: Accelerator, loader: Any, epoch: int, done: int) -> Any:
    """Return a loader of what is left of an epoch after so many batches."""
    loader.set_epoch(epoch)
    if not done:
        return loader
    left = accelerator.skip_first_batches(loader, done)
    left.set_epoch(epoch)  # Accelerate before 1.15 would shuffle a stream as in epoch 0
    return left


class Progress:
    """Where a run is: steps done, batches done, epoch, batches done of it, and seconds."""

    def __init__(self) -> None:
        self.step = self.batches = self.epoch = self.batch_of_epoch = 0
        self.earlier, self.start = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its continuations."""
        return self.earlier + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, float]:
        """Return the state, for the checkpoints of a run."""
        names = ("step", "batches", "epoch", "batch_of_epoch", "seconds")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state."""
        names = ("step", "batches", "epoch", "batch_of_epoch")
        self.__dict__.update({name: state[name] for name in names})
        self.earlier, self.start = state["seconds"], time.perf_counter()

    def figures(self, args: Any, network: nn.Module, processes: int) -> dict[str, float]:
        """Return the figures of a run that is at its end, for the card."""
        batch = args.train_batch_size * processes
        return {
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "steps": self.step,
            "batch_size": batch * args.gradient_accumulation_steps,
            "seconds": round(self.seconds, 1),
            "images_per_second": round(self.batches * batch / self.seconds, 1),
            "processes": processes,
        }

    def rest(
        self, accelerator: Accelerator, loader: Any, seed: int, max_steps: int
    ) -> Iterator[Any]:
        """Yield what is left of the batches, epoch after epoch, until `step` is `max_steps`.

        Before each batch all generators of the process are seeded from its place in the run: no
        two batches on any process share their noise, and a resumed run draws what it would have.
        """
        while self.step < max_steps:
            left = rest_of_epoch(accelerator, loader, self.epoch, self.batch_of_epoch)
            for batch in of_workers(left):
                place = self.batches * accelerator.num_processes + accelerator.process_index
                set_seed((seed * 1_000_003 + place) % 2**32)
                self.batches, self.batch_of_epoch = self.batches + 1, self.batch_of_epoch + 1
                yield batch
                if self.step == max_steps:
                    return
            if self.batch_of_epoch == 0:
                raise ValueError("the data set is smaller than one batch of every process")
            self.epoch, self.batch_of_epoch = self.epoch + 1, 0


def of_workers(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader; an error that a worker raised is told without its traceback.

    Raises:
        ValueError: that of the worker.
    """
    try:
        yield from loader
    except ValueError as error:
        if "in DataLoader worker" not in str(error):
            raise
        told = str(error).strip().splitlines()[-1]
        raise ValueError(told.removeprefix("ValueError: ")) from error
