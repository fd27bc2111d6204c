r"""Flow maps: where the sampling ODE leads from one time to another, learned as one function.

On the clock :math:`u = \alpha/(\alpha + \beta)`, with :math:`y = x/(\alpha + \beta)`, every
Gaussian path is the linear one, and the sampling ODE is :math:`dy/du = F(y, u)` with the canonical
velocity :math:`F = E[z - \varepsilon | x]`. Its flow map is

.. math:: Y(y; u \to v) = y + (v - u)\, G(y, u, v), \qquad
          G(y, u, v) = \frac{1}{v - u} \int_u^v F(y_w, w)\, dw, \qquad G(y, u, u) = F(y, u),

so that a network which predicts the *average slope* G draws in one evaluation, in any number of
them, on every path, and as an SDE: a noisy step is the map to the time t' of its landing, noised
back exactly (`fm_diffusers.solvers.base`).

What G is regressed on is one of three things. **Trajectory**: the average slope between two states
of one run of a teacher, which needs no derivative and is deterministic. **Mean flow**: that
:math:`Y(y_u; u \to v)` does not change along the flow, which is

.. math:: G(y, u, v) = F(y, u) + (v - u)\, \frac{d}{du} G(y_u, u, v),
          \qquad \frac{d}{du} = F \cdot \nabla_y + \partial_u,

with F from a teacher or, as for flow matching, conditional: the posterior mean of the right side
is what remains. **Self-consistency**: a step is two half steps. All targets are constants of the
optimisation (stop-gradient).

References: Geng et al., "Mean Flows for One-step Generative Modeling",
https://arxiv.org/abs/2505.13447; Geng et al., "Improved Mean Flows",
https://arxiv.org/abs/2512.02012 (the derivative along the network's own slope); Frans et al.,
"One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557; Boffi et al., "Flow Map
Matching", https://arxiv.org/abs/2406.07507; Kim et al., "Consistency Trajectory Models",
https://arxiv.org/abs/2310.02279.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fm_diffusers.fields import GaussianMixture
from fm_diffusers.paths import Linear, expand_like
from fm_diffusers.solvers import integrate_adaptive
from fm_diffusers.tables import look_up

#: An average slope `G(y, u, v)`: of states of shape `(batch, ...)` and times of shape `(batch,)`.
AverageSlope = Callable[[Tensor, Tensor, Tensor], Tensor]

#: The half step of the symmetric difference: a shorter one magnifies what the network has of noise
#: between neighbouring times, a longer one blurs the map.
DIFFERENCE = 0.015


def mapped(y: Tensor, u: Tensor, v: Tensor, average_slope: Tensor) -> Tensor:
    """Return :math:`y + (v - u) G`, with times of shape `(batch,)` or numbers."""
    return y + expand_like(torch.as_tensor(v - u), y) * average_slope


def trajectory_target(y_a: Tensor, y_b: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""Return the average slope :math:`(y_b - y_a)/(b - a)` between two states of one run.

    Args:
        y_a: states :math:`x/(\alpha + \beta)`, shape `(batch, ...)`.
        y_b: where the same run is at the times `b`.
        a: times u, shape `(batch,)`.
        b: other times, shape `(batch,)`.

    Raises:
        ValueError: for two equal times, between which no slope is known.
    """
    if a.device.type == "cpu" and (a == b).any():
        raise ValueError("a and b must differ for every sample: the slope at one time is F itself")
    return (y_b - y_a) / expand_like(b - a, y_a)


def _jvp(average_slope: AverageSlope, y: Tensor, u: Tensor, v: Tensor, slope: Tensor) -> Tensor:
    ahead = (slope, torch.ones_like(u))
    here = (y.contiguous(), u.contiguous())  # torch takes no expanded tensors
    try:
        return torch.func.jvp(lambda y, u: average_slope(y, u, v), here, ahead)[1]
    except NotImplementedError as error:
        raise ValueError(
            "derivative 'jvp' takes forward-mode derivatives, and the network has an operation "
            f"without one ({str(error).splitlines()[0]}): take 'difference'"
        ) from error


