"""Posteriors of measurements y = A(x0) + noise, for every process, model and sampler."""

from scoresde.posterior.measurement import Measurement
from scoresde.posterior.operators import (
    Blur,
    Crop,
    Downsample,
    Fourier,
    Grey,
    Linear,
    LinearOperator,
    Mask,
    Nonlinear,
    Operator,
)

__all__ = [
    "Blur",
    "Crop",
    "Downsample",
    "Fourier",
    "Grey",
    "Linear",
    "LinearOperator",
    "Mask",
    "Measurement",
    "Nonlinear",
    "Operator",
]
