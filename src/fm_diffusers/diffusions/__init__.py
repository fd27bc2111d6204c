r"""The diffusion coefficient :math:`\sigma_t` of the sampling SDE.

Every Gaussian path has a family of SDEs with the same marginals,

.. math:: dX = \Big[u_t + \tfrac{\sigma_t^2}{2} \nabla\log p_t\Big] dt + \sigma_t\, dW
             = \Big[u_t - \tfrac{\sigma_t^2}{2\beta_t} \varepsilon_t\Big] dt + \sigma_t\, dW,

one for every coefficient :math:`\sigma_t` of :math:`dW` (not its half square, as some write);
:math:`\sigma = 0` is the ODE. What solvers need of it is

- :math:`\sigma_t^2/(2\beta_t)`, the weight of the noise prediction in the drift;
- :math:`K = \int_t^s \sigma_\tau^2/(2\beta_\tau^2) d\tau`, how far a step forgets its noise: over
  it the noise in the sample keeps the factor :math:`e^{-K}`.

Some samplers say what a whole step does, :math:`K` alone: they are rows too, for every solver that
goes by :math:`K`. That of two of them, `cps` and `refresh`, does not shrink with the step, so that
they are not steps of any SDE; solvers of order above 1 take only as much of it as they can follow
(`fm_diffusers.solvers`), and say so.

References: Song et al., https://arxiv.org/abs/2011.13456; Ma et al., "SiT",
https://arxiv.org/abs/2401.08740 (whose coefficient `w` is half our sigma^2);
Domingo-Enrich et al., "Adjoint Matching", https://arxiv.org/abs/2409.08861 (memoryless);
Liu et al., "Flow-GRPO", https://arxiv.org/abs/2505.05470; Xue et al., "DanceGRPO",
https://arxiv.org/abs/2505.07818; Wang, Yu, "Coefficients-Preserving Sampling",
https://arxiv.org/abs/2509.05952; Zheng et al., "DiffusionNFT", https://arxiv.org/abs/2509.16117;
"Precise", https://arxiv.org/abs/2605.23522; Cui et al., "ER-SDE",
https://arxiv.org/abs/2309.06169; Song et al., "DDIM", https://arxiv.org/abs/2010.02502 (eta).
"""

from dataclasses import replace

from fm_diffusers.diffusions import coefficients as row
from fm_diffusers.diffusions.base import Diffusion, windowed

#: The coefficients by their names in a saved configuration; the comment is sigma_t^2, or for a row
#: that says what a step does the standard deviation of its noise over beta at its end, with r the
#: signal-to-noise ratio before over the one after.
#:
#: An entry is a `Diffusion`, made of functions with these signatures:
#:
#:     def profile(path: GaussianPath, t: Tensor, scale: float) -> Tensor: ...         # n_t
#:     def integral(path: GaussianPath, t: Tensor, s: Tensor, scale: float) -> Tensor: ...  # K
#:
#:     # sigma_t^2 = 2 c t (1 - t) beta
#:     DIFFUSIONS["bump"] = Diffusion(lambda path, t, scale: scale * t * (1 - t), power=1)
#:     # every step keeps half of the noise it finds
#:     DIFFUSIONS["half"] = Diffusion(
#:         closed_integral=lambda path, t, s, scale: torch.full_like(t, scale * math.log(2))
#:     )
#:     scheduler = GaussianFlowScheduler(diffusion="bump", diffusion_kwargs={"scale": 0.5})
#:
#: Whoever loads a scheduler saved with such a name must do the same first.
DIFFUSIONS: dict[str, Diffusion] = {
    "constant": Diffusion(row.constant),  # c^2
    "beta": Diffusion(row.flat, power=1),  # 2 c beta, SiT's "sigma"
    "beta_squared": Diffusion(row.flat, 2, closed_integral=row.flat_integral),  # 2 c beta^2
    "linear": Diffusion(row.linear),  # 2 c (1 - t)
    "decreasing": Diffusion(row.decreasing),  # (c cos(pi t) + 1)^2 / 2
    "increasing_decreasing": Diffusion(row.increasing_decreasing),  # 2 c sin(pi t)^2
    "memoryless": Diffusion(  # 2 c beta D/alpha
        row.memoryless, closed_integral=row.memoryless_integral, alpha_power=-1
    ),
    "flow_grpo": Diffusion(  # c^2 beta D/alpha
        row.flow_grpo, scale=0.7, closed_integral=row.flow_grpo_integral, alpha_power=-1
    ),
    "zero_ends": Diffusion(row.flat, power=1, alpha_power=1),  # 2 c alpha beta
    "er_sde": Diffusion(  # ComfyUI's er_sde
        row.er_sde, 0.3, closed_integral=row.er_sde_integral, alpha_power=-1.3
    ),
    "dance": Diffusion(row.constant, scale=0.3),  # c^2
    # what a step does
    "precise": Diffusion(scale=0.7, closed_integral=row.flow_grpo_integral),  # sqrt(1 - r^(c^2))
    "dance_precise": Diffusion(scale=0.3, closed_integral=row.dance_precise),
    "cps": Diffusion(scale=0.7, closed_integral=row.cps, largest_scale=1),  # sin(c pi/2)
    "refresh": Diffusion(closed_integral=row.cps, largest_scale=1),  # 1: all noise is new
    "ancestral": Diffusion(closed_integral=row.ancestral, largest_scale=1),  # c sqrt(1 - r^2)
    "nft": Diffusion(closed_integral=row.ancestral, largest_scale=1),  # c sqrt(1 - r^2)
    "euler_ancestral_rf": Diffusion(closed_integral=row.euler_ancestral_rf, largest_scale=1),
}


def name_of(diffusion: Diffusion) -> str:
    """Return how to call a coefficient in a message: its names in `DIFFUSIONS`, if it has any."""
    made_of = (diffusion.profile, diffusion.closed_integral)
    same = [n for n, d in DIFFUSIONS.items() if (d.profile, d.closed_integral) == made_of]
    as_it_is = [name for name in same if DIFFUSIONS[name].scale == diffusion.scale]
    names = " or ".join(map(repr, as_it_is or same))
    return f"the diffusion {names}" if names else "this diffusion"


def get_diffusion(name: str, scale: float | None = None) -> Diffusion:
    """Return the coefficient of that name, with its own scale or the given one.

    Raises:
        ValueError: if the name is unknown, its entry no `Diffusion`, or the scale out of range.

    Example:
        >>> from fm_diffusers.paths import Linear
        >>> get_diffusion("beta", scale=0.5).squared(Linear(), 0.25).item()  # 2 c beta
        0.75
    """
    if name not in DIFFUSIONS:
        raise ValueError(
            f"unknown diffusion {name!r}: choose one of {', '.join(DIFFUSIONS)}, "
            "or None for the ODE"
        )
    found = DIFFUSIONS[name]
    if not isinstance(found, Diffusion):
        raise ValueError(
            f"DIFFUSIONS[{name!r}] must be a Diffusion, got {found!r}: write DIFFUSIONS[{name!r}] "
            "= Diffusion(profile) with a function profile(path, t, scale) that returns "
            "sigma_t^2/2 at the times t as a tensor like t"
        )
    return found if scale is None else replace(found, scale=scale)


__all__ = ["DIFFUSIONS", "Diffusion", "get_diffusion", "name_of", "windowed"]
