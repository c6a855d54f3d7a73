"""The scheduler_config.json of diffusers as a process and a parameterisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scoresde import betas as tables
from scoresde.coordinates import Index
from scoresde.parameterization import Informed, Parameterization, eps, v, x0
from scoresde.sde import SDE, DiscreteVP


@dataclass(frozen=True)
class Schedule:
    """What a scheduler says of a model.

    Args:
        sde: the process; the table of variances, in float64, is the truth.
        parameterization: what the output of the network means, and what it is told of the noise.
        variance: whether the network has a learned variance behind its output.
    """

    sde: SDE
    parameterization: Parameterization
    variance: bool = False


PREDICTIONS: Mapping[str, Parameterization] = {"epsilon": eps, "v_prediction": v, "sample": x0}
"""Parameterisations by ``prediction_type``."""


def schedule_of(config: Mapping[str, Any], nearest: bool = False) -> Schedule:
    """The schedule of a scheduler_config.json. Raises ValueError for what is not known."""
    levels = int(config.get("num_train_timesteps", 1000))
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    named: dict[str, Callable[[], tables.Betas]] = {
        "linear": lambda: tables.linear(start, end),
        "scaled_linear": lambda: tables.scaled_linear(start, end),
        "squaredcos_cap_v2": tables.cosine,
    }
    table = named[config.get("beta_schedule", "linear")]()(levels)
    if config.get("rescale_betas_zero_snr"):
        table = tables.zero_terminal(table)
    base = PREDICTIONS[config.get("prediction_type", "epsilon")]
    variance = config.get("variance_type") in ("learned", "learned_range")
    return Schedule(DiscreteVP(table), Informed(base, Index(levels, nearest)), variance)
