"""Gaussian paths from noise to data, by name."""

from fm_diffusers.paths.base import Coefficients, GaussianPath, as_time, expand_like
from fm_diffusers.paths.continuous import (
    Cosine,
    Linear,
    NoiseLevel,
    Polynomial,
    VarianceExploding,
    VariancePreserving,
)
from fm_diffusers.paths.discrete import BETA_SCHEDULES, Discrete
from fm_diffusers.paths.interpolants import Interpolant

#: The paths by their names in a saved configuration. `PATHS["mine"] = MyPath` adds one; whoever
#: loads a pipeline saved with it must do the same first.
PATHS: dict[str, type[GaussianPath]] = {
    "linear": Linear,
    "cosine": Cosine,
    "polynomial": Polynomial,
    "variance_preserving": VariancePreserving,
    "variance_exploding": VarianceExploding,
    "noise_level": NoiseLevel,
    "discrete": Discrete,
    "interpolant": Interpolant,
}

__all__ = [
    "BETA_SCHEDULES",
    "PATHS",
    "Coefficients",
    "Cosine",
    "Discrete",
    "GaussianPath",
    "Interpolant",
    "Linear",
    "NoiseLevel",
    "Polynomial",
    "VarianceExploding",
    "VariancePreserving",
    "as_time",
    "expand_like",
]
