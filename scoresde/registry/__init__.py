"""From names to objects: the one place where a configuration's strings mean something.

The tables map the names of one ``kind`` to constructors whose keyword arguments are the other keys
of its section; those of ``SDES PARAMETERIZATIONS STEPS GRIDS WEIGHTINGS TIMES`` work without any,
but for ``NEEDY_GRIDS``.
"""

from scoresde.registry.models import (
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
from scoresde.registry.samplers import (
    SAMPLERS,
    GridSampler,
    ODESampler,
    Sampler,
    SDESampler,
    build_grid,
    build_sampler,
)
from scoresde.registry.scoring import (
    DEQUANTISATIONS,
    METHODS,
    TRACES,
    bound_of,
    build_estimator,
)
from scoresde.registry.steps import PREDICTIONS, SELF_PACED, STEPS, VARIABLES, build_step
from scoresde.registry.tables import (
    AUGMENTATIONS,
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
    "AUGMENTATIONS",
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
    "summary",
]
