"""One interface to all estimators of log p: for real numbers or pixel levels, exact or a bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, Protocol, Self, final

import torch
from torch import Tensor

from scoresde.arguments import Count, Positive, Range, check_fields
from scoresde.denoiser import Denoiser
from scoresde.likelihood.bounds import elbo
from scoresde.likelihood.dequantise import (
    Continuous,
    Decoder,
    Dequantisation,
    Quantisation,
    middles,
    tight_time,
)
from scoresde.likelihood.discrete import SMALL, discrete_elbo
from scoresde.likelihood.divergence import EXACT, Divergence, Hutchinson, HutchPlusPlus
from scoresde.likelihood.flow import LogLikelihood, adaptive_log_likelihood, log_likelihood
from scoresde.likelihood.path import (
    GREGORY,
    Orthogonal,
    Probing,
    default_tolerance,
    path_log_likelihood,
)
from scoresde.samplers import Grid, Noise
from scoresde.samplers.grids import uniform
from scoresde.sde import SDE
from scoresde.solvers import FIXED_STEP_METHODS

CONTINUOUS, DECODER = Continuous(), Decoder()
LOOSER = 10.0
"""Factor on the tolerances of a coarser solve."""


class Estimate(NamedTuple):
    """One draw of log P (B,) in nats, the number of denoiser calls, and the error of the solver.

    The error (B,) is an estimate in nats; None if there is no solver, NaN if not estimated. A
    sample that the solver did not finish has log P NaN and an infinite error. Of pictures through
    a codec there are -log P(k | z) and -log q(z | x) (B,), None of others.
    """

    log_prob: Tensor
    nfe: int
    solver_error: Tensor | None = None
    distortion: Tensor | None = None
    entropy: Tensor | None = None


class Estimator(ABC):
    """A random estimate of log P, unbiased for the quantity that ``bounds`` names."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        """Estimate for pixel levels ``x`` (B, ...), or real numbers if ``scaling.levels`` is None.

        All randomness comes from ``noise``; with one stream per sample, a value does not depend
        on the batch.
        """

    @property
    @abstractmethod
    def bounds(self) -> str:
        """The quantity that is estimated, in words for a report."""

    @abstractmethod
    def start(self, sde: SDE, scaling: Quantisation) -> float:
        """The time t_0 at which the model takes over."""

    def halved(self) -> tuple[Self, Self] | None:
        """Two estimators whose difference shows the error of the solver.

        They have the same random probes, and the second has about half the cost. None if there is
        no solver, its cost cannot be halved, or it estimates all of its error.
        """
        return None


# --- the trace of the Jacobian ------------------------------------------------------------------


class Trace(Protocol):
    """A factory of the divergence of one solve; ``Exact`` is one too."""

    def held(self, x: Tensor, noise: Noise) -> Divergence:
        """The divergence at states like ``x``, with probes drawn once from ``noise``."""


@final
@dataclass(frozen=True)
class HutchinsonTrace:
    """Hutchinson's estimate, with random signs fixed for the solve.

    As many probes as dimensions cost as much as the exact trace, which replaces them.

    Args:
        probes: random probes for each sample.
    """

    probes: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def held(self, x: Tensor, noise: Noise) -> Divergence:
        if self.probes >= x[0].numel():
            return EXACT
        return Hutchinson(signs(x, self.probes, noise))


@final
@dataclass(frozen=True)
class HutchPlusPlusTrace:
    """Hutch++, with sketch and probes fixed for the solve.

    The exact trace replaces it where the three products of each probe cost as much.

    Args:
        probes: random probes for each sample, and directions of its sketch.
    """

    probes: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def held(self, x: Tensor, noise: Noise) -> Divergence:
        if 3 * self.probes >= x[0].numel():
            return EXACT
        return HutchPlusPlus(signs(x, self.probes, noise), signs(x, self.probes, noise))


def signs(x: Tensor, n: int, noise: Noise) -> Tensor:
    """Random signs (n, *x.shape) from ``noise``."""
    return torch.stack([torch.where(noise(x) < 0, -1.0, 1.0).to(x) for _ in range(n)])


# --- solvers of the flow ------------------------------------------------------------------------


class FlowSolver(ABC):
    """Computes log p at ``t0`` of states ``x`` (B, ...) by the probability flow."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float
    ) -> LogLikelihood: ...

    @abstractmethod
    def halved(self) -> tuple[Self, Self] | None:
        """Two solvers with the same random probes, as in ``Estimator.halved``."""


