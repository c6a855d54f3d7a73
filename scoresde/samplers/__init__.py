"""Samplers: a time grid (``grids``), a step (``steps``, ``combinators``), one loop (``loop``)."""

from scoresde.samplers import grids
from scoresde.samplers.adaptive import Adaptive, solve_adaptive
from scoresde.samplers.combinators import (
    Corrected,
    Kernel,
    Langevin,
    annealed_langevin,
    corrected,
    langevin,
)
from scoresde.samplers.grids import Grid
from scoresde.samplers.loop import State, Step, sample, trajectory
from scoresde.samplers.noise import BrownianPath, Noise, per_sample_noise, white_noise
from scoresde.samplers.steps import DDIM, Ancestral, EulerMaruyama, Heun, ReverseDiffusion

__all__ = [
    "DDIM",
    "Adaptive",
    "Ancestral",
    "BrownianPath",
    "Corrected",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Kernel",
    "Langevin",
    "Noise",
    "ReverseDiffusion",
    "State",
    "Step",
    "annealed_langevin",
    "corrected",
    "grids",
    "langevin",
    "per_sample_noise",
    "sample",
    "solve_adaptive",
    "trajectory",
    "white_noise",
]
