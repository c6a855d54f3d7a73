"""Likelihoods on a fixed grid, with fresh probes of the divergence at every node.

The path of a sample does not depend on the estimate of its divergence, so the probes may change
along the path. A high-order multistep method takes n equal steps of lam and estimates the
divergence at every node. Gregory's quadrature of these values gives the integral of (10). A sample
whose steps err by more than a tolerance is solved again, with more nodes or by ``stiff``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from scoresde.arguments import Count, Positive, Range, check, check_fields
from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import EXACT, Divergence, Field, Hutchinson, sum_from
from scoresde.likelihood.flow import LogLikelihood, closed, require_law, standard_error_of
from scoresde.likelihood.stiff import LARGEST, stiff_log_likelihood
from scoresde.samplers import V, eab, sample
from scoresde.samplers.integrals import EXACT as INTERPOLATION
from scoresde.samplers.integrals import advance
from scoresde.samplers.kernels import Marginal, marginal
from scoresde.samplers.multistep import History, lams
from scoresde.sde import match, sent, unit_alpha
from scoresde.solvers import require_continuous, require_finite, time_of

GREGORY = 6
"""Order of the corrections at the ends of the quadrature."""
REMEDY = "check the model, or take more nodes"


class Probing(Protocol):
    """A factory of the divergence at each node of a path; ``Exact`` is one too."""

    def at(self, k: int, x: Tensor) -> Divergence:
        """The divergence of node ``k``, for states like ``x``."""

    def among(self, rows: Tensor) -> Probing:
        """The same for the samples ``rows`` of the batch."""


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal probes: every node uses the next ``rows`` rows h of a Hadamard matrix.

        v = s * h,   s random signs (groups, B, ...)

    E v v^T = 1 at every node, so each estimate is unbiased. Over all rows the mean of h h^T is 1,
    so off-diagonal parts of a Jacobian that changes slowly from node to node cancel in the
    integral. Groups are independent, and their scatter gives the standard error. ``held`` takes
    the first rows at every node, so that solves with other nodes have the same probes.
    """

    signs: Tensor
    rows: Count = 1
    held: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def at(self, k: int, x: Tensor) -> Divergence:
        groups, shape = len(self.signs), x.shape
        dim = math.prod(shape[1:])
        used = torch.arange(self.rows) + (0 if self.held else k * self.rows)
        h = sent(_hadamard(used, dim), x.device, x.dtype).reshape(self.rows, 1, *shape[1:])
        signs = sent(self.signs, x.device, x.dtype)
        probes = signs.unsqueeze(1) * h  # (groups, rows, B, ...)
        return Averaged(Hutchinson(probes.reshape(groups * self.rows, *shape)), groups)

    def among(self, rows: Tensor) -> Orthogonal:
        return replace(self, signs=self.signs[:, rows.to(self.signs.device)])


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
    nodes: Annotated[int, Range(ge=2 * GREGORY)] = 64,
    between: Count = 1,
    tolerance: Positive | None = None,
    max_nfe: Count = 10_000,
) -> LogLikelihood:
    """Log-density (10) of samples on a grid of equal steps of lam, about one call per node.

    A sample with an estimated error above ``tolerance`` is solved again with up to 8 times the
    nodes. If these are too few, and the divergence is exact, implicit steps of adaptive size solve
    it. ``solver_error`` is the estimate in the end: of the path and, with the exact divergence, of
    the quadrature. Random probes hide the error of the quadrature: they change from node to node,
    and rules of 4 and 6 points on the same values differ by their scatter. Two solves with
    ``Orthogonal(held=True)`` show it. ``nfe`` is the average over the samples.

    Args:
        denoiser: the model.
        x: samples (B, ...), taken as states at ``t0``.
        probing: the divergence at each node, ``Exact`` or ``Orthogonal``.
        prior: log-density of the terminal law, as in ``log_likelihood``.
        t0: time of the samples; ``t_min`` by default.
        nodes: steps of the quadrature, at least 12.
        between: solver steps for each step of the quadrature; a finer path costs little if the
            divergence takes many products.
        tolerance: error of a sample in nats above which it is solved again, infinity for never; by
            default 0.05, and at least 0.002 per dimension.
        max_nfe: limit on the denoiser calls of a sample in the implicit steps.

    Raises ValueError for arguments out of range or an empty batch, SolverError if the path is not
    finite.
    """
    check(path_log_likelihood, locals())
    require_law(denoiser)
    require_continuous(x)
    sde, x, dim = denoiser.sde, x.detach().double(), x[0].numel()
    limit = default_tolerance(dim) if tolerance is None else tolerance
    # Nodes where x holds no signal would be lost.
    first, last = time_of(sde, sde.t_min if t0 is None else t0), sde.time(sde.span(sde.t_min)[0])
    if not first < last:
        raise ValueError(f"t0: need a time below t_max={float(last):g}, got {float(first):g}")
    path = _Path(denoiser, x, probing, prior, first, last, nodes, between, limit)
    found, errors = path.walked()
    # The device is read here, once if every sample is solved. Errors fall with h^4.
    finer = (torch.where(found.log_prob.isfinite(), errors, math.inf).cpu() / limit) ** (1 / 4)
    if bool((finer <= 1).all()):
        return found
    stiff = not probing.at(0, x).random and dim <= LARGEST
    for factor in (2, 4, 8) if limit < math.inf else ():
        last_try = factor == 8 and not stiff
        rows = torch.nonzero((finer > factor / 2) & ((finer <= factor) | last_try)).flatten()
        if len(rows):
            rows = sent(rows, x.device)
            found = _replaced(found, rows, path.among(rows).walked(factor)[0])
    rows = torch.nonzero(~(found.solver_error.cpu() <= limit)).flatten()
    if stiff and limit < math.inf and len(rows):
        rows = sent(rows, x.device)
        some = denoiser.among(rows, len(x))
        new = stiff_log_likelihood(
            some, x[rows], first, last, limit=limit, prior=prior, max_nfe=max_nfe
        )
        found = _replaced(found, rows, new)
    if not bool(found.log_prob.isfinite().all()):
        require_finite(x, "x", "correct them")
        path.walked(strict=True)  # raises at the first state that is not finite
    require_finite(found.log_prob, "path", REMEDY)
    return found


