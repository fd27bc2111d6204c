"""Densities of what a model samples, its noise for given data, and bits per dimension."""

from fm_diffusers.likelihood.density import LogDensity, invert, log_prob
from fm_diffusers.likelihood.divergence import divergence, rademacher
from fm_diffusers.likelihood.integrators import Integrator, adaptive, on_grid
from fm_diffusers.likelihood.quantization import BitsPerDimension, bits_per_dimension, dequantize

__all__ = [
    "BitsPerDimension",
    "Integrator",
    "LogDensity",
    "adaptive",
    "bits_per_dimension",
    "dequantize",
    "divergence",
    "invert",
    "log_prob",
    "on_grid",
    "rademacher",
]
