"""One interface to every estimate of log p: of real numbers or of levels, a value or a bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, final

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.adaptive import adaptive_log_likelihood
from scoresde.likelihood.bounds import elbo
from scoresde.likelihood.dequantise import (
    Continuous,
    Decoder,
    Dequantisation,
    Levels,
    middles,
    tight_time,
)
from scoresde.likelihood.discrete import SMALL, discrete_elbo
from scoresde.likelihood.divergence import Divergence, Hutchinson, HutchPlusPlus, exact
from scoresde.likelihood.flow import LogLikelihood, log_likelihood
from scoresde.likelihood.path import GREGORY, Orthogonal, Probing, exactly, path_log_likelihood
from scoresde.samplers import Grid, Noise
from scoresde.samplers.grids import uniform
from scoresde.sde import SDE
from scoresde.solvers import FIXED_STEP_METHODS

CONTINUOUS, DECODER = Continuous(), Decoder()
LOOSER = 10.0
"""Factor on the tolerances of a coarser solve."""


class Estimate(NamedTuple):
    """One draw of log P of every sample (B,), in nats, and the denoiser calls it took."""

    log_prob: Tensor
    nfe: int


class Estimator(ABC):
    """A random estimate of log P, unbiased for what ``bounds`` says."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, scaling: Levels, noise: Noise) -> Estimate:
        """A draw for levels, or real numbers where ``scaling.levels`` is None, ``x`` (B, ...).

        All randomness comes from ``noise``: with a stream a sample none depends on another.
        """

    @property
    @abstractmethod
    def bounds(self) -> str:
        """What the value is, or bounds, for a report."""

    @abstractmethod
    def start(self, sde: SDE, scaling: Levels) -> float:
        """The time t_0 at which the model takes over."""

    @abstractmethod
    def coarser(self) -> Self | None:
        """The same at about half the effort, to see a solver's error.

        None without a solver, or for one whose effort cannot be halved.
        """


# --- how the divergence is found ----------------------------------------------------------------

Trace = Callable[[Tensor, Noise], Divergence]
"""The divergence of a whole solve for states like ``x``, its probes drawn from the noise."""


def exact_trace(x: Tensor, noise: Noise) -> Divergence:
    """The exact trace."""
    return exact


@dataclass(frozen=True)
class Held:
    """Hutchinson's estimate with so many signs a sample, held for the solve."""

    probes: int = 1

    def __call__(self, x: Tensor, noise: Noise) -> Divergence:
        return Hutchinson(signs(x, self.probes, noise))


@dataclass(frozen=True)
class Sketched:
    """Hutch++ with so many directions and as many probes, held for the solve."""

    probes: int = 1

    def __call__(self, x: Tensor, noise: Noise) -> Divergence:
        return HutchPlusPlus(signs(x, self.probes, noise), signs(x, self.probes, noise))


def signs(x: Tensor, n: int, noise: Noise) -> Tensor:
    """Random signs (n, *x.shape), from the stream of each sample."""
    return torch.stack([torch.where(noise(x) < 0, -1.0, 1.0).to(x) for _ in range(n)])


# --- how the flow is solved ---------------------------------------------------------------------


