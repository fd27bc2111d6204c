r"""Flow matching for diffusers: train one model, sample it as an ODE or as an SDE, on any path."""

__version__ = "0.1.0"

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
