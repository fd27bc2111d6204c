r"""Losses of a flow map that is learned from a teacher: on its runs, or between their ends."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fm_diffusers.flow_maps import trajectory_target
from fm_diffusers.paths import expand_like
from fm_diffusers.training.flow_maps import MapObjective, Slope, loss_of_slopes, part_of
from fm_diffusers.training.teachers import Guided

#: What a network learns of a teacher; see `fm_diffusers.flow_maps`.
OBJECTIVES = ("trajectory", "mean_flow", "self_consistency")


@dataclass(frozen=True)
class Distillation:
    """What a network of two times learns of a teacher, and in which shares.

    Attributes:
        objective: a name in `OBJECTIVES`.
        slope_share: of the samples that learn the teacher's slope.
        to_data: of the steps that land at the data.
        from_noise: of the steps on trajectories that begin at the noise.
        derivative: a name in `DERIVATIVES`, for mean flow.
        last: the clock up to which steps begin, see `last_start`.
    """

    objective: str
    slope_share: float = 0.1
    to_data: float = 0.3
    from_noise: float = 0.25
    derivative: str = "difference"
    last: float = 1.0

    def __call__(self, slope: Slope, teacher: Guided, states: Tensor, u: Tensor) -> Tensor:
        """Return the loss on runs of the teacher.

        Args:
            slope: the network.
            teacher: the slope that its runs follow.
            states: :math:`x/(\alpha + \beta)` on every run, shape `(batch, nodes, ...)`.
            u: their times, shape `(batch, nodes)`.
        """
        learn = self._of_pairs if self.objective == "trajectory" else self._of_ends
        return learn(slope, teacher, states, u)

    def _of_pairs(self, slope: Slope, teacher: Guided, states: Tensor, u: Tensor) -> Tensor:
        a, b = random_pairs(u, self.to_data, self.from_noise, self.last)
        each = torch.arange(len(u), device=u.device)
        y, start, stop = states[each, a], u[each, a], u[each, b]
        target = trajectory_target(y, states[each, b], start, stop)
        count = round(self.slope_share * len(u))
        if count:
            still, rest = slice(count), slice(count, None)
            own = part_of(teacher, still)(y[still], start[still])
            target, stop = torch.cat([own, target[rest]]), torch.cat([start[still], stop[rest]])
        return loss_of_slopes(slope(y, start, stop), target)

    def _of_ends(self, slope: Slope, teacher: Guided, states: Tensor, u: Tensor) -> Tensor:
        z, first, last = states[:, -1], u[:, 0], u[:, -1]
        between = torch.lerp(first, last.clamp(max=self.last), torch.rand_like(first))
        y = torch.lerp(torch.randn_like(z), z, expand_like(between, z))
        shares = 1 - self.slope_share, self.to_data
        # a derivative can be far off, and unweighted the training may follow it ever further
        power = 1.0 if self.objective == "mean_flow" else 0.0
        learn = MapObjective(self.objective, *shares, self.derivative, power)

        def exact(part: slice) -> Tensor:
            return part_of(teacher, part)(y[part], between[part])

        return learn(slope, y, between, last, exact, conditional=False)


def random_pairs(
    u: Tensor, to_data: float, from_noise: float, last: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the numbers of two nodes of every run, where steps begin and land.

    Pairs are drawn by their distance, since long steps have more to learn.

    Args:
        u: times of the nodes, ascending, shape `(batch, nodes)`.
        to_data: share that are made to land at the last node.
        from_noise: share that are made to begin at the first, independently.
        last: the clock up to which they begin, at the first node at least.
    """
    nodes = u.shape[1]
    length = (u[:, None, :] - u[:, :, None]).clamp(min=0)  # from, to
    at_start, at_end = torch.rand(2, len(u), 1, 1, device=u.device)
    node = torch.arange(nodes, device=u.device)
    early = (u <= last)[:, :, None]
    begins = ((at_start >= from_noise) & early) | (node == 0)[:, None]
    lands = (at_end >= to_data) | (node == nodes - 1)
    weight = torch.where(begins & lands, length, 0.0).flatten(1)
    pair = (weight / torch.empty_like(weight).exponential_()).argmax(1)  # does not wait, as a
    return pair // nodes, pair % nodes  # multinomial would
