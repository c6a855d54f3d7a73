"""Settings of training and of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scoresde.arguments import Count, Natural, Positive
from scoresde.solvers import ODE_METHODS

if TYPE_CHECKING:
    ScoringMethod = str
else:
    ScoringMethod = Literal[("path", "adaptive", "elbo", "discrete", *ODE_METHODS)]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How data are scored: by the probability flow, or by a variational bound.

    Args:
        method: path: orthogonal probes at equal steps of log-SNR; adaptive: steps of every
            image's own; elbo, discrete: the bound in continuous time, or of a chain; the
            others are torchdiffeq's.
        dequantisation: of levels; the last two for a model of the levels themselves
            (train.dither false).
        t0: time at which the model takes over; null: t_min, or where a level is 16 deviations
            wide.
        steps: of path, of fixed-step methods, of discrete.
        between: steps of the walk of path between two nodes of its quadrature.
        rtol: rtol.
        atol: atol.
        trace: the divergence: estimated by random probes, or exact.
        probes: of hutchinson and hutch++.
        times: levels of noise an image of elbo, or transitions of discrete.
        chain: what the levels of discrete are equal steps of; uniform: t, as in a DDPM table.
        variance: of the reverse steps of discrete.
        repeats: draws of the dequantisation, the probes and the times an image.
        importance: combine the repeats to the importance-weighted bound instead of their mean.
        check: images scored twice more, by other draws and a coarser solver, to tell those
            errors.
        batch: batch.
    """

    method: ScoringMethod = "path"
    dequantisation: Literal["uniform", "truncated_normal", "decoder"] = "uniform"
    t0: Positive | None = None
    steps: Count = 64
    between: Count = 1
    rtol: Positive = 1e-05
    atol: Positive = 1e-05
    trace: Literal["hutchinson", "exact", "hutch++"] = "hutchinson"
    probes: Count = 1
    times: Count = 32
    chain: Literal["uniform", "log_snr"] = "uniform"
    variance: Literal["small", "large", "learned"] = "small"
    repeats: Count = 1
    importance: bool = False
    check: Natural = 32
    batch: Count = 128

    def __post_init__(self) -> None:
        if self.method == "path" and self.steps < 12:
            raise ValueError(
                f"method=path needs steps >= 12 for its quadrature, got steps={self.steps}"
            )
        if self.method == "path" and self.trace == "hutch++":
            raise ValueError(
                "method=path has fresh probes at every node, trace=hutch++ holds its sketch; "
                "choose trace: hutchinson, or method: adaptive"
            )
        if self.method == "elbo" and self.dequantisation == "truncated_normal":
            raise ValueError(
                "method=elbo bounds uniform levels or decodes them, got "
                "dequantisation=truncated_normal; choose uniform or decoder"
            )
        if self.method in ("elbo", "discrete") and self.times < 2:
            raise ValueError(f"method={self.method} needs times >= 2, got times={self.times}")
        if self.method == "discrete" and self.steps < 3:
            raise ValueError(f"method=discrete needs steps >= 3, got steps={self.steps}")
        if self.method == "discrete" and self.dequantisation == "truncated_normal":
            raise ValueError("method=discrete decodes levels itself; leave dequantisation out")
        if self.method == "discrete" and self.t0 is not None:
            raise ValueError("method=discrete ends at the last level of its chain; leave t0 out")
        if self.importance and self.method in ("elbo", "discrete"):
            raise ValueError(
                f"importance=true joins densities, method={self.method} estimates a bound, whose "
                "scatter would lift it above the truth; choose method: path"
            )
        if self.importance and self.repeats < 2:
            raise ValueError("importance=true combines repeats >= 2, got repeats=1; raise repeats")
