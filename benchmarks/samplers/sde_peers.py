r"""The SDE samplers of others, driven as `peers` drives those of the ODE.

All are diffusers' own code, except for two from their formulas. flow_grpo's step: with
sigma = 1 - t, v = dx/dsigma, :math:`g = a\sqrt{\sigma/(1 - \sigma)}` (with the next sigma in the
denominator where sigma = 1) and :math:`\varepsilon = x + (1 - \sigma) v`,

.. math:: x \leftarrow x + \Big[v + \frac{g^2}{2\sigma}\varepsilon\Big] d\sigma
                       + g \sqrt{-d\sigma}\, \xi,

noise being added at every step, the last one included. ER-SDE's, as ComfyUI's `er_sde` takes it:
with :math:`\lambda = \sigma/(1 - \sigma)`,
:math:`\phi(\lambda) = \lambda (e^{\lambda^{0.3}} + 10)`,
:math:`r = \phi(\lambda')/\phi(\lambda)`, D = E[z|x] and its divided differences D' and D'',

.. math:: \frac{x'}{1 - \sigma'} = r \frac{x}{1 - \sigma} + (1 - r) D
          + \Big[\Delta + \phi(\lambda') \int_{\lambda'}^{\lambda} \frac{dl}{\phi(l)}\Big] D'
          + \Big[\frac{\Delta^2}{2}
          + \phi(\lambda') \int_{\lambda'}^{\lambda} \frac{l - \lambda}{\phi(l)} dl\Big] D''
          + \sqrt{\lambda'^2 - \lambda^2 r^2}\, \xi, \qquad \Delta = \lambda' - \lambda,

the integrals by 200 points, from a first sigma of at most 0.9999, the last step x' = D.

SASolver never arrives at the data by itself: it appends its last sigma in place of the end. Forced
grids end at `peers.END`, so that its tuned rows are those of a patched sampler.

References: Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470; Cui et al., "Elucidating
the Solution Space of Extended Reverse-Time SDE", https://arxiv.org/abs/2309.06169.
"""

from dataclasses import dataclass

import diffusers
import torch
from diffusers.utils import torch_utils
from torch import Tensor

from benchmarks.samplers.peers import END, FLOW_PEERS, Flow, Peer, Preserving, counted
from benchmarks.samplers.spacings import Grid, logistic
from fm_diffusers.fields import Field


@dataclass(frozen=True)
class FlowGRPO(Peer):
    """Euler-Maruyama as flow_grpo does it, on the linear path."""

    scale: float = 0.7

    def __call__(
        self,
        velocity: Field,
        x: Tensor,
        nfe: int,
        grid: Grid | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample; by default with equal steps."""
        ask, sigmas = counted(velocity, nfe), (grid or logistic())(nfe)
        after = torch.cat([sigmas[1:], sigmas.new_zeros(1)])
        for sigma, end in zip(sigmas, after, strict=True):
            v = -ask(x, 1 - sigma)
            rest = 1 - (sigma if sigma < 1 else after[0])
            g = self.scale * torch.sqrt(sigma / rest)
            drift = v + g**2 / (2 * sigma) * (x + (1 - sigma) * v)
            xi = torch_utils.randn_tensor(x.shape, generator=generator, dtype=x.dtype)
            x = x + drift * (end - sigma) + g * torch.sqrt(sigma - end) * xi
        return x


@dataclass(frozen=True)
class ErSDE(Peer):
    """ER-SDE of order 3 as ComfyUI's `er_sde` runs it, on the linear path."""

    points: int = 200

    def __call__(
        self,
        velocity: Field,
        x: Tensor,
        nfe: int,
        grid: Grid | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample; by default with equal steps."""
        ask, sigmas = counted(velocity, nfe), (grid or logistic())(nfe).clamp(max=1 - 1e-4)
        ratios = sigmas / (1 - sigmas)
        past: list[Tensor] = []  # the divided differences of the step before
        for i, sigma in enumerate(sigmas):
            known = [x + sigma * ask(x, 1 - sigma)]
            if i + 1 == len(sigmas):
                return known[0]
            for order, before in enumerate(past[:2]):
                span = (ratios[i] - ratios[i - 1 - order]) / (1 + order)
                known.append((known[-1] - before) / span)
            start, stop = ratios[i], ratios[i + 1]
            step = (start - stop) / self.points
            at = stop + step * torch.arange(self.points, dtype=ratios.dtype)
            kept = self._scale(stop) / self._scale(start)
            y = kept * x / (1 - sigma) + (1 - kept) * known[0]
            for order, slope in enumerate(known[1:]):
                whole = ((at - start) ** order / self._scale(at)).sum() * step
                weight = (stop - start) ** (order + 1) / (order + 1) + self._scale(stop) * whole
                y = y + weight * slope
            xi = torch_utils.randn_tensor(x.shape, generator=generator, dtype=x.dtype)
            noise = torch.sqrt(stop**2 - (start * kept) ** 2)
            x, past = (1 - sigmas[i + 1]) * (y + noise * xi), known
        return x

    @staticmethod
    def _scale(ratio: Tensor) -> Tensor:
        return ratio * (torch.exp(ratio**0.3) + 10)


_FLOW = FLOW_PEERS["UniPC-2"].config
_SA = diffusers.SASolverScheduler
#: By their names in the tables. DDIM and ancestral Euler run on the variance preserving path,
#: asked for epsilon; the others on the linear one.
SDE_PEERS: dict[str, Peer] = {
    "flow_grpo": FlowGRPO(),
    "DPM++2M SDE": Flow(
        diffusers.DPMSolverMultistepScheduler, _FLOW | {"algorithm_type": "sde-dpmsolver++"}
    ),
    "er_sde": ErSDE(),
    "SASolver": Flow(_SA, _FLOW, end=END),
    "SASolver, tau=1": Flow(_SA, _FLOW | {"tau_func": lambda t: 1}, end=END),
    "FlowMatchEuler, stochastic": Flow(
        diffusers.FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}
    ),
    "LTX ancestral": Flow(diffusers.LTXEulerAncestralRFScheduler),
    "DDIM, eta=1": Preserving(
        diffusers.DDIMScheduler,
        {"clip_sample": False},
        {"eta": 1.0},
        native=({"timestep_spacing": "trailing"},),
        takes_grid=False,
    ),
    "EulerAncestral": Preserving(
        diffusers.EulerAncestralDiscreteScheduler,
        native=({"timestep_spacing": "trailing"},),
        takes_grid=False,
    ),
}
