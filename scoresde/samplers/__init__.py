"""Samplers: a time grid (``grids``), a step (``steps``, ``combinators``), one loop (``loop``)."""

from scoresde.samplers import grids
from scoresde.samplers.adaptive import DORMAND_PRINCE, EXPONENTIAL, Adaptive, solve_adaptive
from scoresde.samplers.combinators import (
    Corrected,
    Kernel,
    Langevin,
    annealed_langevin,
)
from scoresde.samplers.grids import Grid
from scoresde.samplers.integrals import EPS, X0, Prediction, Residual, V
from scoresde.samplers.loop import sample, trajectory
from scoresde.samplers.multistep import (
    Multistep,
    UniPC,
    deis,
    dpm_solver,
    dpmpp_2m,
    dpmpp_3m,
    eab,
    ipndm,
    ipndm_v,
    lms,
    plms,
    unipc,
)
from scoresde.samplers.noise import (
    BrownianPath,
    Noise,
    per_sample_noise,
    starting_noise,
    white_noise,
)
from scoresde.samplers.optimise import (
    Optimised,
    optimise_grid,
    search_grid,
)
from scoresde.samplers.protocols import State, Step
from scoresde.samplers.recommended import WIDE, ArctanGrid, recommended, suited_grid
from scoresde.samplers.renoising import Churned, Restart
from scoresde.samplers.singlestep import (
    Scheme,
    SingleStep,
    StepSequence,
    dpm_2,
    dpm_fast,
    dpm_solver_singlestep,
    dpmpp_2s,
)
from scoresde.samplers.steps import (
    DDIM,
    EulerMaruyama,
    Heun,
    ReverseDiffusion,
    ancestral,
    ddpm,
    euler_a,
)
from scoresde.samplers.stochastic import DPM2A, DPMpp2SA, DPMppSDE
from scoresde.samplers.stochastic_multistep import (
    SASolver,
    StochasticMultistep,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
)

__all__ = [
    "DDIM",
    "DORMAND_PRINCE",
    "DPM2A",
    "EPS",
    "EXPONENTIAL",
    "WIDE",
    "X0",
    "Adaptive",
    "ArctanGrid",
    "BrownianPath",
    "Churned",
    "Corrected",
    "DPMpp2SA",
    "DPMppSDE",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Kernel",
    "Langevin",
    "Multistep",
    "Noise",
    "Optimised",
    "Prediction",
    "Residual",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "Scheme",
    "SingleStep",
    "State",
    "Step",
    "StepSequence",
    "StochasticMultistep",
    "UniPC",
    "V",
    "ancestral",
    "annealed_langevin",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_fast",
    "dpm_solver",
    "dpm_solver_singlestep",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "eab",
    "euler_a",
    "grids",
    "ipndm",
    "ipndm_v",
    "lms",
    "optimise_grid",
    "per_sample_noise",
    "plms",
    "recommended",
    "sample",
    "search_grid",
    "solve_adaptive",
    "starting_noise",
    "suited_grid",
    "trajectory",
    "unipc",
    "white_noise",
]