def default_tolerance(dim: int) -> float:
    """Error in nats above which a sample of ``dim`` dimensions is solved again, by default."""
    return max(0.05, 0.002 * dim)


def _replaced(found: LogLikelihood, rows: Tensor, new: LogLikelihood) -> LogLikelihood:
    """The solution with those of its ``rows`` that ``new`` solves with a smaller error."""
    better = new.log_prob.isfinite() & ~(new.solver_error >= found.solver_error[rows])

    def put(into: Tensor, value: Tensor) -> Tensor:
        kept = torch.where(match(better, value).bool(), value, into[rows])
        return into.index_copy(0, rows, kept)

    return LogLikelihood(
        put(found.log_prob, new.log_prob),
        put(found.latent, new.latent),
        found.nfe + math.ceil(new.nfe * len(rows) / len(found.log_prob)),
        put(found.standard_error, new.standard_error),
        put(found.solver_error, new.solver_error),
        found.estimates,
    )


@dataclass(frozen=True)
class _Path:
    """The paths of samples ``x`` from ``first`` to ``last``, and what is integrated along them."""

    denoiser: Denoiser
    x: Tensor
    probing: Probing
    prior: Any
    first: Tensor
    last: Tensor
    nodes: int
    between: int
    limit: float

    def among(self, rows: Tensor) -> _Path:
        """The paths of the samples ``rows``."""
        some = self.denoiser.among(rows, len(self.x)), self.x[rows], self.probing.among(rows)
        return replace(self, denoiser=some[0], x=some[1], probing=some[2])

    def walked(self, finer: int = 1, strict: bool = False) -> tuple[LogLikelihood, Tensor]:
        """The solution with ``finer`` times the nodes, and an estimate of its error."""
        sde, dim = self.denoiser.sde, self.x[0].numel()
        ends = (float(sde.lam(self.first)), float(sde.lam(self.last)))
        lam = torch.linspace(*ends, self.nodes * finer * self.between + 1, dtype=torch.float64)
        ts = sde.time(lam)
        ts[0], ts[-1] = self.first, self.last
        zero = self.x.new_zeros(len(self.x))
        places = {float(t): k for k, t in enumerate(ts)}
        reader = _Reader(
            self.denoiser, self.probing, places, self.between, strict, zero, zero, zero
        )
        walk = replace(self.denoiser, predict=reader)
        end = sample(walk, self.x, ts, eab(V, 4), denoise=False)
        reader(end, ts[-1])
        lam = lam[:: self.between]
        step = float(lam[1] - lam[0])
        # dlog p/dlam = a (div - a D), summed with the weights of the quadrature.
        gain = torch.zeros_like(reader.found[0])
        weights = (gregory(len(lam) - 1) * step).tolist()
        for at, weight, div in zip(lam.tolist(), weights, reader.found, strict=True):
            gain = gain + weight * unit_alpha(at) * (div - unit_alpha(at) * dim)
        log_prob = closed(sde, end, self.prior, self.first, self.last) + gain.mean(0)
        total, estimate = reader.total, reader.signed.abs() + reader.square.sqrt() / 4
        probes = self.probing.at(0, end)
        if not probes.random:
            # How much the integral over each step changes from 4 to 6 points.
            change = (_panels(len(lam) - 1, 6) - _panels(len(lam) - 1, 4)) * step
            rates = torch.cat(reader.found) * sent(unit_alpha(lam), end.device).unsqueeze(1)
            rough = (sent(change, end.device) @ rates).abs().sum(0)
            total, estimate = total + rough, estimate + rough
        # The signs of larger errors say nothing: their sizes are added up.
        error = torch.where(estimate <= self.limit, estimate, total)
        spread = standard_error_of(gain, probes)
        return LogLikelihood(log_prob, end, reader.calls, spread, error, len(gain)), estimate


