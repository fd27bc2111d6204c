"""Schedulers by name, and runs of them as pipelines run them."""

import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fm_diffusers.fields import Field
from fm_diffusers.files import once
from fm_diffusers.paths import GaussianPath
from fm_diffusers.scheduler import GaussianFlowScheduler

#: From a path and a kind of prediction to the exact field.
Exact = Callable[[GaussianPath, str], Field]
#: What our `step` reads beside its own arguments, of what JSON can say.
OURS = {"noise_level", "use_clipped_model_output"}
#: What says of a configuration which network it is of; all else is how it is sampled.
NETWORK = frozenset(
    """path path_kwargs prediction_type time_convention num_train_timesteps beta_start beta_end
    beta_schedule trained_betas rescale_betas_zero_snr snr_shift_scale invert_sigmas sigma_data
    timestep_type use_flow_sigmas""".split()
)


class Driven:
    """A scheduler, and how a pipeline runs it.

    Args:
        spec: name or `module:Class`, and its configuration in JSON.
        network: what `GaussianFlowScheduler.from_config` is told beside the configuration of
            another scheduler; the configuration of ours says it all.
        step_kwargs: for `step`.

    Raises:
        ValueError: for a scheduler that is not there, or whose network cannot be told or is a flow
            map, and for what would have no effect.
    """

    def __init__(self, spec: str, network: dict[str, Any], step_kwargs: dict[str, Any]) -> None:
        name, brace, rest = spec.partition("{")
        self.name, self.step_kwargs = spec, step_kwargs
        config = read_object(
            f"the configuration of {name}", brace + rest or "{}", '{"shift": 3.0}'
        )
        kind = find(name)
        self.make: Callable[[], Any] = lambda: kind(**config)
        scheduler = self.make()
        check_step(scheduler, step_kwargs)
        self.reads = reader(scheduler, network)
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


def reader(scheduler: Any, network: dict[str, Any]) -> GaussianFlowScheduler:
    """Return ours with the network of a scheduler, or raise a `ValueError` if there is none."""
    if not isinstance(scheduler, GaussianFlowScheduler):
        told = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
        found = GaussianFlowScheduler.from_config(told, **network)
        check_network(told, network)
    elif network:
        raise ValueError(
            f"--network {json.dumps(network)} has no effect on a {type(scheduler).__name__}, "
            "whose configuration says what its network is: write it behind the name, and leave "
            "--network to a run of the others"
        )
    else:
        found = scheduler
    if found.solver.two_times:
        raise ValueError(
            "a flow map needs a network of two times, which is told where a step leads, and the "
            "exact field here is of one: choose another solver"
        )
    return found


def check_network(told: dict[str, Any], network: dict[str, Any]) -> None:
    """Raise a `ValueError` for a key without which a configuration's network can be told too."""
    idle = sorted(set(network) - NETWORK)
    if not idle:
        return
    try:
        GaussianFlowScheduler.from_config(told, **{k: network[k] for k in NETWORK & set(network)})
    except ValueError:  # it decides what the configuration leaves open
        return
    raise ValueError(
        f"--network has {idle[0]}={network[idle[0]]!r}, which says nothing of the network and has "
        f"no effect: leave it out, or take of {', '.join(sorted(NETWORK))}"
    )


def check_step(scheduler: Any, step_kwargs: dict[str, Any]) -> None:
    """Raise a `ValueError` for a keyword that `step`, of ours or of diffusers, does not read.

    Other code may read any of its `**kwargs`.
    """
    step = type(scheduler).step
    if step.__module__.partition(".")[0] not in ("fm_diffusers", "diffusers"):
        return
    known = {p for p, v in inspect.signature(step).parameters.items() if v.kind != v.VAR_KEYWORD}
    known -= {"self", "model_output", "timestep", "sample", "generator", "return_dict"}
    known |= OURS if step is GaussianFlowScheduler.step else set()
    for name in sorted(set(step_kwargs) - known):
        raise ValueError(
            f"--step_kwargs has {name}={step_kwargs[name]!r}, which has no effect on step of a "
            f"{type(scheduler).__name__}: leave it out, or take of {', '.join(sorted(known))}"
        )


def read_object(what: str, text: str, example: str) -> dict[str, Any]:
    """Return what the JSON of an object says.

    Args:
        what: the name of the text.
        text: JSON.
        example: what it may be.

    Raises:
        ValueError: for what is no JSON, or that of something else.
    """
    fault = "another value"
    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        found, fault = None, str(error)
    if not isinstance(found, dict):
        raise ValueError(
            f"{what} must be an object in JSON, got {text} ({fault}): write it as '{example}'"
        )
    return found


def find(name: str) -> Any:
    """Return a class by its name: one of this package, of diffusers, or `module:Class`.

    Raises:
        ValueError: if there is none; an error in the module itself is not changed.
    """
    module, _, kind = name.rpartition(":")
    places = [module] if module else ["fm_diffusers", "diffusers"]
    for place in places:
        try:
            found = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and f"{place}.".startswith(f"{error.name}."):
                continue
            raise
        try:
            return getattr(found, kind)
        except AttributeError:
            continue
    raise ValueError(
        f"there is no scheduler {name!r} in {' or '.join(places)}: name a class of fm_diffusers "
        "or diffusers, or say module:Class"
    )
