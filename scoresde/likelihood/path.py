"""Likelihoods on a fixed grid, with fresh probes of the divergence at every node.

The path of a sample does not depend on the estimate of its divergence, so the probes may change
along the path. A high-order multistep method takes n equal steps of lam and estimates the
divergence at every node. Gregory's quadrature of these values gives the integral of (10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import EXACT, Divergence, Field, Hutchinson
from scoresde.likelihood.flow import LogLikelihood, closed, require_law, standard_error_of
from scoresde.samplers import V, eab, sample
from scoresde.sde import unit_alpha
from scoresde.solvers import require_continuous, require_finite, time_of

GREGORY = 6
"""Order of the corrections at the ends of the quadrature."""


class Probing(Protocol):
    """A factory of the divergence at each node of a path; ``Exact`` is one too."""

    def at(self, k: int, x: Tensor) -> Divergence:
        """The divergence of node ``k``, for states like ``x``."""


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal probes: every node uses the next ``rows`` rows h of a Hadamard matrix.

        v = s * h,   s random signs (groups, B, ...)

    E v v^T = 1 at every node, so each estimate is unbiased. Over all rows the mean of h h^T is 1,
    so off-diagonal parts of a Jacobian that changes slowly from node to node cancel in the
    integral. Groups are independent, and their scatter gives the standard error.
    """

    signs: Tensor
    rows: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"need rows >= 1, got {self.rows}")

    def at(self, k: int, x: Tensor) -> Divergence:
        groups, shape = len(self.signs), x.shape
        dim = math.prod(shape[1:])
        first = torch.arange(k * self.rows, (k + 1) * self.rows)
        h = _hadamard(first, dim).to(x).reshape(self.rows, 1, *shape[1:])
        probes = self.signs.to(x).unsqueeze(1) * h  # (groups, rows, B, ...)
        return Averaged(Hutchinson(probes.reshape(groups * self.rows, *shape)), groups)


@dataclass(frozen=True)
class Averaged:
    """The estimates of ``inner``, averaged in ``groups``."""

    inner: Divergence
    groups: int

    @property
    def estimates(self) -> int:
        return self.groups

    @property
    def random(self) -> bool:
        return self.inner.random

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, found = self.inner(field, x)
        return value, found.reshape(self.groups, -1, len(x)).mean(1)


def path_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    probing: Probing = EXACT,
    *,
    prior: Any = None,
    t0: float | None = None,
    nodes: int = 64,
    between: int = 1,
) -> LogLikelihood:
    """Log-density (10) of samples on a grid of equal steps of lam, about one call per node.

    Args:
        denoiser: the model.
        x: samples (B, ...), taken as states at ``t0``.
        probing: the divergence at each node, ``Exact`` or ``Orthogonal``.
        prior: log-density of the terminal law, as in ``log_likelihood``.
        t0: time of the samples; ``t_min`` by default.
        nodes: steps of the quadrature, at least 12.
        between: solver steps for each step of the quadrature; a finer path costs little if the
            divergence takes many products.

    Raises ValueError for too few nodes or an empty batch, SolverError if the path is not finite.
    """
    require_law(denoiser)
    require_continuous(x)
    if nodes < 2 * GREGORY:
        raise ValueError(f"need nodes >= {2 * GREGORY}, got {nodes}")
    if between < 1:
        raise ValueError(f"need between >= 1, got {between}")
    sde, dim = denoiser.sde, x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    steps = nodes * between
    lam = torch.linspace(float(sde.lam(first)), float(sde.lam(last)), steps + 1).double()
    ts = sde.time(lam)
    ts[0], ts[-1] = first, last
    lam = lam[::between]
    reader = _Reader(denoiser, probing, {float(t): k for k, t in enumerate(ts[::between])})
    watched = replace(denoiser, predict=reader)
    end = sample(watched, x.double(), ts, eab(V, 4), denoise=False)
    reader(end, last)
    weights = gregory(nodes) * float(lam[1] - lam[0])
    rates = [
        unit_alpha(float(at)) * (reader.found[k] - unit_alpha(float(at)) * dim)
        for k, at in enumerate(lam)
    ]
    gain = torch.einsum("n,nkb->kb", weights.to(end), torch.stack(rates))
    log_prob = closed(sde, end, prior, first, last) + gain.mean(0)
    error = standard_error_of(gain, probing.at(0, end))
    return LogLikelihood(log_prob, end, reader.calls, error, len(gain))


@dataclass
class _Reader:
    """A denoiser that records the divergence of x0 with respect to w when called at a node."""

    denoiser: Denoiser
    probing: Probing
    places: dict[float, int]
    found: dict[int, Tensor] = field(default_factory=dict, init=False)
    calls: int = field(default=0, init=False)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        require_finite(x, f"path at t={float(t):.3g}", "check the model, or take more steps")
        self.calls += 1
        k = self.places.get(float(t))
        if k is None or k in self.found:
            return self.denoiser(x, t)
        n = float(self.denoiser.sde.norm(t))
        value, found = self.probing.at(k, x)(lambda w: self.denoiser(w * n, t), x / n)
        self.found[k] = found
        return value


def gregory(n: int, order: int = GREGORY) -> Tensor:
    """Weights of the trapezoid rule over n unit steps with end corrections; order ``order`` + 1.

        sum_k f_k - (f_0 + f_n) / 2 - sum_j |G_{j+1}| (nabla^j f_n + (-1)^j Delta^j f_0), j < order

    with Gregory's coefficients, z / log(1 + z) = 1 + sum_j G_j z^j.
    """
    log_ratio = [(-1) ** k / (k + 1) for k in range(order + 2)]  # log(1 + z) / z
    g = [1.0]
    for k in range(1, order + 2):
        g.append(-sum(log_ratio[j] * g[k - j] for j in range(1, k + 1)))
    weights = torch.ones(n + 1, dtype=torch.float64)
    weights[0] -= 0.5
    weights[-1] -= 0.5
    for j in range(1, order):
        for i in range(j + 1):
            change = abs(g[j + 1]) * (-1) ** i * math.comb(j, i)
            weights[i] -= change
            weights[n - i] -= change
    return weights


def _hadamard(rows: Tensor, dim: int) -> Tensor:
    """Rows of Sylvester's matrix, cut to ``dim`` columns: (-1)^(number of ones in row & column).

    Neighbouring rows differ first at neighbouring columns, where the Jacobian of an image is
    largest.
    """
    bits = max(1, (dim - 1).bit_length())
    common = (rows % (1 << bits)).unsqueeze(1) & torch.arange(dim)
    parity = torch.zeros_like(common)
    for k in range(bits):
        parity ^= (common >> k) & 1
    return 1 - 2 * parity
