r"""Flow matching for diffusers: train one model, sample it as an ODE or as an SDE, on any path.

What this module names is imported when it is first used: `import fm_diffusers.paths` does not
import diffusers, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fm_diffusers.couplings import COUPLINGS
    from fm_diffusers.diffusions import DIFFUSIONS, Diffusion
    from fm_diffusers.flow_map_networks import (
        FlowMapDiTTransformer2DModel,
        FlowMapUNet2DConditionModel,
        FlowMapUNet2DModel,
    )
    from fm_diffusers.grids import GRIDS
    from fm_diffusers.modular import FlowMatchingBlocks, FlowMatchingModularPipeline
    from fm_diffusers.objectives import TIME_SAMPLERS
    from fm_diffusers.paths import PATHS, Coefficients, GaussianPath
    from fm_diffusers.pipeline import FlowMatchingPipeline
    from fm_diffusers.predictions import PREDICTIONS
    from fm_diffusers.scheduler import GaussianFlowScheduler
    from fm_diffusers.scheduling.conventions import TIME_CONVENTIONS, Convention
    from fm_diffusers.solvers import SOLVERS
    from fm_diffusers.weightings import WEIGHTINGS, Weighting

#: Where each name is at home.
_PLACES = {
    "couplings": ["COUPLINGS"],
    "diffusions": ["DIFFUSIONS", "Diffusion"],
    "flow_map_networks": [
        "FlowMapDiTTransformer2DModel",
        "FlowMapUNet2DConditionModel",
        "FlowMapUNet2DModel",
    ],
    "grids": ["GRIDS"],
    "modular": ["FlowMatchingBlocks", "FlowMatchingModularPipeline"],
    "objectives": ["TIME_SAMPLERS"],
    "paths": ["PATHS", "Coefficients", "GaussianPath"],
    "pipeline": ["FlowMatchingPipeline"],
    "predictions": ["PREDICTIONS"],
    "scheduler": ["GaussianFlowScheduler"],
    "scheduling.conventions": ["TIME_CONVENTIONS", "Convention"],
    "solvers": ["SOLVERS"],
    "weightings": ["WEIGHTINGS", "Weighting"],
}
_HOMES = {name: home for home, names in _PLACES.items() for name in names}
__all__ = [
    "COUPLINGS",
    "Coefficients",
    "Convention",
    "DIFFUSIONS",
    "Diffusion",
    "FlowMapDiTTransformer2DModel",
    "FlowMapUNet2DConditionModel",
    "FlowMapUNet2DModel",
    "FlowMatchingBlocks",
    "FlowMatchingModularPipeline",
    "FlowMatchingPipeline",
    "GRIDS",
    "GaussianFlowScheduler",
    "GaussianPath",
    "PATHS",
    "PREDICTIONS",
    "SOLVERS",
    "TIME_CONVENTIONS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Weighting",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names, imported or not."""
    return sorted({*globals(), *__all__})
