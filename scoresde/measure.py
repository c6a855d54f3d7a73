"""Measuring samplers: their orders on problems with exact answers, their distance from a path.

No draw is averaged over: the paths of deterministic steps are compared one by one, and mean and
variance of stochastic ones are carried along exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers import Noise, Step, sample, solve_adaptive
from scoresde.samplers.grids import log_snr
from scoresde.samplers.singlestep import Sequence
from scoresde.sde import EDM, SDE
from scoresde.testing import Gaussian, grid25

Make = Callable[[int], Step]
"""The step for a grid of n steps, which most ignore."""

PATH_STEPS = (40, 80, 160, 320)
WEAK_STEPS = (100, 200, 400)
PATHS = 32
TOLERANCE = 1e-11
END = math.log(1 / 0.3)
"""lam where paths end: in the last decade of noise 25 sharp modes need more steps than these."""
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

    n = len(step.steps) if isinstance(step, Sequence) else 4
    _walk(step, EDM(), torch.zeros(1, 1, dtype=torch.float64), n, noise)
    return asked


def weak_order(make: Make, sde: SDE) -> Convergence:
    """The errors of a step's mean and variance on N(0.3, 0.6^2), summed, over the whole range.

    On Gaussian data a step is affine in the state and its draws, so the moments are exact. Terms
    of the error may cancel there that do not elsewhere.
    """
    return Convergence(WEAK_STEPS, tuple(_bias(make(n), sde, n) for n in WEAK_STEPS))


def _bias(step: Step, sde: SDE, n: int) -> float:
    """|mean - exact| + |variance / exact - 1| at the end, from the exact marginal at t_max."""
    gain, shift, added = _affine(step, sde, n)
    (mean, var), (exact_mean, exact_var) = (_moments(sde, t) for t in (sde.t_max, sde.t_eps))
    return abs(gain * mean + shift - exact_mean) + abs((gain**2 * var + added) / exact_var - 1)


def _affine(step: Step, sde: SDE, n: int) -> tuple[float, float, float]:
    """The whole walk as x -> gain x + shift + noise of variance ``added``.

    One batch probes it: row 0 from x = 0 without noise, row 1 from x = 1, row 2 + j with draw j.
    """
    rows = 2 * n * step.nfe_per_step + 100  # two draws a call, and a few in between
    x = torch.zeros(2 + rows, 1, dtype=torch.float64)
    x[1] = 1.0
    draw = iter(range(2, 2 + rows))

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        z = torch.zeros_like(x)
        z[next(draw)] = 1.0
        return z

    end = _walk(step, sde, x, n, noise).squeeze(1)
    return float(end[1] - end[0]), float(end[0]), float((end[2:] - end[0]).square().sum())


def _walk(step: Step, sde: SDE, x: Tensor, n: int, noise: Noise) -> Tensor:
    return sample(LINE.denoiser(sde), x, log_snr(sde, n), step, noise, denoise=False)


def _moments(sde: SDE, t: float) -> tuple[float, float]:
    """Mean and variance of the marginal."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    return alpha * float(LINE.mean), alpha**2 * float(LINE.cov) + sigma**2


def _lam(sde: SDE, t: float) -> float:
    return float(sde.lam(torch.tensor(t, dtype=torch.float64)))
