r"""The guider of a modular pipeline: how much of the condition a step takes.

`guidance_scale` of a call is the short form; without it the component `guider` says how much. From
which step to which is the guider's to say.
"""

import copy
from typing import Any

from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance

from fm_diffusers.pipelines.arguments import number


def guider_of(components: Any, guidance_scale: float | None) -> BaseGuidance:
    """Return the guider of one call: the component's copy, with the scale of the call if it says.

    Raises:
        ValueError: for a guider that the blocks do not know, or a scale that is no number.
    """
    guider = components.guider
    if type(guider) is not ClassifierFreeGuidance or guider.guidance_rescale:
        raise ValueError(
            "guider must be a ClassifierFreeGuidance without guidance_rescale, got "
            f"{type(guider).__name__}: a block of your own in the place of `denoiser` can do more"
        )
    guider = copy.copy(guider)
    if guidance_scale is not None:
        scale = number("guidance_scale", guidance_scale, "1 is no guidance")
        guider.guidance_scale = scale - guider.use_original_formulation
        guider.enable()
    return guider


def weight_of(guider: BaseGuidance) -> float:
    r"""Return w of :math:`q_\varnothing + w\,(q_c - q_\varnothing)` at the guider's step.

    Example:
        >>> weight_of(ClassifierFreeGuidance(2.0, use_original_formulation=True))
        3.0
        >>> guider = ClassifierFreeGuidance(2.0, start=0.5)
        >>> guider.set_state(step=0, num_inference_steps=10, timestep=None)
        >>> weight_of(guider)
        1.0
    """
    if not guider._is_cfg_enabled():
        return 1.0
    return guider.guidance_scale + float(guider.use_original_formulation)
