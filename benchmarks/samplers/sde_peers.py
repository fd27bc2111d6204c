r"""The SDE samplers of others, driven as `peers` drives those of the ODE.

All are diffusers' own code, except for flow_grpo's step, from its formula: with sigma = 1 - t,
v = dx/dsigma, :math:`g = a\sqrt{\sigma/(1 - \sigma)}` (with the next sigma in the denominator
where sigma = 1) and :math:`\varepsilon = x + (1 - \sigma) v`,

.. math:: x \leftarrow x + \Big[v + \frac{g^2}{2\sigma}\varepsilon\Big] d\sigma
                       + g \sqrt{-d\sigma}\, \xi,

noise being added at every step, the last one included.

SASolver never arrives at the data by itself: it appends its last sigma in place of the end. Forced
grids end at `peers.END`, so that its tuned rows are those of a patched sampler.

References: Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470.
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


_FLOW = FLOW_PEERS["UniPC-2"].config
_SA = diffusers.SASolverScheduler
#: By their names in the tables. DDIM and ancestral Euler run on the variance preserving path,
#: asked for epsilon; the others on the linear one.
SDE_PEERS: dict[str, Peer] = {
    "flow_grpo": FlowGRPO(),
    "DPM++2M SDE": Flow(
        diffusers.DPMSolverMultistepScheduler, _FLOW | {"algorithm_type": "sde-dpmsolver++"}
    ),
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
