"""From names to objects: the one place where a configuration's strings mean something.

The tables map the names of one ``kind`` to constructors whose keyword arguments are the other keys
of its section; those of ``SDES PARAMETERIZATIONS STEPS GRIDS WEIGHTINGS TIMES`` work without any,
but for ``NEEDY_GRIDS``.
"""

from scoresde.build.models import (
    Described,
    build_dataset,
    build_learning_rate,
    build_model,
    build_network,
    build_optimizer,
    build_plan,
    build_sde,
    build_weight,
)
from scoresde.build.runs import LoadedRun, load_model, load_run, load_width
from scoresde.build.samplers import (
    SAMPLERS,
    GridSampler,
    ODESampler,
    Sampler,
    SDESampler,
    build_grid,
    build_sampler,
)
from scoresde.build.scoring import (
    DEQUANTISATIONS,
    METHODS,
    TRACES,
    bound_of,
    build_estimator,
)
from scoresde.build.steps import PREDICTIONS, SELF_PACED, STEPS, VARIABLES, build_step
from scoresde.build.tables import (
    DATASETS,
    DRAWS,
    GRIDS,
    NEEDY_GRIDS,
    NETWORKS,
    OPTIMIZERS,
    PARAMETERIZATIONS,
    SDES,
    TIMES,
    WEIGHTINGS,
    construct,
    constructor,
    summary,
)

__all__ = [
    "DATASETS",
    "DEQUANTISATIONS",
    "DRAWS",
    "GRIDS",
    "METHODS",
    "NEEDY_GRIDS",
    "NETWORKS",
    "OPTIMIZERS",
    "PARAMETERIZATIONS",
    "PREDICTIONS",
    "SAMPLERS",
    "SDES",
    "SELF_PACED",
    "STEPS",
    "TIMES",
    "TRACES",
    "VARIABLES",
    "WEIGHTINGS",
    "Described",
    "GridSampler",
    "LoadedRun",
    "ODESampler",
    "SDESampler",
    "Sampler",
    "bound_of",
    "build_dataset",
    "build_estimator",
    "build_grid",
    "build_learning_rate",
    "build_model",
    "build_network",
    "build_optimizer",
    "build_plan",
    "build_sampler",
    "build_sde",
    "build_step",
    "build_weight",
    "construct",
    "constructor",
    "load_model",
    "load_run",
    "load_width",
    "summary",
]
