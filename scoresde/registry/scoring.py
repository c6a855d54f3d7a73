"""The settings of scoring, and the likelihood estimator that they select."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from scoresde.arguments import Count, Natural, Positive, check_fields
from scoresde.latent.codec import Codec
from scoresde.latent.latents import latent_scaling
from scoresde.latent.likelihood import LatentEstimator
from scoresde.likelihood.dequantise import (
    Continuous,
    Decoder,
    Dequantisation,
    Quantisation,
    TruncatedNormal,
    Uniform,
)
from scoresde.likelihood.discrete import LARGE, LEARNED, SMALL
from scoresde.likelihood.divergence import EXACT
from scoresde.likelihood.estimators import (
    AdaptiveFlow,
    BlackBox,
    DecodedVariational,
    DiscreteBound,
    Estimator,
    FlowEstimator,
    FlowSolver,
    GridFlow,
    HutchinsonTrace,
    HutchPlusPlusTrace,
    Trace,
    Variational,
)
from scoresde.registry.tables import Table, constructor
from scoresde.samplers import Grid
from scoresde.samplers.grids import log_snr, uniform
from scoresde.solvers import ODE_METHODS


def exact() -> Trace:
    """The exact trace of the Jacobian, one vector product per dimension."""
    return EXACT


DEQUANTISATIONS: Table[Callable[[], Dequantisation]] = Table(
    {"uniform": Uniform, "truncated_normal": TruncatedNormal, "decoder": Decoder}
)
VARIANCES: Table[float | None] = Table(
    {"small": SMALL, "large": LARGE, "learned": LEARNED}, constructs=False
)
CHAINS: Table[Grid] = Table({"uniform": uniform, "log_snr": log_snr}, constructs=False)
TRACES: Table[Callable[..., Trace]] = Table(
    {"hutchinson": HutchinsonTrace, "exact": exact, "hutch++": HutchPlusPlusTrace}
)
METHODS: Table[Callable[..., object]] = Table(
    {
        "path": GridFlow,
        "adaptive": AdaptiveFlow,
        "elbo": Variational,
        "discrete": DiscreteBound,
        **dict.fromkeys(ODE_METHODS, BlackBox),
    }
)
if TYPE_CHECKING:
    Method: TypeAlias = str
    LawName: TypeAlias = str
    TraceName: TypeAlias = str
    ChainName: TypeAlias = str
    VarianceName: TypeAlias = str
else:
    Method, LawName = Literal[tuple(METHODS)], Literal[tuple(DEQUANTISATIONS)]
    TraceName, ChainName = Literal[tuple(TRACES)], Literal[tuple(CHAINS)]
    VarianceName = Literal[tuple(VARIANCES)]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Settings of likelihoods: by the probability flow, or by a variational bound.

    Args:
        method: method for log p: path solves the flow with equal steps of log-SNR, adaptive with
            step sizes per example, a torchdiffeq method with step sizes per batch; elbo and
            discrete give a lower bound, in continuous time or for a chain of times.
        dequantisation: map from pixel levels to real numbers; truncated_normal and decoder suit a
            model trained with train.dither false.
        t0: time at which the model starts; by default t_min, or with truncated_normal and decoder
            the time at which a pixel level is 16 standard deviations wide.
        steps: number of steps of path, discrete and the torchdiffeq methods with fixed steps.
        between: number of solver steps of path between two evaluations of the divergence.
        tolerance: error of an example in nats above which path solves it again; by default 0.05,
            and at least 0.002 per dimension.
        rtol: relative tolerance of the adaptive methods.
        atol: absolute tolerance of the adaptive methods.
        trace: estimator of the divergence: random probes or exact.
        probes: number of random probes per example, for hutchinson and hutch++; the exact trace
            replaces them where it costs no more.
        times: number of times drawn per example by elbo, or of transitions by discrete.
        chain: variable in which the steps of discrete are equal: t (uniform) or log_snr.
        variance: variance of the reverse steps of discrete.
        repeats: number of independent draws per example.
        importance: combine the repeats into the importance-weighted bound instead of their mean.
        check: number of examples scored again, with other random draws and with half the effort of
            the solver, to measure these two errors.
        batch: number of examples scored at a time; it does not change the values.
        of: what a model of latents scores, its pictures by a lower bound or the latents
            themselves, in bits per number of a latent.
        relative: score pictures through a codec that a discriminator trained, to compare models
            of latents of this codec with each other.

    Raises ValueError for settings that exclude each other.
    """

    method: Method = "path"
    dequantisation: LawName = "uniform"
    t0: Positive | None = None
    steps: Count = GridFlow.nodes
    between: Count = GridFlow.between
    tolerance: Positive | None = GridFlow.tolerance
    rtol: Positive = AdaptiveFlow.rtol
    atol: Positive = AdaptiveFlow.atol
    trace: TraceName = "hutchinson"
    probes: Count = HutchinsonTrace.probes
    times: Count = Variational.times
    chain: ChainName = "uniform"
    variance: VarianceName = "small"
    repeats: Count = 1
    importance: bool = False
    check: Natural = 32
    batch: Count = 128
    of: Literal["picture", "latents"] = "picture"
    relative: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        method = self.method
        if method == "path" and self.steps < 12:
            raise ValueError(
                f"method=path needs steps >= 12 for its quadrature, got steps={self.steps}"
            )
        if method == "path" and self.trace == "hutch++":
            raise ValueError(
                "method=path draws new probes at every node, and trace=hutch++ holds its sketch; "
                "choose trace: hutchinson, or method: adaptive"
            )
        if method in ("elbo", "discrete"):
            self._check_bound()
        if self.importance and self.repeats < 2:
            raise ValueError("importance=true combines repeats >= 2, got repeats=1; raise repeats")
        if self.importance and self.of == "latents":
            raise ValueError(
                "importance=true tightens the bound of a picture, and of=latents is no bound; "
                "leave one of them out"
            )

    def _check_bound(self) -> None:
        """Raise ValueError for settings that do not apply to a variational bound."""
        method, truncated = self.method, self.dequantisation == "truncated_normal"
        if method == "elbo" and truncated:
            raise ValueError(
                "method=elbo bounds uniform levels or decodes them, got "
                "dequantisation=truncated_normal; choose uniform or decoder"
            )
        if self.times < 2:
            raise ValueError(f"method={method} needs times >= 2, got times={self.times}")
        if method == "discrete" and self.steps < 3:
            raise ValueError(f"method=discrete needs steps >= 3, got steps={self.steps}")
        if method == "discrete" and truncated:
            raise ValueError("method=discrete decodes levels itself; leave dequantisation out")
        if method == "discrete" and self.t0 is not None:
            raise ValueError("method=discrete ends at the last time of its chain; leave t0 out")
        if self.importance:
            raise ValueError(
                f"importance=true joins densities, and method={method} estimates a bound, whose "
                "scatter would lift it above the truth; choose method: path"
            )

    @property
    def law(self) -> str:
        """The name of the dequantisation in use; the discrete method always decodes."""
        return "decoder" if self.method == "discrete" else self.dequantisation

    def estimator(self, scaling: Quantisation, codec: Codec | None = None) -> Estimator:
        """The estimator for data with this scaling, or for those with a codec."""
        if codec is not None:
            return self._through(codec, self.estimator(latent_scaling(codec)))
        if self.method == "elbo":
            return self.bound(scaling)
        if self.method == "discrete":
            mix, grid = VARIANCES[self.variance], CHAINS[self.chain]
            std = _deviation(scaling)
            return DiscreteBound(self.steps, mix, self.times, std, grid=grid)
        return FlowEstimator(self._solver(), self._dequantisation(scaling), self.t0)

    def bound(self, scaling: Quantisation, codec: Codec | None = None) -> Estimator:
        """The variational bound for the dequantisation, or for the latents of a codec."""
        if codec is not None:
            return self._through(codec, self.bound(latent_scaling(codec)))
        std = _deviation(scaling)
        if scaling.levels is None or self.dequantisation == "uniform":
            return Variational(self.times, std, self._dequantisation(scaling), self.t0)
        return DecodedVariational(self.times, std, t0=self.t0)

    def _through(self, codec: Codec, density: Estimator) -> Estimator:
        return LatentEstimator(codec, density, self.of == "picture")

    def _dequantisation(self, scaling: Quantisation) -> Dequantisation:
        if scaling.levels is None:
            return Continuous()
        return constructor(DEQUANTISATIONS, self.dequantisation)()

    def _solver(self) -> FlowSolver:
        if self.method == "path":
            probes = None if self.trace == "exact" else self.probes
            return GridFlow(self.steps, probes, self.between, self.tolerance)
        made = constructor(TRACES, self.trace)
        trace = made() if self.trace == "exact" else made(self.probes)
        if self.method == "adaptive":
            return AdaptiveFlow(self.rtol, self.atol, trace)
        return BlackBox(self.method, self.rtol, self.atol, self.steps, trace)


def _deviation(scaling: Quantisation) -> float:
    """Standard deviation of the data in model units, used to choose the times of a bound.

    Data without pixel levels are standardised.
    """
    return 1.0 if scaling.levels is None else Variational.std
