"""Estimators of the likelihood: the objects that ``config.likelihood`` describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scoresde.likelihood import (
    AlongPath,
    BlackBox,
    Chain,
    Continuous,
    DecodedVariational,
    Decoder,
    Dequantisation,
    Estimator,
    FlowEstimator,
    FlowSolver,
    Held,
    Levels,
    Sketched,
    Tolerant,
    Trace,
    TruncatedNormal,
    Uniform,
    Variational,
    exact_trace,
)
from scoresde.likelihood.discrete import LARGE, LEARNED, SMALL
from scoresde.registry.tables import Table, constructor
from scoresde.samplers import Grid
from scoresde.samplers.grids import log_snr, uniform
from scoresde.solvers import ODE_METHODS

DEQUANTISATIONS: Table[Callable[[], Dequantisation]] = Table(
    {"uniform": Uniform, "truncated_normal": TruncatedNormal, "decoder": Decoder}
)
VARIANCES: Table[float | None] = Table(
    {"small": SMALL, "large": LARGE, "learned": LEARNED}, constructs=False
)
CHAINS: Table[Grid] = Table({"uniform": uniform, "log_snr": log_snr}, constructs=False)


def exactly(probes: int = 1) -> Trace:
    """The trace of the Jacobian, direction by direction."""
    return exact_trace


TRACES: Table[Callable[..., Trace]] = Table(
    {"exact": exactly, "hutchinson": Held, "hutch++": Sketched}
)
METHODS: Table[Callable[..., object]] = Table(
    {
        "path": AlongPath,
        "adaptive": Tolerant,
        "elbo": Variational,
        "discrete": Chain,
        **dict.fromkeys(ODE_METHODS, BlackBox),
    }
)


def build_estimator(section: Any, scaling: Levels) -> Estimator:
    """The estimator of ``config.likelihood`` for data of this scaling."""
    if section.method == "elbo":
        return bound_of(section, scaling)
    if section.method == "discrete":
        mix, grid = constructor(VARIANCES, section.variance), constructor(CHAINS, section.chain)
        return Chain(section.steps, mix, section.times, grid=grid)
    return FlowEstimator(_solver(section), dequantisation_of(section, scaling), section.t0)


def bound_of(section: Any, scaling: Levels) -> Estimator:
    """The variational bound that goes with the dequantisation of the section."""
    law = dequantisation_of(section, scaling)
    if scaling.levels is None or section.dequantisation == "uniform":
        return Variational(section.times, dequantisation=law, t0=section.t0)
    return DecodedVariational(section.times, t0=section.t0)


def dequantisation_of(section: Any, scaling: Levels) -> Dequantisation:
    """That of the section; real numbers have none."""
    if scaling.levels is None:
        return Continuous()
    return constructor(DEQUANTISATIONS, section.dequantisation)()


def _solver(section: Any) -> FlowSolver:
    if section.method == "path":
        probes = None if section.trace == "exact" else section.probes
        return AlongPath(section.steps, probes, section.between)
    trace = constructor(TRACES, section.trace)(section.probes)
    if section.method == "adaptive":
        return Tolerant(section.rtol, section.atol, trace)
    return BlackBox(section.method, section.rtol, section.atol, section.steps, trace)
