"""Tables of names: the only place where strings become objects.

A table maps names to constructors, or to objects (``DRAWS OPTIMIZERS PREDICTIONS VARIABLES``).
``register`` lets a program add a name. The name then works in configurations, on the command line
and in ``scoresde info``.
"""

from collections.abc import Callable
from typing import Any

from scoresde.arguments import nearest
from scoresde.registry.posteriors import POSTERIORS
from scoresde.registry.samplers import (
    SAMPLERS,
    GridSampler,
    ODESampler,
    Sampler,
    SDESampler,
)
from scoresde.registry.scoring import (
    DEQUANTISATIONS,
    METHODS,
    TRACES,
    Scoring,
)
from scoresde.registry.steps import (
    PREDICTIONS,
    SELF_PACED,
    STEPS,
    VARIABLES,
    build_step,
    grid_steps,
)
from scoresde.registry.tables import (
    AUGMENTATIONS,
    AUTOENCODERS,
    BETAS,
    CONDITIONS,
    COORDINATES,
    DATASETS,
    DISCRIMINATORS,
    DRAWS,
    GRIDS,
    NEEDY_GRIDS,
    NETWORKS,
    OBJECTIVES,
    OPTIMIZERS,
    PARAMETERIZATIONS,
    SDES,
    TIMES,
    WEIGHTINGS,
    Table,
    UnknownName,
    constructor,
    summary,
)

__all__ = [
    "AUGMENTATIONS",
    "AUTOENCODERS",
    "BETAS",
    "CONDITIONS",
    "COORDINATES",
    "DATASETS",
    "DEQUANTISATIONS",
    "DISCRIMINATORS",
    "DRAWS",
    "GRIDS",
    "METHODS",
    "NEEDY_GRIDS",
    "NETWORKS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PARAMETERIZATIONS",
    "POSTERIORS",
    "PREDICTIONS",
    "SAMPLERS",
    "SDES",
    "SELF_PACED",
    "STEPS",
    "TABLES",
    "TIMES",
    "TRACES",
    "VARIABLES",
    "WEIGHTINGS",
    "GridSampler",
    "ODESampler",
    "SDESampler",
    "Sampler",
    "Scoring",
    "Table",
    "UnknownName",
    "build_step",
    "constructor",
    "grid_steps",
    "register",
    "summary",
    "table_of",
]

TABLES: dict[str, Table[Any]] = {
    "sde": SDES,
    "parameterization": PARAMETERIZATIONS,
    "coordinate": COORDINATES,
    "network": NETWORKS,
    "autoencoder": AUTOENCODERS,
    "discriminator": DISCRIMINATORS,
    "condition": CONDITIONS,
    "step": STEPS,
    "sampler": SAMPLERS,
    "grid": GRIDS,
    "prediction": PREDICTIONS,
    "variable": VARIABLES,
    "weighting": WEIGHTINGS,
    "times": TIMES,
    "augment": AUGMENTATIONS,
    "draw": DRAWS,
    "objective": OBJECTIVES,
    "table": BETAS,
    "optimizer": OPTIMIZERS,
    "data": DATASETS,
    "method": METHODS,
    "dequantisation": DEQUANTISATIONS,
    "trace": TRACES,
    "posterior": POSTERIORS,
}
"""The tables by the argument or configuration key whose values they list."""


def register(table: Table[Any] | str, name: str, constructor: Callable[..., Any]) -> None:
    """Add a name to a table, such as ``register(NETWORKS, "mine", MyNetwork)``.

    ``table`` may be a name, "network" or "NETWORKS". The arguments of the constructor become keys
    of the configuration, with the ranges of their types, their defaults and their descriptions in
    the docstring (``scoresde.arguments``). Raises UnknownName for a table that does not exist,
    ValueError for a name that is already in the table.
    """
    if isinstance(table, str):
        found = TABLES.get(table, globals().get(table))
        if not isinstance(found, Table):
            raise UnknownName(f"unknown table {table!r}; {nearest(table, TABLES)}")
        table = found
    table.add(name, constructor)


def table_of(argument: str) -> Table[Any] | None:
    """The table that lists the values of this argument, or None."""
    return TABLES.get(argument)