@final
@dataclass(frozen=True)
class GridFlow(FlowSolver):
    """The flow in equal steps of lam, with fresh probes of the divergence at each node.

    Args:
        nodes: steps of the quadrature, at least 12.
        probes: orthogonal probes at each node; None, or as many as dimensions, computes the exact
            trace.
        between: solver steps for each step of the quadrature.
        tolerance: error of a sample in nats above which it is solved again; by default 0.05, and
            at least 0.002 per dimension.
        held: use the same probes at every node, to compare solves with other nodes.
        looser: factor of the tolerance, 16 for a solve with half the nodes to compare with.
    """

    nodes: Annotated[int, Range(ge=2 * GREGORY)] = 64
    probes: Count | None = 1
    between: Count = 1
    tolerance: Positive | None = None
    held: bool = False
    looser: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        probing: Probing = EXACT
        if self.probes is not None and self.probes < x[0].numel():
            probing = Orthogonal(signs(x, 1, noise), self.probes, self.held)
        tolerance = default_tolerance(x[0].numel()) if self.tolerance is None else self.tolerance
        return path_log_likelihood(
            denoiser,
            x,
            probing,
            t0=t0,
            nodes=self.nodes,
            between=self.between,
            tolerance=self.looser * tolerance,
        )

    def halved(self) -> tuple[GridFlow, GridFlow] | None:
        nodes = self.nodes // 2
        if self.probes is None or nodes < 2 * GREGORY:
            return None
        # Errors fall with h^4: each sample is solved again where the other solves it again.
        looser = replace(self, held=True, nodes=nodes, looser=2**4 * self.looser)
        return replace(self, held=True), looser


@final
@dataclass(frozen=True)
class AdaptiveFlow(FlowSolver):
    """The flow at a tolerance, with adaptive steps for each sample.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        trace: estimator of the divergence.
    """

    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    trace: Trace = HutchinsonTrace()

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        divergence = self.trace.held(x, noise)
        return adaptive_log_likelihood(
            denoiser, x, divergence, t0=t0, rtol=self.rtol, atol=self.atol, strict=False
        )

    def halved(self) -> tuple[AdaptiveFlow, AdaptiveFlow]:
        return self, replace(self, rtol=LOOSER * self.rtol, atol=LOOSER * self.atol)


