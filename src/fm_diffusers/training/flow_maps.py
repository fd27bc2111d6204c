r"""Losses of networks of two times: what a script feeds them, and what they are regressed on.

States are :math:`y = x/(\alpha + \beta)` and times :math:`u = \alpha/(\alpha + \beta)`, see
`fm_diffusers.flow_maps`; a network is fed x and its timestep, and the features of v - u.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fm_diffusers.flow_maps import DIFFERENCE, mean_flow_target, self_consistency_target
from fm_diffusers.paths import GaussianPath, expand_like
from fm_diffusers.predictions import CANONICAL, conversion, convert
from fm_diffusers.scheduler import GaussianFlowScheduler
from fm_diffusers.second_time import step_features

#: By how much the slope of a flow map may magnify what its network predicts, and so its errors.
MAGNIFIED = 50

#: Up to which clock that holds of a network that predicts the data.
LAST_START = 1 - 1 / MAGNIFIED


def clock_of(path: GaussianPath, t: Tensor) -> Tensor:
    r"""Return :math:`u = \alpha/(\alpha + \beta)` at times t."""
    c = path(t)
    return c.alpha / (c.alpha + c.beta)


def time_of(path: GaussianPath, u: Tensor) -> Tensor:
    """Return the time t at a clock u."""
    return path.time(torch.logit(u)).clamp(0, 1)


def on_path(path: GaussianPath, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the samples :math:`x = (\alpha + \beta) y` at clocks u, and their times t."""
    t = time_of(path, u)
    c = path(t)
    return expand_like(c.alpha + c.beta, y) * y, t


