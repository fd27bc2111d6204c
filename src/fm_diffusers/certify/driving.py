"""Schedulers by name, and runs of them as pipelines run them."""

import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.fields import Field
from fm_diffusers.paths import GaussianPath
from fm_diffusers.scheduler import GaussianFlowScheduler

#: From a path and a kind of prediction to the exact field.
Exact = Callable[[GaussianPath, str], Field]


class Driven:
    """A scheduler, and how a pipeline runs it.

    Args:
        spec: name or `module:Class`, and its configuration in JSON.
        network: what `GaussianFlowScheduler.from_config` is told beside its configuration.
        step_kwargs: for `step`.

    Raises:
        ValueError: for a scheduler that is not there, or whose network cannot be told.
    """

    def __init__(self, spec: str, network: dict[str, Any], step_kwargs: dict[str, Any]) -> None:
        name, brace, rest = spec.partition("{")
        self.name, self.step_kwargs = spec, step_kwargs
        config, kind = json.loads(brace + rest or "{}"), find(name)
        self.make: Callable[[], Any] = lambda: kind(**config)
        scheduler = self.make()
        if isinstance(scheduler, GaussianFlowScheduler):
            self.reads = scheduler
        else:
            told = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
            self.reads = GaussianFlowScheduler.from_config(told, **network)
        self.evaluations = 0  # of the last run

    def time(self, timestep: Tensor) -> Tensor:
        """Return the time, of the path of the network's training, that a timestep stands for."""
        clock = self.reads.clock
        return clock.convention.time(clock.path, clock.num_train_timesteps, timestep.double())

    def network(self, exact: Exact) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the network of exact data, called as `network(x, timestep)`."""
        ask = exact(self.reads.path, self.reads.config.prediction_type)
        return lambda x, timestep: ask(x, self.time(timestep))

    def run(self, exact: Exact, noise: Tensor, steps: int, seed: int) -> tuple[Tensor, Any]:
        """Return samples, and what the network was fed first with its time."""
        scheduler, network = self.make(), self.network(exact)
        scheduler.set_timesteps(steps)
        torch.manual_seed(seed)  # for schedulers that take no generator
        told, generator = dict(self.step_kwargs), torch.Generator().manual_seed(seed)
        if "generator" in inspect.signature(scheduler.step).parameters:
            told["generator"] = generator
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        x, first = noise * getattr(scheduler, "init_noise_sigma", 1.0), None
        self.evaluations = len(scheduler.timesteps)
        for t in scheduler.timesteps:
            fed = scale(x, t)
            first = first or (fed.double(), self.time(t))
            x = scheduler.step(network(fed, t), t, x, **told, return_dict=False)[0]
        return x.double(), first


def find(name: str) -> Any:
    """Return a class by its name: one of this package, of diffusers, or `module:Class`.

    Raises:
        ValueError: if there is none.
    """
    module, _, kind = name.rpartition(":")
    places = [module] if module else ["fm_diffusers", "diffusers"]
    for place in places:
        try:
            return getattr(importlib.import_module(place), kind)
        except (ImportError, AttributeError):
            continue
    raise ValueError(
        f"there is no scheduler {name!r} in {' or '.join(places)}: name a class of fm_diffusers "
        "or diffusers, or say module:Class"
    )
