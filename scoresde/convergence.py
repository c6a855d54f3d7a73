"""Measured orders of samplers on problems with exact solutions.

There is no sampling error: paths of deterministic steps are compared one by one, and the moments
of stochastic steps are computed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers import Step, sample, solve_adaptive
from scoresde.samplers.grids import log_snr
from scoresde.samplers.singlestep import StepSequence
from scoresde.sde import EDM, SDE
from scoresde.testing import Gaussian, grid25

Make = Callable[[int], Step]
"""The step for a grid of n steps."""

PATH_STEPS = (40, 80, 160, 320)
WEAK_STEPS = (100, 200, 400, 800, 1600, 3200)
SETTLED = 0.05
ROUNDING = 1e-12
PATHS = 32
TOLERANCE = 1e-11
END = math.log(1 / 0.3)
"""lam at the end of paths; at less noise the 25 sharp modes would need more steps."""
WINDOW = (-1.0, 2.0)
"""The range of lam over which moments are measured; most of x0 is determined there."""
LINE = Gaussian(*torch.tensor([[0.3], [0.36]], dtype=torch.float64))


@dataclass(frozen=True)
class Convergence:
    """Errors at growing numbers of steps."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """The order from the last two errors: error ~ steps^-order."""
        (n, m), (coarse, fine) = self.steps[-2:], self.errors[-2:]
        return math.log(coarse / fine) / math.log(m / n)


class Gap(NamedTuple):
    """Relative distance of states from a reference: in L2 over all of them, and the median."""

    relative: float
    median: float


def gap(x: Tensor, exact: Tensor) -> Gap:
    """|x - exact| / |exact| of states (B, ...)."""
    off = (x - exact).double().flatten(1).norm(dim=1)
    size = exact.double().flatten(1).norm(dim=1)
    return Gap(float(off.norm() / size.norm()), float((off / size).median()))


# --- deterministic steps ----------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """Initial states (B, D), their exact final states, and lam at the start."""

    denoiser: Denoiser
    x: Tensor
    exact: Tensor
    start: float

    def grid(self, n: int) -> Tensor:
        """n + 1 times in equal steps of lam."""
        lam = torch.linspace(self.start, END, n + 1, dtype=torch.float64)
        return self.denoiser.sde.time(lam)

    def end(self, step: Step, n: int) -> Tensor:
        """The final states after n steps."""
        return sample(self.denoiser, self.x, self.grid(n), step, denoise=False)


def mixture_paths(sde: SDE) -> Paths:
    """Paths of a mixture of 25 Gaussians in the plane from ``t_max``, at a tolerance of 1e-11."""
    denoiser, start = grid25().denoiser(sde), _lam(sde, sde.t_max)
    z = torch.randn(PATHS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, end = z * sde.prior().stddev, float(sde.time(torch.tensor(END, dtype=torch.float64)))
    solved = solve_adaptive(denoiser, x, sde.t_max, end, TOLERANCE, TOLERANCE, 10_000)
    return Paths(denoiser, x, solved.x, start)


def path_order(make: Make, paths: Paths) -> Convergence:
    """The root mean square errors of a deterministic step on paths."""
    ends = [paths.end(make(n), n) for n in PATH_STEPS]
    errors = [float((x - paths.exact).square().mean().sqrt()) for x in ends]
    return Convergence(PATH_STEPS, tuple(errors))


# --- stochastic steps -------------------------------------------------------------------------


def draws_noise(step: Step) -> bool:
    """True if a step draws noise on a grid from ``t_max`` to data."""
    drawn = False

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal drawn
        drawn = True
        return torch.zeros_like(x)

    sde, n = EDM(), len(step.steps) if isinstance(step, StepSequence) else 4
    x = torch.zeros(1, 1, dtype=torch.float64)
    sample(LINE.denoiser(sde), x, log_snr(sde, n), step, noise, denoise=False)
    return drawn


class Bias(NamedTuple):
    """Errors at lam = 2 of a walk from the exact marginal at lam = -1.

    For data N(0.3, 0.6^2) the errors of the mean, in deviations, and of the variance, relative.
    For the skewed density p (1 + eps He_3(z)) the errors of d/deps E He_i(z) at eps = 0, i = 1, 2,
    3, relative to the exact value for He_3.
    """

    mean: float
    variance: float
    skewed: tuple[float, ...]

    @property
    def total(self) -> float:
        """The sum of the absolute errors."""
        return abs(self.mean) + abs(self.variance) + sum(map(abs, self.skewed))


def weak_order(make: Make, sde: SDE) -> Convergence:
    """The errors of the moments of a step, for doubled numbers of steps until the order settles.

    Skewed data matter because second-order terms may cancel on Gaussian data.
    """
    errors: list[float] = []
    for n in WEAK_STEPS:
        errors.append(bias(make(n), sde, n).total)
        found = Convergence(WEAK_STEPS[: len(errors)], tuple(errors))
        if _settled(found):
            break
    return found


def _settled(found: Convergence) -> bool:
    """True if the last two orders agree, or only rounding errors remain."""
    if len(found.steps) < 3:
        return False
    before = Convergence(found.steps[:-1], found.errors[:-1])
    return found.errors[-1] < ROUNDING or abs(found.order - before.order) < SETTLED


def bias(step: Step, sde: SDE, n: int) -> Bias:
    """The exact bias of n equal steps of lam: docs/theory.md, (15) and (16)."""
    walk = _walk(step, sde, n)
    a, b, gains = walk.end, walk.calls, walk.gains
    both = b.loadings @ a.loadings
    b_square = b.mean**2 + b.variance
    a_square = a.mean**2 + a.variance
    # E[i He_{i-1}(a) He_2(b)] for a and b jointly normal.
    drive = (
        b_square - 1,
        2 * (a.mean * (b_square - 1) + 2 * b.mean * both),
        3 * ((a_square - 1) * (b_square - 1) + 4 * a.mean * b.mean * both + 2 * both**2),
    )
    skewed = [float(gains @ each) for each in drive]
    skewed[2] += 6 * walk.skew_start * float(a.loadings[0]) ** 3
    exact = 6 * walk.skew_end
    skewed[2] -= exact
    return Bias(float(a.mean), float(a.variance) - 1, tuple(each / exact for each in skewed))


class _Normals(NamedTuple):
    """Standardised states, mean + loadings @ (standard normals of the start and the draws)."""

    mean: Tensor
    loadings: Tensor

    @property
    def variance(self) -> Tensor:
        return self.loadings.square().sum(-1)


@dataclass(frozen=True)
class _Walk:
    """The states at the end and at every call, and the effect of skewed data on the end.

    ``gains`` (calls,) multiply He_2 of the states at the calls.
    """

    end: _Normals
    calls: _Normals
    gains: Tensor
    skew_start: float
    skew_end: float


def _walk(step: Step, sde: SDE, n: int) -> _Walk:
    """An affine walk from one batch: rows 0 and 1 start from 0 and 1, row 2 + j is perturbed at
    event j, a draw or a call.
    """
    ts = sde.time(torch.linspace(*WINDOW, n + 1, dtype=torch.float64))
    drawn: list[int] = []
    called: list[int] = []
    seen: list[Tensor] = []
    times: list[Tensor] = []
    exact = LINE.denoiser(sde)

    def kick(x: Tensor, rows: list[int]) -> Tensor:
        event = 2 + len(drawn) + len(called)
        rows.append(event)
        z = torch.zeros_like(x)
        z[event : event + 1] = 1.0
        return z

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        return kick(x, drawn)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[:, 0].clone())
        times.append(t)
        return exact(x, t) + kick(x, called)

    def go(rows: int) -> Tensor:
        for each in (drawn, called, seen, times):
            each.clear()
        x = torch.zeros(rows, 1, dtype=torch.float64)
        x[1] = 1.0
        return sample(Denoiser(sde, predict), x, ts, step, noise, denoise=False)[:, 0]

    go(2)  # counts the events
    end = go(2 + len(drawn) + len(called))
    at_start, at_end = _Marginal.at(sde, ts[0]), _Marginal.at(sde, ts[-1])
    at_calls = _Marginal.at(sde, torch.stack(times))
    return _Walk(
        at_end.normals(end, at_start, drawn),
        at_calls.normals(torch.stack(seen), at_start, drawn),
        at_calls.slope * (end[called] - end[0]) / at_end.std,
        float(at_start.rho**3),
        float(at_end.rho**3),
    )


class _Marginal(NamedTuple):
    """Mean and deviation of LINE at times, the correlation rho with x0, and the slope of (15)."""

    mean: Tensor
    std: Tensor
    rho: Tensor
    slope: Tensor

    @classmethod
    def at(cls, sde: SDE, t: Tensor) -> _Marginal:
        alpha, sigma, std0 = sde.alpha(t), sde.sigma(t), float(LINE.cov.sqrt())
        std = torch.hypot(alpha * std0, sigma)
        rho = alpha * std0 / std
        return cls(alpha * float(LINE.mean), std, rho, 3 * rho**3 * sigma**2 / (alpha * std))

    def normals(self, x: Tensor, start: _Marginal, drawn: list[int]) -> _Normals:
        """The rows (..., rows) of affine states as standardised normals."""
        base = x[..., 0]
        per_start = x[..., 1] - base
        loadings = (x[..., drawn] - base.unsqueeze(-1)) / self.std.unsqueeze(-1)
        first = per_start * start.std / self.std
        mean = (base + per_start * start.mean - self.mean) / self.std
        return _Normals(mean, torch.cat([first.unsqueeze(-1), loadings], -1))


def _lam(sde: SDE, t: float) -> float:
    return float(sde.lam(torch.tensor(t, dtype=torch.float64)))
