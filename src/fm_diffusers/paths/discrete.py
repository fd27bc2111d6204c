r"""The tables of DDPM as a path.

A diffusion model trained on `num_train_timesteps` steps knows the path at integers i only,
:math:`\alpha_i^2 = \bar\alpha_i = \prod_{j \le i} (1 - b_j)`. Here step i is the time
:math:`t = 1 - (i + 1)/N`, so that the last one is :math:`t = 0` and the clean data, before step 0,
:math:`t = 1`; between them the angle :math:`\theta = \arctan(\alpha/\beta)`, which is finite at
both, is linear:

.. math:: \alpha = \sin\theta, \quad \beta = \cos\theta, \quad
          \dot\alpha = \beta\dot\theta, \quad \dot\beta = -\alpha\dot\theta.

References: Ho et al., https://arxiv.org/abs/2006.11239; Nichol, Dhariwal,
https://arxiv.org/abs/2102.09672 (`squaredcos_cap_v2`); Lin et al.,
https://arxiv.org/abs/2305.08891 (`rescale_betas_zero_snr`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from fm_diffusers.paths.base import Coefficients, GaussianPath, check_finite, check_positive


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float32)


def _scaled_linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2


def _squared_cosine(n: int, start: float, end: float) -> Tensor:
    r"""Return betas of :math:`\bar\alpha(r) = \cos^2((r + .008)/1.008\; \pi/2)`, at most .999."""
    r = torch.arange(n + 1, dtype=torch.float64) / n
    bar = torch.cos((r + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999).float()


def _sigmoid(n: int, start: float, end: float) -> Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, n)) * (end - start) + start


#: diffusers' `beta_schedule`, as functions of the number of steps, `beta_start` and `beta_end`.
BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
    "sigmoid": _sigmoid,
}


@dataclass(frozen=True)
class Discrete(GaussianPath):
    r"""A DDPM table; its parameters are diffusers' (see the module).

    Attributes:
        num_train_timesteps: number N of steps.
        beta_start: first :math:`b_i`, where the schedule has one.
        beta_end: last one.
        beta_schedule: one of `BETA_SCHEDULES`.
        trained_betas: the table itself instead.
        rescale_betas_zero_snr: whether it is rescaled so that no data is left at the last step.
        snr_shift_scale: divisor of the ratios :math:`\alpha^2/\beta^2` (CogVideoX).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.num_train_timesteps, Integral) or self.num_train_timesteps < 1:
            raise ValueError(
                "num_train_timesteps must be an integer of at least 1, got "
                f"{self.num_train_timesteps!r}: it is the length of the table"
            )
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise ValueError(
                "rescale_betas_zero_snr must be True or False, got "
                f"{self.rescale_betas_zero_snr!r}: write it without quotes"
            )
        check_finite(beta_start=self.beta_start, beta_end=self.beta_end)
        check_positive(snr_shift_scale=self.snr_shift_scale)
        known = isinstance(self.beta_schedule, str) and self.beta_schedule in BETA_SCHEDULES
        if self.trained_betas is None and not known:
            names = ", ".join(BETA_SCHEDULES)
            raise ValueError(
                f"unknown beta_schedule {self.beta_schedule!r}: choose one of {names}, or give "
                "trained_betas"
            )
        if wrong := [b for b in self._table.tolist() if not 0 < b < 1]:
            raise ValueError(
                f"every beta must be between 0 and 1, exclusively, got {wrong[0]}: give another "
                "beta_start, beta_end or trained_betas"
            )

    @cached_property
    def _table(self) -> Tensor:
        """The betas before rescaling, in the float32 in which diffusers' networks were trained."""
        if self.trained_betas is not None:
            return torch.as_tensor(self.trained_betas, dtype=torch.float32).cpu()
        schedule = BETA_SCHEDULES[self.beta_schedule]
        return schedule(self.num_train_timesteps, self.beta_start, self.beta_end)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        r""":math:`\bar\alpha_i`, from products in float32 as diffusers' networks know them."""
        bar = torch.cumprod(1 - self._table, 0)
        if self.snr_shift_scale != 1:
            bar = bar.double()
            bar = bar / (self.snr_shift_scale + (1 - self.snr_shift_scale) * bar)
        if self.rescale_betas_zero_snr:
            root = bar.sqrt()
            bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return bar.double()

    @property
    def betas(self) -> Tensor:
        r""":math:`b_i = 1 - \bar\alpha_i/\bar\alpha_{i-1}`."""
        bar = self.alphas_cumprod
        return 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])

    @cached_property
    def _angles(self) -> Tensor:
        """The angles at equally spaced times from t = 0 to 1.

        Raises:
            ValueError: if a table of another length was given.
        """
        if len(self._table) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas must have num_train_timesteps = {self.num_train_timesteps} "
                f"entries, got {len(self._table)}"
            )
        bar = self.alphas_cumprod
        angles = torch.atan2(bar.sqrt(), (1 - bar).sqrt()).flip(0)
        angles = torch.cat([angles, angles.new_tensor([math.pi / 2])])
        if not (angles.diff() > 0).all():
            raise ValueError(
                "the signal-to-noise ratio must change from step to step of a table, and float32 "
                f"tells {int((angles.diff() > 0).sum())} of {len(angles) - 1} apart: give smaller "
                "betas, or fewer of them"
            )
        return angles

    @cached_property
    def _on_devices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _table_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the angles and what they lack of a right angle, in float64 on the CPU alone."""
        if device not in self._on_devices:
            both = self._angles, math.pi / 2 - self._angles
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            angles, rest = (table.to(dtype).to(device) for table in both)
            self._on_devices[device] = (angles, rest)
        return self._on_devices[device]

    def coefficients(self, t: Tensor) -> Coefficients:  # noqa: D102
        angles, rests = self._table_on(t.device)
        n, place = self.num_train_timesteps, t.to(angles.dtype) * self.num_train_timesteps
        # rates jump at nodes: a time that misses one by rounding is in the cell that begins there
        missed = min(64 * n * max(torch.finfo(x.dtype).eps for x in (t, angles)), 0.01)
        cell = (place + missed).floor().clamp(0, n - 1)
        share, first = place - cell, cell.nan_to_num().long()  # no time, no coefficients

        def between(table: Tensor) -> Tensor:
            start, stop = table.take(first), table.take(first + 1)
            # from the nearer end of the cell, so that the table's entries come out as they are
            return torch.where(
                share < 0.5, start + share * (stop - start), stop - (1 - share) * (stop - start)
            )

        rate = (angles.take(first + 1) - angles.take(first)) * n
        alpha, beta = torch.sin(between(angles)), torch.sin(between(rests))
        values = (alpha, beta, rate * beta, -rate * alpha)
        return Coefficients(*(value.to(t.dtype) for value in values))

    def time(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        angles, n = self._table_on(log_snr.device)[0], self.num_train_timesteps
        angle = torch.atan(torch.exp(log_snr.to(angles.dtype)))
        cell = (torch.searchsorted(angles, angle, right=True) - 1).clamp(0, n - 1)
        start, stop = angles.take(cell), angles.take(cell + 1)
        share = (angle - start) / (stop - start)
        return ((cell + share) / n).to(log_snr.dtype)
