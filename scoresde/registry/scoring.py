"""Estimators of the likelihood: the objects that ``config.likelihood`` describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scoresde.config.schema import Likelihood
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
from scoresde.registry.tables import constructor, table
from scoresde.samplers import Grid
from scoresde.samplers.grids import log_snr, uniform
from scoresde.solvers import ODE_METHODS

DEQUANTISATIONS: Mapping[str, Callable[[], Dequantisation]] = table(
    uniform=Uniform, truncated_normal=TruncatedNormal, decoder=Decoder
)
VARIANCES: Mapping[str, float | None] = table(small=SMALL, large=LARGE, learned=LEARNED)
CHAINS: Mapping[str, Grid] = table(uniform=uniform, log_snr=log_snr)


def exactly(probes: int = 1) -> Trace:
    """The trace of the Jacobian, direction by direction."""
    return exact_trace


_TRACES: dict[str, Callable[..., Trace]] = {
    "exact": exactly,
    "hutchinson": Held,
    "hutch++": Sketched,
}
TRACES: Mapping[str, Callable[..., Trace]] = table(**_TRACES)
METHODS: Mapping[str, Callable[..., object]] = table(
    path=AlongPath,
    adaptive=Tolerant,
    elbo=Variational,
    discrete=Chain,
    **dict.fromkeys(ODE_METHODS, BlackBox),
)


def build_estimator(section: Likelihood, scaling: Levels) -> Estimator:
    """The estimator of ``config.likelihood`` for data of this scaling."""
    if section.method == "elbo":
        return bound_of(section, scaling)
    if section.method == "discrete":
        mix, grid = constructor(VARIANCES, section.variance), constructor(CHAINS, section.chain)
        return Chain(section.steps, mix, section.times, grid=grid)
    return FlowEstimator(_solver(section), dequantisation_of(section, scaling), section.t0)


def bound_of(section: Likelihood, scaling: Levels) -> Estimator:
    """The variational bound that goes with the dequantisation of the section."""
    law = dequantisation_of(section, scaling)
    if scaling.levels is None or section.dequantisation == "uniform":
        return Variational(section.times, dequantisation=law, t0=section.t0)
    return DecodedVariational(section.times, t0=section.t0)


def dequantisation_of(section: Likelihood, scaling: Levels) -> Dequantisation:
    """That of the section; real numbers have none."""
    if scaling.levels is None:
        return Continuous()
    return constructor(DEQUANTISATIONS, section.dequantisation)()


def _solver(section: Likelihood) -> FlowSolver:
    if section.method == "path":
        probes = None if section.trace == "exact" else section.probes
        return AlongPath(section.steps, probes, section.between)
    trace = constructor(TRACES, section.trace)(section.probes)
    if section.method == "adaptive":
        return Tolerant(section.rtol, section.atol, trace)
    return BlackBox(section.method, section.rtol, section.atol, section.steps, trace)
