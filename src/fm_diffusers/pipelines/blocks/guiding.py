"""The guidance of a modular pipeline: that of the call, or else of its guider."""

from typing import Any

from torch import Tensor

from fm_diffusers.flow_map_networks import distilled_guidance
from fm_diffusers.pipelines.blocks.parts import Parts
from fm_diffusers.pipelines.guidance import Guidance, guidance_of, leads_away


def given_guidance(components: Any, guidance_scale: float | None) -> dict[str, Any]:
    """Return what `Asked` is told: the scale of a call, or else the component `guider`."""
    if guidance_scale is not None:
        return {"guidance_scale": guidance_scale}
    return {"guider": components.guider}


class LoopGuidance:
    """The guidance of one loop, which says at every step how much of the condition it takes.

    Args:
        components: the pipeline, whose scheduler has its timesteps.
        guidance_scale: that of the call; None leaves it to the guider.
    """

    def __init__(self, components: Any, guidance_scale: float | None) -> None:
        given: dict[str, Any] = {"guider": None, "guidance_scale": 1.0}
        given |= given_guidance(components, guidance_scale)
        guider, self.scale = given["guider"], given["guidance_scale"]
        self.compares = self.scale != 1 if guider is None else leads_away(guider)
        self.compares &= distilled_guidance(Parts.of(components).network) is None
        self.scale = self.scale if guider is None else guider.guidance_scale
        self.guidance = guidance_of(guider or self.scale, components.scheduler)

    def at(
        self, i: int, timesteps: Tensor, condition: Tensor | None, count: int
    ) -> float | Guidance:
        """Return the guidance of a step.

        Raises:
            ValueError: for a condition that was made for another guidance, or other images.
        """
        found, both = 0 if condition is None else len(condition), 2 * count
        if found != both and (self.compares or found not in (0, count)):
            raise ValueError(
                f"{count} samples need as many conditions, and as many null ones before them "
                f"where they are guided away from these, got {found}: pass the guidance_scale "
                "of the loop, or its guider, to the block that makes the condition too"
            )
        if isinstance(self.guidance, Guidance):
            return self.guidance.at(i, timesteps, self.scale, found == both)
        return self.guidance
