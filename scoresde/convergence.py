"""Measuring samplers: their orders on problems with exact answers, their distance from a path.

No draw is averaged over: the paths of deterministic steps are compared one by one, and moments of
stochastic ones are carried along exactly.
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
"""The step for a grid of n steps, which most ignore."""

PATH_STEPS = (40, 80, 160, 320)
WEAK_STEPS = (100, 200, 400, 800, 1600, 3200)
SETTLED = 0.05
ROUNDING = 1e-12
PATHS = 32
TOLERANCE = 1e-11
END = math.log(1 / 0.3)
"""lam where paths end: in the last decade of noise 25 sharp modes need more steps than these."""
WINDOW = (-1.0, 2.0)
"""The range of lam over which moments are measured: most of x0 is decided there."""
LINE = Gaussian(*torch.tensor([[0.3], [0.36]], dtype=torch.float64))


@dataclass(frozen=True)
class Convergence:
    """Errors at growing numbers of steps."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """The slope between the last two: error ~ steps^-order."""
        (n, m), (coarse, fine) = self.steps[-2:], self.errors[-2:]
        return math.log(coarse / fine) / math.log(m / n)


class Gap(NamedTuple):
    """How far states are from a reference: in L2 over all of them, and the median over them."""

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
    """Starts (B, D), where the probability flow carries them, and the range of lam between."""

    denoiser: Denoiser
    x: Tensor
    exact: Tensor
    start: float

    def grid(self, n: int) -> Tensor:
        """n + 1 times, equal steps of lam apart."""
        lam = torch.linspace(self.start, END, n + 1, dtype=torch.float64)
        return self.denoiser.sde.time(lam)

    def end(self, step: Step, n: int) -> Tensor:
        """Where a step carries them in n steps."""
        return sample(self.denoiser, self.x, self.grid(n), step, denoise=False)


def mixture_paths(sde: SDE) -> Paths:
    """Paths of a mixture of 25 Gaussians in the plane, to 1e-11, from the start of a process."""
    denoiser, start = grid25().denoiser(sde), _lam(sde, sde.t_max)
    z = torch.randn(PATHS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, end = z * sde.prior().stddev, float(sde.time(torch.tensor(END, dtype=torch.float64)))
    solved = solve_adaptive(denoiser, x, sde.t_max, end, TOLERANCE, TOLERANCE, 10_000)
    return Paths(denoiser, x, solved.x, start)


def path_order(make: Make, paths: Paths) -> Convergence:
    """The errors of a deterministic step on paths, in the root mean square."""
    ends = [paths.end(make(n), n) for n in PATH_STEPS]
    errors = [float((x - paths.exact).square().mean().sqrt()) for x in ends]
    return Convergence(PATH_STEPS, tuple(errors))


# --- stochastic steps -------------------------------------------------------------------------


def draws_noise(step: Step) -> bool:
    """Whether a step asks for noise somewhere between pure noise and data."""
    asked = False

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal asked
        asked = True
        return torch.zeros_like(x)

    sde, n = EDM(), len(step.steps) if isinstance(step, StepSequence) else 4
    x = torch.zeros(1, 1, dtype=torch.float64)
    sample(LINE.denoiser(sde), x, log_snr(sde, n), step, noise, denoise=False)
    return asked


class Bias(NamedTuple):
    """What a walk from the exact marginal at lam = -1 gets wrong at lam = 2.

    Of N(0.3, 0.6^2) the mean, in deviations, and the variance, relative; of that density skewed,
    p (1 + eps He_3(z)), the first three moments, as d/deps E He_i(z) at eps = 0, i = 1, 2, 3, over
    the exact one of He_3.
    """

    mean: float
    variance: float
    skewed: tuple[float, ...]

    @property
    def total(self) -> float:
        """The sum of their sizes."""
        return abs(self.mean) + abs(self.variance) + sum(map(abs, self.skewed))


def weak_order(make: Make, sde: SDE) -> Convergence:
    """The errors of a step's moments, the number of steps doubled until the slope settles.

    Second-order terms may cancel on Gaussian data that do not on skewed ones, and those of a
    start by lower orders show late.
    """
    errors: list[float] = []
    for n in WEAK_STEPS:
        errors.append(bias(make(n), sde, n).total)
        found = Convergence(WEAK_STEPS[: len(errors)], tuple(errors))
        if _settled(found):
            break
    return found


def _settled(found: Convergence) -> bool:
    """Whether the last two slopes agree, or nothing but rounding is left."""
    if len(found.steps) < 3:
        return False
    before = Convergence(found.steps[:-1], found.errors[:-1])
    return found.errors[-1] < ROUNDING or abs(found.order - before.order) < SETTLED


def bias(step: Step, sde: SDE, n: int) -> Bias:
    """What n equal steps of lam get wrong, exactly: docs/theory.md, (15) and (16)."""
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
    """Standardised states, mean + loadings @ (standard normals): the start, then the draws."""

    mean: Tensor
    loadings: Tensor

    @property
    def variance(self) -> Tensor:
        return self.loadings.square().sum(-1)


@dataclass(frozen=True)
class _Walk:
    """The states at the end and at every call, and what skewed data add to the end.

    ``gains`` (calls,) multiply He_2 of the states at the calls.
    """

    end: _Normals
    calls: _Normals
    gains: Tensor
    skew_start: float
    skew_end: float


def _walk(step: Step, sde: SDE, n: int) -> _Walk:
    """An affine walk, read off one batch: rows 0 and 1 start from 0 and 1, row 2 + j is kicked in
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
    """Mean and deviation of LINE at times, the correlation rho with x0, and the part of (15)."""

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