@final
@dataclass(frozen=True)
class BlackBox(FlowSolver):
    """The flow through torchdiffeq, whose adaptive methods couple the samples of a batch.

    Args:
        method: name of the method.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method.
        steps: number of steps of a fixed-step method.
        trace: estimator of the divergence.
    """

    method: str = "dopri5"
    rtol: Positive = AdaptiveFlow.rtol
    atol: Positive = AdaptiveFlow.atol
    steps: Count = 50
    trace: Trace = HutchinsonTrace()

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        return log_likelihood(
            denoiser,
            x,
            self.trace.held(x, noise),
            t0=t0,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            steps=self.steps,
        )

    def halved(self) -> tuple[BlackBox, BlackBox] | None:
        if self.method in FIXED_STEP_METHODS:
            return None if self.steps < 2 else (self, replace(self, steps=self.steps // 2))
        return self, replace(self, rtol=LOOSER * self.rtol, atol=LOOSER * self.atol)


# --- estimators ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class FlowEstimator(Estimator):
    """log p_t0 of a dequantised draw by the flow, plus its weight.

    Args:
        solver: solver of the flow.
        dequantisation: law of the draw at t_0; ``Continuous`` for real numbers.
        t0: time of the draw. By default ``t_min`` for real numbers and uniform dequantisation,
            and otherwise the ``tight_time``, but not below ``t_min``.
    """

    solver: FlowSolver = GridFlow()
    dequantisation: Dequantisation = CONTINUOUS
    t0: float | None = None

    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        sde = denoiser.sde
        t0 = self.start(sde, scaling)
        draw = self.dequantisation.draw(x, uniforms(x, noise), scaling, sde, t0)
        found = self.solver(denoiser, draw.x, noise, t0)
        return Estimate(found.log_prob + draw.weight, found.nfe, found.solver_error)

    @property
    def bounds(self) -> str:
        return self.dequantisation.bounds

    def start(self, sde: SDE, scaling: Quantisation) -> float:
        return _start(sde, scaling, self.dequantisation) if self.t0 is None else self.t0

    def halved(self) -> tuple[FlowEstimator, FlowEstimator] | None:
        if (pair := self.solver.halved()) is None:
            return None
        return replace(self, solver=pair[0]), replace(self, solver=pair[1])


@final
@dataclass(frozen=True)
class Variational(Estimator):
    """The evidence lower bound of a dequantised draw in continuous time, plus its weight.

    Args:
        times: noise levels that the bound is averaged over.
        std: standard deviation of the data in model units, which sets the density of noise levels.
        dequantisation: law of the draw; ``Continuous`` for real numbers.
        t0: lowest time; ``t_min`` by default.
    """

    times: Count = 32
    std: Positive = 0.5
    dequantisation: Dequantisation = CONTINUOUS
    t0: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        sde = denoiser.sde
        t0 = self.start(sde, scaling)
        draw = self.dequantisation.draw(x, uniforms(x, noise), scaling, sde, t0)
        bound = elbo(denoiser, draw.x, t0=t0, times=self.times, std=self.std, noise=noise)
        return Estimate(bound.log_prob + draw.weight, bound.nfe)

    @property
    def bounds(self) -> str:
        return f"variational lower bound of {self.dequantisation.bounds}"

    def start(self, sde: SDE, scaling: Quantisation) -> float:
        return sde.t_min if self.t0 is None else self.t0


@final
@dataclass(frozen=True)
class DecodedVariational(Estimator):
    """The evidence lower bound of pixel levels, decoded at t_0.

    Args:
        times: noise levels that the bound is averaged over.
        std: standard deviation of the data in model units, which sets the density of noise levels.
        decoder: law of the levels conditional on a state at t_0.
        t0: lowest time; by default the ``tight_time``, but not below ``t_min``.
    """

    times: Count = Variational.times
    std: Positive = Variational.std
    decoder: Decoder = DECODER
    t0: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        sde = denoiser.sde
        t0 = self.start(sde, scaling)
        bound = elbo(
            denoiser,
            middles(x, scaling),
            t0=t0,
            times=self.times,
            std=self.std,
            reconstruction=lambda z: self.decoder.log_prob(x, z, scaling, sde, t0),
            noise=noise,
        )
        return Estimate(bound.log_prob, bound.nfe)

    @property
    def bounds(self) -> str:
        return "variational lower bound of the discrete likelihood, decoded at t_0"

    def start(self, sde: SDE, scaling: Quantisation) -> float:
        return _start(sde, scaling, self.decoder) if self.t0 is None else self.t0


@final
@dataclass(frozen=True)
class DiscreteBound(Estimator):
    """The variational bound of a chain of ``steps`` times, as in DDPM.

    Args:
        steps: times of the chain, at least 3.
        mix: reverse variance, ``SMALL``, ``LARGE`` or ``LEARNED``.
        times: transitions drawn for each sample; all of them if not below ``steps``.
        std: standard deviation of the data in model units, which sets their probabilities.
        grid: times of the chain.
    """

    steps: Count = 1000
    mix: float | None = SMALL
    times: Count = 1000
    std: Positive = Variational.std
    grid: Grid = uniform

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        discrete = scaling.levels is not None
        bound = discrete_elbo(
            denoiser,
            middles(x, scaling),
            self.grid(denoiser.sde, self.steps - 1),
            mix=self.mix,
            levels=scaling if discrete else None,
            times=self.times if self.times < self.steps else None,
            std=self.std,
            noise=noise,
        )
        volume = 0.0 if discrete else scaling.log_volume(x.shape[1:])
        return Estimate(bound.log_prob + volume, bound.nfe)

    @property
    def bounds(self) -> str:
        return f"variational lower bound of a chain of {self.steps} times"

    def start(self, sde: SDE, scaling: Quantisation) -> float:
        return float(self.grid(sde, self.steps - 1)[-1])


def _start(sde: SDE, scaling: Quantisation, law: Dequantisation) -> float:
    """``t_min``, the lowest time of training, or ``tight_time`` if that is later and matters."""
    if not law.at_noise:
        return sde.t_min
    try:
        return max(tight_time(sde, scaling), sde.t_min)
    except ValueError:  # the noise of the process never becomes so small
        return sde.t_min


def uniforms(x: Tensor, noise: Noise) -> Tensor:
    """Float64 numbers, uniform on (0, 1) and shaped like ``x``."""
    u: Tensor = torch.special.ndtr(noise(x.double()))
    return u
