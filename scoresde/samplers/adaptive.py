"""Adaptive solvers with a step size per sample, so that a result does not depend on its batch.

Both solvers integrate (8) and (9) of docs/theory.md, which hold for every process, in lam and
w = x / sqrt(alpha^2 + sigma^2). Tolerances are in units of w. Positions and steps are on the host,
which waits once a step for the errors of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoresde.arguments import Count, Positive, check
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import combine, held_flow
from scoresde.samplers.noise import BrownianPath
from scoresde.sde import SDE, floating, match, unit_alpha


class Adaptive(NamedTuple):
    """The result of an adaptive solve.

    ``x`` (B, ...) are the states at the times ``t`` (B,) reached. ``finished`` (B,) marks the
    samples that reached the end. Both are on the host. ``nfe`` counts denoiser calls, each for the
    whole batch.
    """

    x: Tensor
    t: Tensor
    finished: Tensor
    nfe: int


def solve_adaptive(
    denoiser: Denoiser,
    x: Tensor,
    t0: float,
    t1: float,
    rtol: Positive = 1e-3,
    atol: Positive = 1e-3,
    max_nfe: Count = 1000,
    noise: BrownianPath | None = None,
    pair: Pair | None = None,
    *,
    grad: bool = False,
) -> Adaptive:
    """Solve from ``t0`` to ``t1`` at a tolerance, with a step size per sample of ``x`` (B, ...).

    Without ``noise`` it solves the probability flow in either direction, by ``DORMAND_PRINCE``
    5(4) or by the ``EXPONENTIAL`` pair 3(2), which makes half as many calls per step. With a
    BrownianPath it solves the reverse SDE by Heun's method with embedded Euler; a rejected step is
    halved on the same path. After ``max_nfe`` calls it returns the states reached. With ``grad``
    they keep the autograd graph to ``x`` and to the parameters of the model, through the steps
    taken; without it they have none. Raises ValueError for invalid arguments, RuntimeError if the
    denoiser returns values that are not finite.
    """
    check(solve_adaptive, locals())
    _check(denoiser.sde, t0, t1)
    with torch.set_grad_enabled(grad):
        return _solved(denoiser, floating(x), t0, t1, rtol, atol, max_nfe, noise, pair)


def _solved(
    denoiser: Denoiser,
    x: Tensor,
    t0: float,
    t1: float,
    rtol: float,
    atol: float,
    max_nfe: int,
    noise: BrownianPath | None,
    pair: Pair | None,
) -> Adaptive:
    problem = _Problem(denoiser, x, t0, t1, rtol, atol)
    if noise is None:
        w, lam = _embedded(problem, max_nfe, pair or DORMAND_PRINCE)
    elif not isinstance(noise, BrownianPath):
        raise ValueError(
            "a rejected step needs noise that can be refined; give noise=BrownianPath(seeds)"
        )
    elif t1 < t0:
        w, lam = _stochastic_heun(problem, max_nfe, noise)
    else:
        raise ValueError(f"the reverse SDE needs t1 < t0, got t0={t0:g}, t1={t1:g}")
    t = denoiser.sde.time(lam)
    finished = lam == problem.lam1
    t = torch.where(finished, torch.full_like(t, t1), t)
    return Adaptive((w * match(denoiser.sde.norm(t), w)).to(x), t, finished, problem.nfe)


@dataclass
class _Problem:
    """The right-hand sides of (8) and (9), with a lam per sample; counts denoiser calls."""

    denoiser: Denoiser
    x: Tensor
    t0: float
    t1: float
    rtol: float
    atol: float
    nfe: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        ends = torch.tensor([self.t0, self.t1], dtype=torch.float64)
        self.lam0, self.lam1 = self.denoiser.sde.lam(ends).tolist()

    def start(self) -> Tensor:
        """w at t0."""
        t0 = torch.tensor(self.t0, dtype=torch.float64)
        return self.x / float(self.denoiser.sde.norm(t0))

    def x0(self, lam: Tensor, w: Tensor) -> Tensor:
        """x0_hat at w, with a lam per sample (B,)."""
        self.nfe += 1
        sde = self.denoiser.sde
        t = sde.time(lam)
        return self.denoiser(w * match(sde.norm(t), w), t)

    def flow(self, lam: Tensor, w: Tensor) -> Tensor:
        """dw/dlam of the probability flow, (8)."""
        a = match(unit_alpha(lam), w)
        return a * (self.x0(lam, w) - a * w)

    def reverse(self, lam: Tensor, w: Tensor) -> Tensor:
        """The drift of the reverse SDE with eta = 1, (9)."""
        a = match(unit_alpha(lam), w)
        x0 = self.x0(lam, w)
        return a * (x0 - a * w) + a * x0 - w

    @torch.no_grad()
    def ratio(self, error: Tensor, w: Tensor, new: Tensor, lam: Tensor) -> Tensor:
        """Root-mean-square ratio of error to tolerance per sample (B,)."""
        allowed = self.atol + self.rtol * torch.maximum(w.abs(), new.abs())
        ratio = (error / allowed).flatten(1).square().mean(1).sqrt().double().cpu()
        if bad := int((~ratio.isfinite()).sum()):
            t = float(self.denoiser.sde.time(lam[~ratio.isfinite()][0]))
            raise RuntimeError(
                f"solve_adaptive: {bad} of {len(w)} samples are not finite near t={t:.3g}; "
                "check the model"
            )
        return ratio


# Dormand and Prince, A family of embedded Runge-Kutta formulae (1980), table 2.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Stages(Protocol):
    """Maps (problem, lam, w, k, h), k = read(w), to the new w, its k, and the error."""

    def __call__(
        self, problem: _Problem, lam: Tensor, w: Tensor, k: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Pair:
    """An embedded pair: the function of w it integrates, its stages, calls per step and order."""

    read: Callable[[_Problem, Tensor, Tensor], Tensor]
    stages: Stages
    calls: int
    order: int


def _embedded(problem: _Problem, max_nfe: int, pair: Pair) -> tuple[Tensor, Tensor]:
    """w and lam (B,) at the end, or after the last step within ``max_nfe``."""
    w, end = problem.start(), problem.lam1
    lam = torch.full((len(w),), problem.lam0, dtype=torch.float64)
    h = torch.full_like(lam, 0.05 * (end - problem.lam0))
    k = pair.read(problem, lam, w)
    while problem.nfe + pair.calls <= max_nfe and bool((lam != end).any()):
        last = h.abs() >= (end - lam).abs()
        h = torch.where(last, end - lam, h)
        new, k_new, error = pair.stages(problem, lam, w, k, h)
        ratio = problem.ratio(error, w, new, lam)
        accept = ratio <= 1
        keep = match(accept, w).bool()
        w, k = torch.where(keep, new, w), torch.where(keep, k_new, k)
        # A finished sample continues with steps of length zero, which do not change it.
        lam = torch.where(accept, torch.where(last, end, lam + h), lam)
        h = h * (0.9 * ratio.clamp(min=1e-10) ** (-1 / pair.order)).clamp(0.2, 5.0)
    return w, lam


def _stages(
    problem: _Problem, lam: Tensor, w: Tensor, k: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The fifth-order state, its slope (the first of the next step) and the embedded error."""
    step, slopes, state = match(h, w), [k], w
    for node, row in zip(_NODES, _STAGES, strict=True):
        state = w + step * _sum(row, slopes)
        slopes.append(problem.flow(lam + node * h, state))
    return state, slopes[-1], step * _sum(_ERROR, slopes)