class Slope(NamedTuple):
    """A network of two times as the average slope :math:`G(y, u, v)` of a batch.

    Attributes:
        network: of two times.
        scheduler: says what it predicts, on which path.
        condition: of every sample; None for a network without.
        guidance_scale: of every sample, for networks that are told one; else None.
    """

    network: nn.Module
    scheduler: GaussianFlowScheduler
    condition: Tensor | None = None
    guidance_scale: Tensor | None = None

    def __call__(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return the slopes from states `y` at times `u`, shape `(batch,)`, to times `v`."""
        path = self.scheduler.path
        x, t = on_path(path, y, u)
        told = {"timestep_cond": step_features(v - u, self.guidance_scale)}
        fed = (x, self.scheduler.to_timestep(t), self.condition)
        q = self.network(*fed, **told, return_dict=False)[0][:, : y.shape[1]].float()
        return convert(path, self.scheduler.config.prediction_type, CANONICAL, x, q, t)


Batch = TypeVar("Batch", bound=NamedTuple)


def part_of(batch: Batch, part: slice) -> Batch:
    """Return a named tuple about a batch as one about some of its samples."""
    told = {k: v[part] for k, v in batch._asdict().items() if isinstance(v, Tensor)}
    return batch._replace(**told)


def last_start(scheduler: GaussianFlowScheduler) -> float:
    r"""Return the clock u up to which maps depart: 1, or less of a network that predicts the data.

    Its slope :math:`(\hat z - y)/(1 - u)` divides by what is left of the way. A step from `u` to
    the data lands at :math:`\hat z` itself, so that nothing is lost but the slope near the end.

    Raises:
        ValueError: if the network does not say where samples go, at noise or just before the data.
    """
    path, kind = scheduler.path, scheduler.config.prediction_type

    def factor(t: float) -> float:
        return conversion(path, kind, CANONICAL, t)[1].abs().item()

    last, t_last = 1.0, 1.0
    if not factor(1.0) <= MAGNIFIED:
        last, t_last = LAST_START, time_of(path, torch.tensor(LAST_START)).item()
    for t in (0.0, t_last):
        if not factor(t) <= MAGNIFIED * (1 + 1e-4):  # rounding of the time
            raise ValueError(
                f"a flow map needs a slope at t = {t:.3g}, which is {factor(t):.3g} times what a "
                f"network that predicts {kind!r} says there on the path "
                f"{scheduler.config.path!r}, at most {MAGNIFIED} is of use: take one with another "
                "--prediction_type, such as flow_prediction or v_prediction"
            )
    return last


def warn_of_rounding(objective: str, precision: str, derivative: str = "difference") -> None:
    """Warn of a derivative by differences in half precision, `precision` being Accelerate's."""
    if (objective, derivative) == ("mean_flow", "difference") and precision in ("bf16", "fp16"):
        warnings.warn(
            f"--objective mean_flow takes a difference of two outputs {2 * DIFFERENCE:g} apart in "
            f"time, of which {precision} leaves little but rounding: train with "
            "--mixed_precision no",
            stacklevel=2,
        )


def loss_of_slopes(found: Tensor, target: Tensor, power: float = 0.0) -> Tensor:
    r"""Return the mean squared error, with a gradient that weights samples by their own.

    The weights are :math:`1/(|\Delta|^2 + c)^p`. The value is without them, since with p = 1 it
    would be nearly the same whatever the network.

    Args:
        found: the network's slopes.
        target: what they are to be.
        power: p; with 1 the few samples whose target is far off do not rule the step.
    """
    error = (found - target).square().flatten(1).mean(1)
    weighted = ((error.detach() + 1e-3) ** -power * error).mean()
    return weighted + (error.mean() - weighted).detach()


def landings(u: Tensor, end: Tensor, count: int, to_data: float) -> Tensor:
    """Return times of landing: of the first samples after `u`, of the others `u` itself.

    Args:
        u: times, shape `(batch,)`.
        end: that of the data.
        count: how many land elsewhere.
        to_data: share of these that land at the data.
    """
    later = torch.where(torch.rand_like(u) < to_data, end, torch.lerp(u, end, torch.rand_like(u)))
    return torch.cat([later[:count], u[count:]])


@dataclass(frozen=True)
class MapObjective:
    """An objective that needs no trajectories; see `fm_diffusers.flow_maps`.

    Attributes:
        name: `mean_flow` or `self_consistency`.
        share: of the samples whose step has a length; of the others the slope is regressed.
        to_data: share of these that land at the data.
        derivative: a name in `DERIVATIVES`.
        power: see `loss_of_slopes`.
    """

    name: str
    share: float = 0.5
    to_data: float = 0.3
    derivative: str = "difference"
    power: float = 0.0

    def __call__(
        self,
        slope: Slope,
        y: Tensor,
        u: Tensor,
        end: Tensor,
        exact: Callable[[slice], Tensor],
        conditional: bool,
    ) -> Tensor:
        """Return the loss.

        Args:
            slope: the network.
            y: states, shape `(batch, ...)`.
            u: their times, shape `(batch,)`.
            end: the time of the data.
            exact: returns the slopes F of some of the samples, a teacher's or conditional ones.
            conditional: whether they are conditional.
        """
        count = round(self.share * len(y))
        moved, still = slice(count), slice(count, None)
        v, targets = landings(u, end, count, self.to_data), []
        with torch.no_grad():
            if count:  # networks with attention take no empty batch
                told = part_of(slope, moved), y[moved], u[moved], v[moved], exact, conditional
                targets.append(self._of_steps(*told))
            if count < len(y):
                targets.append(exact(still))
        return loss_of_slopes(slope(y, u, v), torch.cat(targets), self.power)

    def _of_steps(
        self,
        slope: Slope,
        y: Tensor,
        u: Tensor,
        v: Tensor,
        exact: Callable[[slice], Tensor],
        conditional: bool,
    ) -> Tensor:
        """Return the targets of the first samples, whose steps have a length."""
        if self.name == "self_consistency":
            return self_consistency_target(slope.__call__, y, u, v)
        along = slope(y, u, u) if conditional else None
        found = exact(slice(len(y)))
        return mean_flow_target(slope.__call__, y, u, v, found, along, self.derivative)
