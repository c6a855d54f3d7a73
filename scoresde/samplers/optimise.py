"""Search for the best grid for a model, a step and a number of steps, on a few dozen starts.

A grid is represented by its increments of lam. The search multiplies the increments of the best
standard grid, first by a smooth profile, then one by one. It minimises the error of the ends of
the trajectories against an accurate solution, on one half of the starts; the other half decides
between the grid found and the standard ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers import grids
from scoresde.samplers.grids import Grid
from scoresde.samplers.loop import sample
from scoresde.samplers.protocols import Step
from scoresde.samplers.recommended import ArctanGrid, recommended
from scoresde.sde import SDE

Array = NDArray[np.float64]
Loss = Callable[[Array], float]
Found = tuple[float, Array]  # a loss, and the log increments of its grid

STANDARD: tuple[Grid, ...] = (
    ArctanGrid(),
    grids.log_snr,
    grids.karras(),
    grids.quadratic,
    grids.uniform,
)


class Optimised(NamedTuple):
    """A grid, the loss of the best standard grid, its own loss, and the denoiser calls made.

        loss = (l + m) / 2 + 2 max(l - l', m - m', 0)

    l is the log relative L2 error over all starts, m the mean log relative error of a start, and
    l', m' are those of the first standard grid: an error that grows in one measure outweighs one
    that falls in the other. Both losses are of starts that the search did not see, and calls
    count for all starts together.
    """

    times: Tensor
    loss_before: float
    loss: float
    calls: int


def optimise_grid(
    denoiser: Denoiser,
    step: Step,
    n: int,
    starts: Tensor,
    *,
    t_end: float | None = None,
    budget: int = 20_000,
    candidates: Sequence[Grid] = STANDARD,
) -> Tensor:
    """The best grid found for a deterministic step, n + 1 decreasing float64 times.

    ``starts`` (B, ...) are states at ``t_max``, the first time. The last time is ``t_end``; by
    default the search chooses it, down to ``t_min``. The search uses the second half of the
    starts. On the first half the result is no worse by the loss of ``Optimised`` than any of the
    ``candidates``. The search makes about ``budget`` denoiser calls for all starts, including
    those of the reference, each for one half of them, and uses no randomness. Raises ValueError
    for invalid arguments, a step that draws noise, or a budget too small for the reference.
    """
    return search_grid(
        denoiser, step, n, starts, t_end=t_end, budget=budget, candidates=candidates
    ).times


def search_grid(
    denoiser: Denoiser,
    step: Step,
    n: int,
    starts: Tensor,
    *,
    t_end: float | None = None,
    budget: int = 20_000,
    candidates: Sequence[Grid] = STANDARD,
) -> Optimised:
    """Like ``optimise_grid``, but also returns the losses and the number of calls."""
    sde = denoiser.sde
    _check(sde, starts, t_end, candidates)
    calls, rows = _Counted(len(starts)), torch.arange(len(starts), device=starts.device)
    first, second = rows.tensor_split(2) if len(rows) > 1 else (rows, rows)
    halves = []
    for half in (second, first):
        part, x = calls.on(denoiser.among(half, len(rows))), starts[half]
        halves.append(_Problem(part, calls, step, x, _reference(part, x, n, budget), t_end))
    search, judge = halves
    bases = [np.log(search.increments(grid(sde, n))) for grid in candidates]
    for problem in (search, judge):
        problem.compare(bases[0])
    ranked = sorted(((search.loss(logs), logs) for logs in bases), key=lambda found: found[0])
    # The judge's part of the budget: all candidates, the grid found, and two on the way to it.
    budget -= math.ceil((n + 1) * (len(bases) + 3) / 2)
    coarse, *finer = _profiles(n)
    best = ranked[0]
    for base in ranked[:_TRIES]:
        # Try a base that is not the best only while little of the budget is used.
        if base is ranked[0] or calls.count < budget // 3:
            best = min(best, _improved(search, base, coarse, budget), key=lambda found: found[0])
    for profile in finer:
        best = _improved(search, best, profile, budget)
    before = min(((judge.loss(logs), logs) for logs in bases), key=lambda found: found[0])
    ways = [before[1] + share * (best[1] - before[1]) for share in (1.0, 0.5, 0.25)]
    judged = [before, *((judge.loss(logs), logs) for logs in ways)]
    loss, logs = min(judged, key=lambda found: found[0])
    return Optimised(search.times(logs), before[0], loss, math.ceil(calls.count))


# --- the loss ---------------------------------------------------------------------------------


@dataclass
class _Counted:
    """Counts the calls of denoisers, in units of a call for all starts."""

    starts: int
    count: float = field(default=0, init=False)

    def on(self, denoiser: Denoiser) -> Denoiser:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            self.count += len(x) / self.starts
            return denoiser(x, t)

        return dataclasses.replace(denoiser, predict=predict)


@dataclass
class _Problem:
    """The loss of a grid, represented by its log increments of lam."""

    denoiser: Denoiser
    calls: _Counted
    step: Step
    starts: Tensor
    exact: Tensor
    t_end: float | None
    standard: tuple[float, float] = field(default=(math.inf, math.inf), init=False)

    def compare(self, logs: Array) -> None:
        """Take a grid for the standard that no measure may fall behind."""
        self.standard = self.measures(logs)

    def increments(self, ts: Tensor) -> Array:
        return np.diff(self.denoiser.sde.lam(ts.double().cpu()).numpy())

    def times(self, logs: Array) -> Tensor:
        """The grid, with exact ends."""
        sde, h = self.denoiser.sde, np.exp(logs)
        lam_max = _lam(sde, sde.t_max)
        if self.t_end is not None:
            h *= (_lam(sde, self.t_end) - lam_max) / h.sum()
        ts = sde.time(torch.from_numpy(lam_max + np.concatenate([[0.0], h.cumsum()])))
        ts[0] = sde.t_max
        # Rounding may put the last time just below t_min.
        last = float(ts[-1]) if self.t_end is None else self.t_end
        ts[-1] = sde.t_min if math.isclose(last, sde.t_min, rel_tol=1e-9) else last
        return ts

    def along(self, origin: Array, profile: Array) -> Loss:
        """The loss as a function of moves (directions,) from ``origin``."""
        return lambda move: self.loss(origin + profile @ move)

    def loss(self, logs: Array) -> float:
        """The loss of ``Optimised``; infinite where a measure is."""
        found = self.measures(logs)
        behind = max(0.0, *(a - b for a, b in zip(found, self.standard, strict=True)))
        return sum(found) / 2 + 2 * behind if math.isfinite(sum(found)) else math.inf

    def measures(self, logs: Array) -> tuple[float, float]:
        """log |e| / |x| and mean_i log(|e_i| / rms |x_i|), with a floor under the latter.

        Infinite if the grid ends below ``t_min``, does not decrease, or diverges.
        """
        ts, bad = self.times(logs), (math.inf, math.inf)
        if float(ts[-1]) < min(self.denoiser.sde.t_min, self.t_end or math.inf):
            return bad
        if not bool((ts.diff() < 0).all()):
            return bad
        end = sample(self.denoiser, self.starts, ts, self.step, _no_noise)
        error, exact = (end - self.exact).flatten(1).double(), self.exact.flatten(1).double()
        each = error.norm(dim=1) / exact.norm(dim=1).square().mean().sqrt()
        if not bool(each.isfinite().all()):
            return bad
        floored = each + _FLOOR
        return float(floored.square().mean().log() / 2), float(floored.log().mean())


_FLOOR = 1e-6
"""Relative error below which a start no longer lowers the loss."""


def _reference(denoiser: Denoiser, starts: Tensor, n: int, budget: int) -> Tensor:
    """The flow down to ``t_min``, denoised, by the default with several times as many steps."""
    steps = min(4 * n + 40, budget // 2 - 1)
    if steps < 3 * n:
        raise ValueError(f"the reference needs more than half of budget={budget}; raise it")
    step, grid = recommended(steps + 1)
    return sample(denoiser, starts, grid(denoiser.sde, steps), step, _no_noise)


def _no_noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    raise ValueError("a grid is optimised for a deterministic step; this one draws noise")


def _lam(sde: SDE, t: float) -> float:
    return float(sde.lam(torch.tensor(t, dtype=torch.float64)))


def _check(sde: SDE, starts: Tensor, t_end: float | None, candidates: Sequence[Grid]) -> None:
    if not len(starts) or not bool(starts.isfinite().all()):
        raise ValueError("optimising a grid needs at least one start, all of them finite")
    if t_end is not None and not 0 < t_end < sde.t_max:
        raise ValueError(f"need 0 < t_end < t_max={sde.t_max:g}, got t_end={t_end:g}")
    if not candidates:
        raise ValueError("need at least one candidate grid to start from")


# --- the search -------------------------------------------------------------------------------

_TRIES, _KNOTS, _FINE = 3, 6, 20


def _improved(problem: _Problem, found: Found, profile: Array, budget: int) -> Found:
    """The result of a descent along the directions of a profile, within the budget."""
    descent = _descend(problem.along(found[1], profile), profile.shape[1], found[0])
    origin = found[1]
    while problem.calls.count < budget and (better := next(descent, None)):
        found = better[1], origin + profile @ better[0]
    return found


def _profiles(n: int) -> Iterator[Array]:
    """Directions of log increments, (n, directions): hats on a few knots, then unit vectors."""
    if n > _KNOTS:
        places = np.linspace(0, _KNOTS - 1, n)
        yield np.stack([np.interp(places, range(_KNOTS), hat) for hat in np.eye(_KNOTS)], 1)
    if n <= _FINE:
        yield np.eye(n)


def _descend(loss: Loss, dim: int, value: float) -> Iterator[tuple[Array, float]]:
    """Coordinate search from zero, where the loss is ``value``, after Hooke and Jeeves.

    It stores the sign and size of the last move per coordinate. Yields the best point and its loss
    after every coordinate; ends when all moves are small.
    """
    x, moves = np.zeros(dim), np.full(dim, 0.15)
    while np.abs(moves).max() > 2e-3:
        old = x
        for i in range(len(x)):
            x, value, moves[i] = _try(loss, x, value, i, float(moves[i]))
            yield x, value
        if (x != old).any() and (ahead := loss(2 * x - old)) < value:
            x, value = 2 * x - old, ahead
            yield x, value


def _try(loss: Loss, x: Array, value: float, i: int, move: float) -> tuple[Array, float, float]:
    """The better of x and x -+ move along i, its loss, and the move to try next time."""
    for signed in (move, -move):
        y = x.copy()
        y[i] += signed
        if (found := loss(y)) < value:
            return y, found, max(-1.0, min(1.5 * signed, 1.0))
    return x, value, move / 2
