r"""What a training script learns: the flags that say it, and the loss on a batch.

.. math:: E_{t, (z, \varepsilon)}\; w_t \| q_\theta(x_t, t, c) - q_t(x_t|z) \|^2,
          \qquad x_t = \alpha_t z + \beta_t \varepsilon

The path, the kind of prediction `q`, the weight, the density of the times and the coupling of data
with noise are names of their tables; each has parameters in JSON.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fm_diffusers.couplings import COUPLINGS, couple
from fm_diffusers.objectives import TIME_SAMPLERS, sample_times, weighted_loss
from fm_diffusers.paths import PATHS, GaussianPath, Linear, expand_like
from fm_diffusers.predictions import PREDICTIONS
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.tables import look_up
from fm_diffusers.training.arguments import ImageArguments, TrainingArguments
from fm_diffusers.training.command_line import refuse_unused
from fm_diffusers.training.flow_maps import MapObjective, Slope, clock_of, last_start
from fm_diffusers.weightings import WEIGHTINGS, loss_weight

#: What a network learns: the weighting of its target's squared error, and the density of times.
OBJECTIVES = {
    "flow_matching": ("uniform", "low_discrepancy"),
    "score_matching": ("snr", "low_discrepancy"),
    "mean_flow": ("uniform", "logit_normal"),
}


@dataclass
class LossArguments(TrainingArguments):
    """The loss of a network whose path and prediction are given."""

    weighting: str | None = field(
        default=None,
        metadata={"choices": WEIGHTINGS, "help": "Of the loss over time; by default uniform."},
    )
    weighting_kwargs: str = field(default="{}", metadata={"help": "Its parameters, in JSON."})
    time_sampler: str | None = field(
        default=None,
        metadata={
            "choices": TIME_SAMPLERS,
            "help": "Density of the times; by default low_discrepancy, which is uniform, and "
            "logit_normal for --objective mean_flow, whose map is learned better by few times at "
            "the ends.",
        },
    )
    time_sampler_kwargs: str = "{}"
    t_min: float = field(default=0.0, metadata={"help": "The times are scaled to start here,"})
    t_max: float = field(default=1.0, metadata={"help": "and to end here."})
    coupling: str = field(
        default="independent",
        metadata={
            "choices": COUPLINGS,
            "help": "Of noise and data in a batch; classes are respected.",
        },
    )
    coupling_kwargs: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weighting = self.weighting or "uniform"
        self.time_sampler = self.time_sampler or "low_discrepancy"
        look_up("coupling", COUPLINGS, self.coupling)
        for name in ("weighting_kwargs", "time_sampler_kwargs", "coupling_kwargs"):
            self.parameters(name)
        given = self.parameters("time_sampler_kwargs")
        sample_times(2, self.time_sampler, torch.Generator(), **given)  # raises for what is wrong
        if given := self.parameters("coupling_kwargs"):
            couple(torch.zeros(2, 1), torch.zeros(2, 1), self.coupling, **given)
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(
                f"--t_min and --t_max must ascend in [0, 1], got {self.t_min} and {self.t_max}"
            )
        if self.weighting != "uniform" and self.coupling != "independent":
            raise ValueError(
                f"with --coupling {self.coupling} x_t is not Gaussian given the data: errors of "
                "one prediction are not those of another, and no score is learned; drop "
                "--weighting, --objective or --coupling"
            )

    def parameters(self, name: str) -> dict[str, Any]:
        """Return the parameters that a flag holds in JSON."""
        try:
            value = json.loads(getattr(self, name))
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(
                f"--{name} must be a JSON object, such as '{{\"std\": 1.5}}', got "
                f"{getattr(self, name)!r}"
            )
        return value

    def check_bounds(self, scheduler: GaussianFlowScheduler) -> None:
        """Raise a `ValueError` if the loss is unbounded at an end of the times."""
        prediction, path = scheduler.config.prediction_type, scheduler.path
        given = self.parameters("weighting_kwargs")
        for t in (self.t_min, self.t_max):
            weight = loss_weight(path, t, prediction, self.weighting or "uniform", **given)
            diverges = prediction == "score" and self.weighting == "uniform"
            if not weight.isfinite() or (diverges and path.beta(t) == 0):
                raise ValueError(
                    f"the {self.weighting!r} loss of a network that predicts {prediction!r} is "
                    f"unbounded at t = {t:g}: choose another --prediction_type, --weighting or "
                    "--objective, or times inside with --t_min and --t_max"
                )


#: What networks predict by default, where it is not the velocity: the sign of diffusers' flow
#: models on the path that these have.
DEFAULT_PREDICTIONS = {"linear": "flow_prediction"}


@dataclass
class FlowArguments(LossArguments):
    """What a new network learns: the flags of every script that trains a flow from scratch."""

    init_from: str | None = field(
        default=None,
        metadata={"help": "A saved pipeline to train further in full: a folder or a Hub id."},
    )
    path: str | None = field(
        default=None, metadata={"choices": PATHS, "help": "A Gaussian path; by default linear."}
    )
    path_kwargs: str | None = field(default=None, metadata={"help": "Its parameters, in JSON."})
    prediction_type: str | None = field(
        default=None,
        metadata={
            "choices": PREDICTIONS,
            "help": "What the network predicts; by default flow_prediction on the linear path, "
            "so that diffusers' own flow schedulers sample it too, else velocity.",
        },
    )
    objective: str = field(
        default="flow_matching",
        metadata={
            "choices": OBJECTIVES,
            "help": "flow_matching: squared error of the prediction's own conditional target; "
            "score_matching: of the score, with the weight beta^2 that makes it bounded; "
            "mean_flow: of the flow map too, so that one evaluation draws.",
        },
    )
    map_share: float = field(
        default=0.5, metadata={"help": "Of mean_flow: share of a batch that learns the map."}
    )
    map_to_data: float = field(
        default=0.6,
        metadata={"help": "Of mean_flow: share of the map's steps that end at data."},
    )
    map_power: float = field(
        default=1.0, metadata={"help": "Of mean_flow: p of the weights 1/(error + c)^p."}
    )

    def __post_init__(self) -> None:
        implied, times = look_up("--objective", OBJECTIVES, self.objective)
        if self.objective == "score_matching" and self.weighting not in (None, implied):
            raise ValueError(
                f"--objective score_matching is a weighting, 'snr': --weighting {self.weighting} "
                "needs --objective flow_matching"
            )
        self._check_map()
        self.weighting = self.weighting or implied
        self.time_sampler = self.time_sampler or times
        super().__post_init__()
        if self.init_from is None:  # else they are those of the pipeline, see `tuning`
            self.path, self.path_kwargs = self.path or "linear", self.path_kwargs or "{}"
            self.prediction_type = self.prediction_type or DEFAULT_PREDICTIONS.get(
                self.path, "velocity"
            )
            self.check_bounds(self.scheduler())
            if self.objective == "mean_flow":
                last_start(self.scheduler())  # raises if there is no map

    def _check_map(self) -> None:
        """Raise a `ValueError` for what a flow map cannot be learned with."""
        own = ("map_share", "map_to_data", "map_power")
        for name in own:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must lie in [0, 1], got {getattr(self, name)}")
        refuse_unused(self, dict.fromkeys(own, "mean_flow"))
        if self.objective != "mean_flow":
            return
        needed = {"weighting": (None, "uniform"), "coupling": ("independent",)}
        for name, values in (needed | {"t_min": (0.0,), "t_max": (1.0,)}).items():
            if getattr(self, name) not in values:
                raise ValueError(
                    "--objective mean_flow has weights of its own, independent noise and all "
                    f"times from noise to data: drop --{name} {getattr(self, name)}"
                )

    def scheduler(self) -> GaussianFlowScheduler:
        """Return the scheduler that trains and samples what these flags say."""
        scheduler = GaussianFlowScheduler(
            path=self.path,
            path_kwargs=self.parameters("path_kwargs"),
            prediction_type=self.prediction_type,
            **({"solver": "flow_map"} if self.objective == "mean_flow" else {}),
        )
        if self.coupling != "independent":
            scheduler = of_coupled_noise(scheduler)
        if (self.path, self.prediction_type) == ("linear", "flow_prediction"):
            # what diffusers' UniPC and DPM-Solver need to be told of it
            scheduler.register_to_config(use_flow_sigmas=True, flow_shift=1.0)
        return scheduler


def of_coupled_noise(scheduler: GaussianFlowScheduler) -> GaussianFlowScheduler:
    """Return a scheduler that says that noise and data are paired, so that it has no SDE."""
    kwargs = dict(scheduler.config.path_kwargs or {}) | {"coupled": True}
    return GaussianFlowScheduler.from_config(scheduler.config, path_kwargs=kwargs)


def coupled_noise(args: LossArguments, z: Tensor, condition: Tensor | None) -> Tensor:
    """Return noise for data, in the order of the coupling, which respects the condition."""
    given = args.parameters("coupling_kwargs")
    return couple(z, torch.randn_like(z), args.coupling, condition=condition, **given)


def scaled(args: ImageArguments, images: Tensor) -> Tensor:
    """Return uint8 images scaled to [-1, 1], every other one mirrored with `--random_flip`."""
    z = images.float() / 127.5 - 1
    if args.random_flip:
        mirrored = torch.rand(len(z), device=z.device) < 0.5
        z = torch.where(mirrored[:, None, None, None], z.flip(-1), z)
    return z


def flow_loss(
    args: LossArguments,
    scheduler: GaussianFlowScheduler,
    network: nn.Module,
    z: Tensor,
    eps: Tensor,
    condition: Tensor | None = None,
    pair: Callable[[GaussianPath, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return the loss on pairs of data and noise, at times drawn anew.

    Args:
        args: flags of the loss.
        scheduler: the path, and what the network predicts.
        network: called with samples, their timesteps and the condition.
        z: data, shape `(batch, ...)`.
        eps: their noise.
        condition: of every sample.
        pair: from a path, `z`, `eps` and times to the data and noise whose target is regressed,
            see `stable_targets`; by default `z` and `eps`.
    """
    draw = args.parameters("time_sampler_kwargs")
    t = sample_times(len(z), args.time_sampler or "low_discrepancy", device=z.device, **draw)
    t = args.t_min + (args.t_max - args.t_min) * t
    if isinstance(args, FlowArguments) and args.objective == "mean_flow":
        u, end = (clock_of(scheduler.path, t) for t in (t, torch.ones_like(t)))
        u = u.clamp(max=last_start(scheduler))
        shares = args.map_share, args.map_to_data
        learn = MapObjective("mean_flow", *shares, power=args.map_power)
        slope, y = Slope(network, scheduler, condition), torch.lerp(eps, z, expand_like(u, z))
        data, noise = (z, eps) if pair is None else pair(Linear(), z, eps, u)
        return learn(slope, y, u, end, (data - noise).__getitem__, conditional=True)
    x_t = scheduler.path.flow_map(z, eps, t)
    output = network(x_t, scheduler.to_timestep(t), condition, return_dict=False)[0]
    data, noise = (z, eps) if pair is None else pair(scheduler.path, z, eps, t)
    return weighted_loss(
        output,
        scheduler.path,
        data,
        noise,
        t,
        scheduler.config.prediction_type,
        args.weighting or "uniform",
        **args.parameters("weighting_kwargs"),
    ).mean()
