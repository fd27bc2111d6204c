r"""What a diffusion coefficient is: a rate, or what a whole step does.

A coefficient :math:`\sigma_t = \sqrt{2 n_t \alpha_t^a \beta_t^b}` is the row of its profile
:math:`n_t` and two powers, so that what solvers need stays in closed form near the noise and the
data. A coefficient that no :math:`\sigma_t` has, since what it does depends on both ends of a step
together, is a row without a profile: it says the :math:`K` of a step, and nothing else of it.

**At pure noise.** A coefficient with a negative power :math:`a` (memoryless, flow_grpo) is
infinite where :math:`\alpha_t = 0`. A solver of the SDE itself, which asks for :math:`\sigma_t`
at the start of a step, then takes that :math:`\alpha_t` at the end of the step, and all else at
its start: the one rule for every coefficient. On the linear path and from :math:`\sigma = 1 - t`
to :math:`\sigma'` flow_grpo's first step has :math:`\sigma_t = c \sqrt{\sigma/(1 - \sigma')}`,
which is its trainer's own. Solvers that go by :math:`K` need no rule: an infinite :math:`K`
forgets all noise.

**Windows.** With `windows` the coefficient acts on the steps whose middle lies in one of them, as
if there were none, and not at all on the others, which are those of the ODE.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fm_diffusers.paths import GaussianPath, as_time
from fm_diffusers.paths.base import is_number

Profile = Callable[[GaussianPath, Tensor, float], Tensor]
Integral = Callable[[GaussianPath, Tensor, Tensor, float], Tensor]
Windows = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Diffusion:
    r"""A coefficient :math:`\sigma_t = \sqrt{2 n_t \alpha_t^a \beta_t^b}` for any path.

    Attributes:
        profile: :math:`n_t` as a function `(path, t, scale)`; None where there is no
            :math:`\sigma_t` and `closed_integral` says what a step does.
        power: :math:`b`.
        scale: the strength `c`.
        closed_integral: :math:`K = \int n \alpha^a \beta^{b-2}` over a step as a function
            `(path, t, s, scale)`, where it is elementary on every path; elsewhere it is computed
            by Gauss-Legendre quadrature.
        alpha_power: :math:`a`.
        largest_scale: the largest `scale` that has a meaning.
        windows: intervals :math:`[t_a, t_b)` of time outside which it does not act; None is
            everywhere. See `windowed`.

    Raises:
        ValueError: without a profile and a closed integral, or if one of them is no function, for
            a scale out of range, or for intervals that are none.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> bump = Diffusion(lambda path, t, scale: scale * t * (1 - t), power=1)
        >>> bump.squared(Linear(), 0.5).item()  # 2 n beta
        0.25
    """

    profile: Profile | None = None
    power: float = 0
    scale: float = 1.0
    closed_integral: Integral | None = None
    alpha_power: float = 0
    largest_scale: float = math.inf
    windows: Windows | None = None

    def __post_init__(self) -> None:
        given = [f for f in (self.profile, self.closed_integral) if f is not None]
        if not given or not all(map(callable, given)):
            raise ValueError(
                "give a diffusion a function: a profile(path, t, scale) that returns n_t, or a "
                "closed_integral(path, t, s, scale) that returns K; got "
                f"profile={self.profile!r} and closed_integral={self.closed_integral!r}"
            )
        if not is_number(self.scale) or not 0 <= self.scale < math.inf:
            raise ValueError(
                f"the scale of a diffusion must be finite and at least 0, got {self.scale}"
            )
        if self.scale > self.largest_scale:
            raise ValueError(
                f"the scale of {self._named} must be at most {self.largest_scale:g}, where a step "
                f"has as much noise as it can have, got {self.scale}"
            )
        for window in self.windows or ():
            if not (len(window) == 2 and 0 <= window[0] < window[1] <= 1):
                raise ValueError(
                    "windows must be intervals of time with 0 <= t_a < t_b <= 1 (0 is noise, 1 is "
                    f"data), got {window}"
                )

    def squared(
        self,
        path: GaussianPath,
        t: float | Tensor,
        step: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        r"""Return :math:`\sigma_t^2`, the variance that `dW` adds for each unit of time.

        Args:
            path: the path of the samples.
            t: the times asked about.
            step: the two ends of the steps that ask; see the module on pure noise and windows.

        Raises:
            ValueError: if there is no :math:`\sigma_t`.
        """
        return 2 * self._during(step, path, t, self.power)

    def noise_weight(
        self,
        path: GaussianPath,
        t: float | Tensor,
        step: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        r"""Return :math:`\sigma_t^2/(2\beta_t)`: the drift is :math:`u_t` minus it times eps.

        Arguments and errors are those of `squared`.
        """
        return self._during(step, path, t, self.power - 1)

    def integral(self, path: GaussianPath, t: float | Tensor, s: float | Tensor) -> Tensor:
        r"""Return :math:`K = \int_t^s \sigma_\tau^2/(2\beta_\tau^2) d\tau` for t <= s < 1.

        It is infinite where the step forgets its noise altogether.
        """
        t, s = as_time(t), as_time(s)
        closed = self.closed_integral or self._quadrature
        whole = closed(path, t, s, self.scale)
        return whole if self.windows is None else torch.where(self.covers(t, s), whole, 0.0)

    def covers(self, t: Tensor, s: Tensor) -> Tensor:
        """Whether the middle of the steps from `t` to `s` lies in a window."""
        middle = (t + s) / 2
        if self.windows is None:
            return torch.ones_like(middle, dtype=torch.bool)
        covered = torch.zeros_like(middle, dtype=torch.bool)
        for start, stop in self.windows:
            covered = covered | ((start <= middle) & (middle < stop))
        return covered

    def acts(self, path: GaussianPath) -> bool:
        """Whether there is a step that it makes noisy."""
        for window in ((0.0, 1.0),) if self.windows is None else self.windows:
            inside = torch.linspace(*window, 1001, dtype=torch.float64)[1:-1]
            if self.profile is None:
                noise = self.integral(path, inside[:-1], inside[1:])
            else:
                noise = self.squared(path, inside)
            if (noise > 0).any():
                return True
        return False

    def check_rate(self) -> None:
        r"""Raise a `ValueError` if there is no :math:`\sigma_t`."""
        if self.profile is None:
            raise ValueError(
                f"{self._named} says what a whole step does and has no rate sigma_t at a time, "
                "which the solvers 'euler_maruyama' and 'stochastic_heun' and the weighting "
                "'sde_likelihood' ask for: take another solver such as 'ddim', or a diffusion "
                "with a profile such as 'flow_grpo'"
            )

    def warn_of_reach(self, wanted: Tensor, reach: Tensor) -> None:
        """Warn where a solver cannot follow what a row without a rate says of a step."""
        if self.profile is None and (wanted > reach).any():
            i = int((wanted > reach).nonzero()[0])
            warnings.warn(
                f"{self._named} asks for steps of K = {wanted[i]:.3g}, and a solver of order "
                f"above 1 follows K = {reach[i]:.3g} at most: it takes so much. Take 'ddim' or "
                "'euler' for the steps as they are defined",
                stacklevel=3,
            )

    @property
    def _named(self) -> str:
        from fm_diffusers.diffusions import name_of

        return name_of(self)

    def _during(
        self,
        step: tuple[Tensor, Tensor] | None,
        path: GaussianPath,
        t: float | Tensor,
        power: float,
    ) -> Tensor:
        """Return the rate in a step with a power of beta, 0 outside the windows."""
        self.check_rate()
        t = as_time(t)
        start, stop = (t, t) if step is None else step
        rate = self._rate(path, t, power, path.alpha(stop))
        return rate if self.windows is None else torch.where(self.covers(start, stop), rate, 0.0)

    def _rate(self, path: GaussianPath, t: Tensor, power: float, alpha_end: Tensor) -> Tensor:
        alpha, beta, *_ = path(t)
        alpha = torch.where(alpha > 0, alpha, alpha_end)
        assert self.profile is not None  # check_rate has seen to it
        return self.profile(path, t, self.scale) * alpha**self.alpha_power * beta**power

    def _quadrature(self, path: GaussianPath, t: Tensor, s: Tensor, scale: float) -> Tensor:
        # in -log(1 - t) the powers of beta that are singular at t = 1 become smooth
        start, stop = -torch.log1p(-t), -torch.log1p(-s)
        v = start[..., None] + (stop - start)[..., None] * _NODES.to(t)
        rest = torch.exp(-v)
        values = self._rate(path, 1 - rest, self.power - 2, path.alpha(1 - rest)) * rest
        return (stop - start) * (values * _WEIGHTS.to(t)).sum(-1)


_GAUSS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = (torch.from_numpy(_GAUSS[0]) + 1) / 2, torch.from_numpy(_GAUSS[1]) / 2


def windowed(diffusion: Diffusion, windows: Iterable[Sequence[float]]) -> Diffusion:
    r"""Return a coefficient that acts inside intervals of time only.

    A step is noisy if its middle lies in one of the intervals, and is then the step of `diffusion`
    itself; every other step is the ODE's.

    Args:
        diffusion: the coefficient.
        windows: intervals :math:`[t_a, t_b)`, 0 is noise and 1 is data; none at all is the ODE.

    Raises:
        ValueError: for what is no interval within [0, 1].

    Example:
        >>> from fm_diffusers.diffusions import get_diffusion
        >>> from fm_diffusers.paths import Linear
        >>> early = windowed(get_diffusion("cps"), [(0.0, 0.5)])
        >>> early.integral(Linear(), torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.75])) > 0
        tensor([ True, False])
    """
    given: list[Any] = [tuple(w) if isinstance(w, Sequence) else (w,) for w in windows]
    return replace(diffusion, windows=tuple(given))
