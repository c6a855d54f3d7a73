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
from scoresde.samplers.integrals import EPS, X0, Prediction, Residual, V
from scoresde.samplers.loop import State, Step, sample, trajectory
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
from scoresde.samplers.noise import BrownianPath, Noise, per_sample_noise, white_noise
from scoresde.samplers.optimise import (
    Optimised,
    StoredGrid,
    load_grid,
    optimise_grid,
    save_grid,
    search_grid,
)
from scoresde.samplers.recommended import ArctanGrid, recommended
from scoresde.samplers.renoising import Churned, Restart, churn, restart
from scoresde.samplers.singlestep import (
    Scheme,
    Sequence,
    SingleStep,
    dpm_2,
    dpm_fast,
    dpm_solver_singlestep,
    dpmpp_2s,
)
from scoresde.samplers.steps import DDIM, Ancestral, EulerMaruyama, Heun, ReverseDiffusion
from scoresde.samplers.stochastic import DDPM, DPM2A, DPMpp2SA, DPMppSDE, EulerA
from scoresde.samplers.stochastic_multistep import (
    SASolver,
    StochasticMultistep,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
)

__all__ = [
    "DDIM",
    "DDPM",
    "DPM2A",
    "EPS",
    "X0",
    "Adaptive",
    "Ancestral",
    "ArctanGrid",
    "BrownianPath",
    "Churned",
    "Corrected",
    "DPMpp2SA",
    "DPMppSDE",
    "EulerA",
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
    "Sequence",
    "SingleStep",
    "State",
    "Step",
    "StochasticMultistep",
    "StoredGrid",
    "UniPC",
    "V",
    "annealed_langevin",
    "churn",
    "corrected",
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
    "grids",
    "ipndm",
    "ipndm_v",
    "langevin",
    "lms",
    "load_grid",
    "optimise_grid",
    "per_sample_noise",
    "plms",
    "recommended",
    "restart",
    "sample",
    "save_grid",
    "search_grid",
    "solve_adaptive",
    "trajectory",
    "unipc",
    "white_noise",
]