@dataclass
class _Reader:
    """A denoiser that records the divergence at the nodes, and the error of every step.

    The evaluation at the end of a step corrects its state, as in UniPC. A change e of w changes
    log p by score e: the error e_k of the step in nats. The estimate for the path is

        |sum_k e_k| + sqrt(sum_k e_k^2) / 4   from ``signed`` and ``square``

    The second term covers errors with wrong signs; ``total`` is sum_k |e_k|. The first two steps,
    which have methods of their own, are not judged. ``strict`` raises SolverError at a state that
    is not finite.
    """

    denoiser: Denoiser
    probing: Probing
    places: dict[float, int]
    between: int
    strict: bool
    signed: Tensor
    square: Tensor
    total: Tensor
    found: list[Tensor] = field(default_factory=list, init=False)
    calls: int = field(default=0, init=False)
    passed: int = field(default=0, init=False)
    points: History = field(default=(), init=False)
    start: tuple[Tensor, Marginal] | None = field(default=None, init=False)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        if self.strict:
            require_finite(x, f"path at t={float(t):.3g}", REMEDY)
        if self.places.get(float(t)) != self.passed:  # a call inside the first step
            return self.denoiser(x, t)
        k, self.passed = self.passed, self.passed + 1
        if k % self.between:
            value = self.denoiser(x, t)
        else:
            n = float(self.denoiser.sde.norm(t))
            probes = self.probing.at(k // self.between, x)
            value, found = probes(lambda w: self.denoiser(w * n, t), x / n)
            self.found.append(found)
        self._judge(x, value, marginal(self.denoiser.sde, t))
        return value

    def _judge(self, x: Tensor, value: Tensor, to: Marginal) -> None:
        """Add the error of the step that ended at ``x``."""
        here = V.read(x, value, to)
        if self.start is not None and len(self.points) > 2:
            before, at = self.start
            points = (self.points[0], here, *self.points[1:])
            weights = INTERPOLATION.weights(V, self.denoiser.sde, at, to, lams(points))
            change = advance(V, before, at, to, points, weights) - x
            score = (to.alpha * value - x) / to.sigma**2
            nats = sum_from(1, score * change)
            self.signed, self.square = self.signed + nats, self.square + nats**2
            self.total = self.total + nats.abs()
        self.points, self.start = (here, *self.points[:3]), (x, to)


def _panels(n: int, points: int) -> Tensor:
    """Weights (n, n + 1) of the integral over each unit step by the nearest ``points`` values."""
    weights = torch.zeros(n, n + 1, dtype=torch.float64)
    moments = 1 / torch.arange(1, points + 1, dtype=torch.float64)
    for k in range(n):
        first = min(max(k + 1 - points // 2, 0), n + 1 - points)
        places = torch.arange(first, first + points, dtype=torch.float64) - k
        weights[k, first : first + points] = torch.linalg.solve(
            torch.vander(places, increasing=True).T, moments
        )
    return weights


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
