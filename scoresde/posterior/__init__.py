"""Posteriors of measurements y = A(x0) + noise, for every process, model and sampler."""

from scoresde.posterior.daps import DAPS
from scoresde.posterior.diffpir import DiffPIR
from scoresde.posterior.dps import DPS
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import GuideMethod, Method, Population, PopulationMethod, StepMethod
from scoresde.posterior.moment_matching import MomentMatching
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
    Scale,
)
from scoresde.posterior.pigdm import PiGDM
from scoresde.posterior.repaint import RePaint
from scoresde.posterior.replacement import LangevinReplacement, Replacement
from scoresde.posterior.tmpd import TMPD

__all__ = [
    "DAPS",
    "DPS",
    "TMPD",
    "Blur",
    "Crop",
    "DiffPIR",
    "Downsample",
    "Fourier",
    "Grey",
    "GuideMethod",
    "LangevinReplacement",
    "Linear",
    "LinearOperator",
    "Mask",
    "Measurement",
    "Method",
    "MomentMatching",
    "Nonlinear",
    "Operator",
    "PiGDM",
    "Population",
    "PopulationMethod",
    "RePaint",
    "Replacement",
    "Scale",
    "StepMethod",
]