class FlowSolver(ABC):
    """log p at ``t0`` of states ``x`` (B, ...), by the probability flow."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float
    ) -> LogLikelihood: ...

    @abstractmethod
    def coarser(self) -> Self | None:
        """The same at about half the effort; None where it cannot be halved."""


@final
@dataclass(frozen=True)
class AlongPath(FlowSolver):
    """The flow along equal steps of lam, its divergence read at ``nodes`` by fresh probes.

    ``path_log_likelihood`` with ``probes`` orthogonal probes a node, or None for the exact trace;
    ``between`` steps of the walk lead from node to node.
    """

    nodes: int = 64
    probes: int | None = 1
    between: int = 1

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        probing: Probing = exactly
        if self.probes is not None:
            probing = Orthogonal(signs(x, 1, noise), self.probes)
        return path_log_likelihood(
            denoiser, x, probing, t0=t0, nodes=self.nodes, between=self.between
        )

    def coarser(self) -> AlongPath | None:
        nodes = self.nodes // 2
        return None if nodes < 2 * GREGORY else replace(self, nodes=nodes)


@final
@dataclass(frozen=True)
class Tolerant(FlowSolver):
    """The flow at a tolerance, every sample by steps of its own: ``adaptive_log_likelihood``."""

    rtol: float = 1e-5
    atol: float = 1e-5
    trace: Trace = Held()

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        divergence = self.trace(x, noise)
        return adaptive_log_likelihood(
            denoiser, x, divergence, t0=t0, rtol=self.rtol, atol=self.atol
        )

    def coarser(self) -> Tolerant:
        return replace(self, rtol=LOOSER * self.rtol, atol=LOOSER * self.atol)


@final
@dataclass(frozen=True)
class BlackBox(FlowSolver):
    """The flow through torchdiffeq, whose adaptive methods couple a batch: ``log_likelihood``."""

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 50
    trace: Trace = Held()

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, t0: float) -> LogLikelihood:
        return log_likelihood(
            denoiser,
            x,
            self.trace(x, noise),
            t0=t0,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            steps=self.steps,
        )

    def coarser(self) -> BlackBox | None:
        if self.method in FIXED_STEP_METHODS:
            return None if self.steps < 2 else replace(self, steps=self.steps // 2)
        return replace(self, rtol=LOOSER * self.rtol, atol=LOOSER * self.atol)


# --- estimators ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class FlowEstimator(Estimator):
    """log p_t0 of a dequantised draw by the flow, plus its weight.

    ``t0`` is by default ``t_min`` for real numbers and uniform dequantisation, which take the
    draw to lie at t_0 as it is, and else the ``tight_time``, but not below ``t_min``.
    """

    solver: FlowSolver = AlongPath()
    dequantisation: Dequantisation = CONTINUOUS
    t0: float | None = None

    def __call__(self, denoiser: Denoiser, x: Tensor, scaling: Levels, noise: Noise) -> Estimate:
        sde = denoiser.sde
        t0 = self.start(sde, scaling)
        draw = self.dequantisation.draw(x, uniforms(x, noise), scaling, sde, t0)
        found = self.solver(denoiser, draw.x, noise, t0)
        return Estimate(found.log_prob + draw.weight, found.nfe)

    @property
    def bounds(self) -> str:
        return self.dequantisation.bounds

    def start(self, sde: SDE, scaling: Levels) -> float:
        return _start(sde, scaling, self.dequantisation) if self.t0 is None else self.t0

    def coarser(self) -> FlowEstimator | None:
        solver = self.solver.coarser()
        return None if solver is None else replace(self, solver=solver)


@final
@dataclass(frozen=True)
class Variational(Estimator):
    """The evidence lower bound of a dequantised draw, in continuous time, plus its weight.

    Averaged over ``times`` levels of noise down to ``t0``, by default ``t_min``; ``std`` is the
    deviation of the data in model units, which steers where they lie.
    """

    times: int = 32
    std: float = 0.5
    dequantisation: Dequantisation = CONTINUOUS
    t0: float | None = None

    def __call__(self, denoiser: Denoiser, x: Tensor, scaling: Levels, noise: Noise) -> Estimate:
        sde = denoiser.sde
        t0 = self.start(sde, scaling)
        draw = self.dequantisation.draw(x, uniforms(x, noise), scaling, sde, t0)
        bound = elbo(denoiser, draw.x, t0=t0, times=self.times, std=self.std, noise=noise)
        return Estimate(bound.log_prob + draw.weight, bound.nfe)

    @property
    def bounds(self) -> str:
        return f"variational lower bound of {self.dequantisation.bounds}"

    def start(self, sde: SDE, scaling: Levels) -> float:
        return sde.t_min if self.t0 is None else self.t0

    def coarser(self) -> None:
        return None


@final
@dataclass(frozen=True)
class DecodedVariational(Estimator):
    """The evidence lower bound of the levels themselves, decoded at ``t0`` (see FlowEstimator).

    Averaged over ``times`` levels of noise; ``std`` as in Variational.
    """

    times: int = 32
    std: float = 0.5
    decoder: Decoder = DECODER
    t0: float | None = None

    def __call__(self, denoiser: Denoiser, x: Tensor, scaling: Levels, noise: Noise) -> Estimate:
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

    def start(self, sde: SDE, scaling: Levels) -> float:
        return _start(sde, scaling, self.decoder) if self.t0 is None else self.t0

    def coarser(self) -> None:
        return None


@final
@dataclass(frozen=True)
class Chain(Estimator):
    """The variational bound of a chain of ``steps`` levels of a grid, as of DDPM.

    ``mix`` is the reverse variance (``SMALL``, ``LARGE``, ``LEARNED``); at most ``times`` of the
    transitions are drawn, in proportion to their terms for data of deviation ``std``.
    """

    steps: int = 1000
    mix: float | None = SMALL
    times: int = 1000
    std: float = 0.5
    grid: Grid = uniform

    def __call__(self, denoiser: Denoiser, x: Tensor, scaling: Levels, noise: Noise) -> Estimate:
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
        return f"variational lower bound of a chain of {self.steps} levels"

    def start(self, sde: SDE, scaling: Levels) -> float:
        return float(self.grid(sde, self.steps - 1)[-1])

    def coarser(self) -> None:
        return None


def _start(sde: SDE, scaling: Levels, law: Dequantisation) -> float:
    """Where the model takes over: ``t_min``, or the ``tight_time`` of a law drawn at t_0.

    Never below ``t_min``, the least time a model was trained at.
    """
    if not law.at_noise:
        return sde.t_min
    try:
        return max(tight_time(sde, scaling), sde.t_min)
    except ValueError:  # a process that never has so little noise
        return sde.t_min


def uniforms(x: Tensor, noise: Noise) -> Tensor:
    """Numbers uniform on (0, 1) shaped like ``x``, float64."""
    u: Tensor = torch.special.ndtr(noise(x.double()))
    return u
