r"""Trainings that take turns: so many steps of one, so many of the next, and round again.

On a machine that others use as well, two trainings timed one after the other meet two machines.
Here each lives in a thread of its own and stands still, between two steps, whenever it is not its
turn; exactly one of them runs at any time. What comes out are laps: the time that a training took
for the steps of a turn, in wall time and in CPU time of its thread, which others do not add to,
and how much of it went where. The ratio of two laps of one round is a paired measurement.

A training needs no knowledge of this: a step begins when its network is called.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

#: What is timed: functions by their owner and name, gathered under a name of ours.
Places = dict[str, list[tuple[Any, str]]]


@dataclass(frozen=True)
class Lap:
    """What a training did in a turn.

    Args:
        training: its name.
        round: number of the turn.
        steps: of the turn.
        wall: seconds that passed.
        cpu: seconds that the training's thread was running.
        parts: of `cpu`, by name.
    """

    training: str
    round: int
    steps: int
    wall: float
    cpu: float
    parts: dict[str, float]


class Finished(Exception):
    """Ends a training from inside, at the beginning of a step."""


class Parts:
    """CPU time of parts of a program by thread, without that of the parts inside them."""

    def __init__(self) -> None:
        self.spent: dict[str, Counter] = defaultdict(Counter)
        self._inner: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, function: Callable) -> Callable:
        """Return the function; its time is added to `spent[thread][name]`."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            thread = threading.current_thread().name
            inner = self._inner[thread]
            inner.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.thread_time() - start
                self.spent[thread][name] += elapsed - inner.pop()
                if inner:
                    inner[-1] += elapsed

        return call

    @contextmanager
    def watching(self, places: Places) -> Iterator[None]:
        """Time functions where they are looked up, for the time of a `with` block."""
        with ExitStack() as stack:
            for name, found in places.items():
                for owner, attribute in found:
                    timed = self.timed(name, getattr(owner, attribute))
                    stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield


class Training:
    """A training in a thread, which goes on for as many steps as it is told.

    Args:
        name: of the training and its thread.
        run: trains a network without end.
        network: what it trains, called once a step.
        parts: read before and after a turn.
    """

    def __init__(
        self, name: str, run: Callable[[nn.Module], None], network: nn.Module, parts: Parts
    ) -> None:
        self.name, self.parts = name, parts
        self.left, self.finished, self.error = 0, False, None
        self.start = self.end = (0.0, 0.0, Counter())
        self._go, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        network.register_forward_pre_hook(lambda module, inputs: self._begin_step())
        threads = torch.get_num_threads()  # every thread has a number of its own
        self._thread = threading.Thread(
            target=self._live, args=(run, network, threads), name=name, daemon=True
        )
        self._thread.start()

    def turn(self, steps: int) -> tuple[float, float, dict[str, float]]:
        """Take steps; return wall and CPU time and its parts. The first turn starts things up.

        Raises:
            RuntimeError: if the training ended.
        """
        self.left = steps
        self._go.release()
        self._rest.acquire()
        if self.finished:
            raise RuntimeError(f"the training {self.name!r} ended by itself") from self.error
        wall, cpu = self.end[0] - self.start[0], self.end[1] - self.start[1]
        return wall, cpu, dict(self.end[2] - self.start[2])

    def stop(self) -> None:
        """End the training."""
        self.finished = True
        self._go.release()
        self._thread.join()

    def _live(self, run: Callable[[nn.Module], None], network: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self._go.acquire()
        try:
            if not self.finished:
                run(network)
        except Finished:
            pass
        except Exception as error:  # for `turn` to raise
            self.error = error
        self.finished = True
        self._rest.release()

    def _begin_step(self) -> None:
        if self.left == 0:
            self.end = self._now()
            self._rest.release()
            self._go.acquire()
            if self.finished:
                raise Finished
            self.start = self._now()
        self.left -= 1

    def _now(self) -> tuple[float, float, Counter]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.thread_time(), Counter(self.parts.spent[self.name])


def race(
    trainings: dict[str, tuple[Callable[[nn.Module], None], nn.Module]],
    rounds: int,
    steps: int,
    places: Places | None = None,
    seed: int = 0,
) -> Iterator[Lap]:
    """Yield the laps of trainings that take turns, in a new order every round.

    Args:
        trainings: how they train which network, by name. The networks must not be shared.
        rounds: turns of every training, after one that is not counted.
        steps: of a turn.
        places: what else is timed.
        seed: of the order.
    """
    parts, rng = Parts(), np.random.default_rng(seed)
    with parts.watching(places or {}):
        living = {name: Training(name, *how, parts) for name, how in trainings.items()}
        try:
            for number in range(-1, rounds):
                for name in rng.permutation(list(living)).tolist():
                    wall, cpu, spent = living[name].turn(steps)
                    if number >= 0:
                        yield Lap(name, number, steps, wall, cpu, spent)
        finally:
            for training in living.values():
                training.stop()
