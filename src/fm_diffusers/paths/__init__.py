"""Gaussian paths from noise to data, by name."""

from fm_diffusers.paths.base import (
    Coefficients,
    GaussianPath,
    as_time,
    common_times,
    expand_like,
    snapped,
)
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

#: The paths by their names in a saved configuration. An entry is a class, made with its
#: parameters, with four coefficients and the inverse of the log signal-to-noise ratio:
#:
#:     class Square(GaussianPath):  # alpha = t^2, beta = 1 - t^2, and their derivatives
#:         def coefficients(self, t):
#:             return Coefficients(t**2, 1 - t**2, 2 * t, -2 * t)
#:
#:         def time(self, log_snr):  # the time at which log(alpha/beta) has this value
#:             return torch.sigmoid(log_snr).sqrt()
#:
#:     PATHS["square"] = Square
#:
#: Whoever loads a pipeline saved with such a name must do the same first.
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
    "common_times",
    "expand_like",
    "snapped",
]