def _difference(
    average_slope: AverageSlope, y: Tensor, u: Tensor, v: Tensor, slope: Tensor
) -> Tensor:
    # within [0, 1], on one side of v, and before the data, where a slope may divide by 0
    after = torch.minimum(torch.full_like(u, DIFFERENCE), (v - u).clamp(min=0) / 2)
    before = torch.minimum(torch.full_like(u, DIFFERENCE), u)
    ends = [average_slope(mapped(y, u, u + h, slope), u + h, v) for h in (after, -before)]
    length = (after + before).clamp(min=torch.finfo(u.dtype).tiny)
    return (ends[0] - ends[1]) / expand_like(length, y)


#: Ways to the derivative of the average slope along the flow: `jvp` is exact, for networks whose
#: operations have forward-mode derivatives; `difference` takes two evaluations, `DIFFERENCE`
#: before and after in u along the slope, and serves any network: with an error of second order in
#: the step, but of first order at the noise, where it looks further ahead than back.
DERIVATIVES = {"jvp": _jvp, "difference": _difference}


@torch.no_grad()
def mean_flow_target(
    average_slope: AverageSlope,
    y: Tensor,
    u: Tensor,
    v: Tensor,
    slope: Tensor,
    along: Tensor | None = None,
    derivative: str = "difference",
) -> Tensor:
    r"""Return :math:`F + (v - u)\, dG/du`, the mean-flow target of :math:`G(y, u, v)`.

    Args:
        average_slope: the network's :math:`G(y, u, v)`.
        y: states, shape `(batch, ...)`.
        u: their times, shape `(batch,)`.
        v: the times of landing, shape `(batch,)`.
        slope: :math:`F`, a teacher's or the conditional :math:`z - \varepsilon`.
        along: the slope along which G is differentiated; by default `slope`. With a conditional
            slope the network's own :math:`G(y, u, u)` has less variance and the same minimiser.
        derivative: a name in `DERIVATIVES`.

    Raises:
        ValueError: for an unknown derivative.
    """
    find = look_up("derivative", DERIVATIVES, derivative)
    change = find(average_slope, y, u, v, slope if along is None else along)
    return slope + expand_like(v - u, y) * change


@torch.no_grad()
def self_consistency_target(
    average_slope: AverageSlope, y: Tensor, u: Tensor, v: Tensor
) -> Tensor:
    r"""Return the mean of G over the two halves of a step: :math:`G(y, u, v)` is to be that.

    It says nothing about G at u = v; there the slope itself is regressed.
    """
    middle = (u + v) / 2
    first = average_slope(y, u, middle)
    return (first + average_slope(mapped(y, u, middle, first), middle, v)) / 2


# --- exact maps, to measure against --------------------------------------------------------------


def exact_average_slope(data: GaussianMixture, accuracy: float = 1e-10) -> AverageSlope:
    r"""Return the exact :math:`G(y, u, v)` of a mixture of Gaussians.

    Of one Gaussian it is in closed form: with :math:`S_u^2 = u^2 s^2 + (1 - u)^2` the number
    :math:`(y - u m)/S_u` does not change along the flow, so that

    .. math:: Y(y; u \to v) = v m + \frac{S_v}{S_u} (y - u m).

    Of several it is found by integration.

    Args:
        data: the mixture, in float64 for an oracle.
        accuracy: relative and absolute tolerance of the integration.
    """
    if len(data.means) == 1:
        return _of_gaussian(data.means[0], torch.as_tensor(data.stds)[0])
    field = data.field(Linear())

    def slope(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if u == v:
            return field(y, u)
        ends = (u.item(), v.item())
        end = integrate_adaptive(
            Linear(), field, y, *ends, rtol=accuracy, atol=accuracy, method="dopri8"
        )
        return (end - y) / (v - u)

    def average_slope(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        times, found = torch.stack([t.expand(len(y)) for t in (u, v)], 1), torch.empty_like(y)
        for pair in times.unique(dim=0):
            there = (times == pair).all(1)
            found[there] = slope(y[there], *pair)
        return found

    return average_slope


def _of_gaussian(mean: Tensor, std: Tensor) -> AverageSlope:
    def average_slope(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        u, v = (expand_like(t.expand(len(y)), y) for t in (u, v))
        size, size_end = (torch.hypot(t * std, 1 - t) for t in (u, v))
        # (size_end - size)/(v - u) without its 0/0 at u = v
        growth = ((u + v) * (1 + std**2) - 2) / (size_end + size)
        return mean + growth / size * (y - u * mean)

    return average_slope