def _exponential_stages(
    problem: _Problem, lam: Tensor, w: Tensor, k: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """DPM-Solver++(3S) with an embedded second-order step; only x0 is approximated.

    DPM-Solver++, arXiv 2211.01095, appendix, with r = 1/3 and 2/3. DPM-Solver, arXiv
    2206.00927, algorithm 4, has the same pair.
    """
    first = problem.x0(lam + h / 3, held_flow(w, k, lam, h / 3)) - k
    state = held_flow(w, k, lam, 2 * h / 3) + 2 * match(_slope(lam, 2 * h / 3), w) * first
    second = problem.x0(lam + 2 * h / 3, state) - k
    gain = match(_slope(lam, h), w)
    new = held_flow(w, k, lam, h) + gain * 1.5 * second
    return new, problem.x0(lam + h, new), gain * (1.5 * second - 3 * first)


def _slope(lam: Tensor, h: Tensor) -> Tensor:
    """a_s (expm1(-h) / h + 1), the weight of a change of x0 over the step; 0 for h = 0."""
    safe = torch.where(h == 0, torch.ones_like(h), h)
    return unit_alpha(lam + h) * torch.where(h == 0, 0.0, torch.expm1(-safe) / safe + 1)


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return combine(*(term for term in zip(weights, slopes, strict=True) if term[0]))


DORMAND_PRINCE = Pair(_Problem.flow, _stages, 6, 5)
EXPONENTIAL = Pair(_Problem.x0, _exponential_stages, 3, 3)

_DEPTH = 20
"""The smallest step of the stochastic solver is 2^-20 of the range of lam."""


def _stochastic_heun(problem: _Problem, max_nfe: int, path: BrownianPath) -> tuple[Tensor, Tensor]:
    """w and lam (B,) at the end, or after the last step within ``max_nfe``.

    The steps are cells of a dyadic partition of the range of lam, so that a step and its halves
    see the same path. With additive noise Heun's method is of weak order 2. The error estimate is
    its difference from Euler's.
    """
    w, lam0, span = problem.start(), problem.lam0, problem.lam1 - problem.lam0
    level = torch.full((len(w),), 3)
    place = torch.zeros_like(level)  # in units of the smallest cell
    while problem.nfe + 2 <= max_nfe and bool((place < 2**_DEPTH).any()):
        active = place < 2**_DEPTH
        h = torch.where(active, span * 2.0 ** -level.double(), 0.0)
        lam = lam0 + span * 2.0**-_DEPTH * place.double()
        cell = torch.where(active, place >> (_DEPTH - level), 0)
        kick = _kick(path, w, level, cell, lam + h / 2, span) * match(active, w)
        new, error = _heun(problem, lam, w, h, kick)
        ratio = problem.ratio(error, w, new, lam)
        accept = active & ((ratio <= 1) | (level == _DEPTH))
        w = torch.where(match(accept, w).bool(), new, w)
        place = place + torch.where(accept, 2 ** (_DEPTH - level), 0)
        # A cell may double if it is the left half of its parent and its error was below a quarter.
        aligned = (place >> (_DEPTH - level)) % 2 == 0
        grow = accept & aligned & (ratio < 0.25) & (level > 0)
        level = torch.where(active & ~accept, level + 1, torch.where(grow, level - 1, level))
    done = place >= 2**_DEPTH
    return w, torch.where(done, problem.lam1, lam0 + span * 2.0**-_DEPTH * place.double())


def _kick(
    path: BrownianPath, w: Tensor, level: Tensor, cell: Tensor, lam: Tensor, span: float
) -> Tensor:
    """sqrt(2) b dW over the cell of each sample, with b at its midpoint."""
    size = math.sqrt(2 * span) * unit_alpha(-lam)
    return match(size, w) * path.cells(w, level, cell)


def _heun(
    problem: _Problem, lam: Tensor, w: Tensor, h: Tensor, kick: Tensor
) -> tuple[Tensor, Tensor]:
    """Heun's step with additive noise, and its difference from Euler's."""
    step = match(h, w)
    slope = problem.reverse(lam, w)
    euler = w + step * slope + kick
    gap = step * (problem.reverse(lam + h, euler) - slope) / 2
    return euler + gap, gap


def _check(sde: SDE, t0: float, t1: float) -> None:
    for name, t in (("t0", t0), ("t1", t1)):
        if not 0 < t <= sde.t_max:
            raise ValueError(f"need 0 < {name} <= {sde.t_max:g}, got {name}={t:g}")
    if t0 == t1:
        raise ValueError(f"need t0 != t1, got {t0:g} twice")
