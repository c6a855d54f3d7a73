"""Search for the best grid for a model, a step and a number of steps, on some starts.

A grid is represented by its increments of lam. The search multiplies the increments of the best
standard grid, first by a smooth profile, then one by one. It minimises the error of the ends of
the trajectories against an accurate solution, on one half of the starts; the other half decides
between the grid found and the default.

Few starts make most of the L2 error: those that a grid takes to another part of the data. The
search therefore runs on a part of its half, drawn with probabilities that grow with the errors of
the grids so far and weighted by their inverse, and draws anew after each third of its budget.
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
Rows = NDArray[np.int64]
Found = tuple[float, Array]  # a loss, and the log increments of its grid

STANDARD: tuple[Grid, ...] = (
    ArctanGrid(),
    grids.log_snr,
    grids.karras(),
    grids.quadratic,
    grids.uniform,
)


class Optimised(NamedTuple):
    """A grid, the loss of the default, its own loss, and the denoiser calls made.

        loss = (l + m) / 2 + 2 max(l - l', m - m', 0)
        l = log(mean_i (e_i + f)^2) / 2,   m = mean_i log(e_i + f),   f = 1e-6

    e_i is the error of start i over the root mean square of the exact ends, so that l is the log
    relative L2 error over all starts; l', m' are those of the default, the first candidate: an
    error that grows in one measure outweighs one that falls in the other. Both losses are of
    starts that the search did not see, and calls count for all starts together.
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
    default the search chooses it, down to ``t_min``. A given ``t_end`` may lie below ``t_min``;
    the errors remain those against the flow to ``t_min``, denoised. The search uses the second
    half of the starts. The default, the first of the ``candidates``, is kept unless the first
    half is for the grid found: each of l and m of ``Optimised`` must be less in 75% of its
    bootstrap resamples. They say nothing of what happens more rarely than once in B / 2 starts. A
    single start serves for both. The search makes about ``budget`` denoiser calls for all starts,
    including those of the reference, and is deterministic. Raises ValueError for invalid
    arguments, a step that draws noise, or a budget too small for the reference.
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
    advance: Callable[[int], None] = lambda calls: None,
) -> Optimised:
    """Like ``optimise_grid``, but also returns the losses and the number of calls.

    ``advance`` is called with every number of further calls.
    """
    _check(denoiser.sde, starts, t_end, candidates)
    calls, rows = _Counted(len(starts), advance), np.arange(len(starts))
    exact = _reference(calls.on(denoiser), starts, n, budget)
    whole = _Problem(denoiser, calls, step, starts, t_end, exact, rows, np.ones(len(rows)))
    bases = [whole.logs(grid(denoiser.sde, n)) for grid in candidates]
    whole = dataclasses.replace(whole, standard=whole.errors(bases[0]))
    half = len(rows) // 2
    judge, pool = whole.among(rows[:half] if half else rows), whole.among(rows[half:])
    tried = [(pool.standard, bases[0]), *((pool.errors(logs), logs) for logs in bases[1:])]
    budget -= math.ceil((_ROUNDS + len(_SHARES)) * (n + 1) / 2)  # the calls on whole halves
    for left in range(_ROUNDS, 0, -1):
        tried.sort(key=lambda one: pool.loss(one[0]))
        chosen, weights = _informative([pool.standard, *(errors for errors, _ in tried[:3])])
        search = pool.among(chosen, weights)
        ranked = sorted(
            ((search.loss(errors[chosen]), logs) for errors, logs in tried), key=lambda one: one[0]
        )
        logs = _searched(search, ranked, n, calls.count + (budget - calls.count) / left)
        tried.append((pool.errors(logs), logs))
    _, best = min(tried, key=lambda one: pool.loss(one[0]))
    before = judge.loss(judge.standard)
    loss, logs = before, bases[0]
    for share in _SHARES:  # all of the way to the grid found, or a part of it
        way = bases[0] + share * (best - bases[0])
        errors = judge.errors(way)
        if judge.loss(errors) < loss and judge.is_surely_better(errors):
            loss, logs = judge.loss(errors), way
    return Optimised(whole.times(logs), before, loss, math.ceil(calls.count))


# --- the loss ---------------------------------------------------------------------------------


@dataclass
class _Counted:
    """Counts the calls of denoisers, in units of a call for all starts."""

    starts: int
    advance: Callable[[int], None]
    samples: int = field(default=0, init=False)

    @property
    def count(self) -> float:
        return self.samples / self.starts

    def on(self, denoiser: Denoiser) -> Denoiser:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            before, self.samples = self.samples, self.samples + len(x)
            self.advance(self.samples // self.starts - before // self.starts)
            return denoiser(x, t)

        return dataclasses.replace(denoiser, predict=predict)


@dataclass(frozen=True)
class _Problem:
    """The loss of a grid, represented by its log increments of lam, on weighted rows of starts.

    ``starts`` and ``exact`` are of the whole batch; ``standard`` are the default's errors of the
    rows.
    """

    denoiser: Denoiser
    calls: _Counted
    step: Step
    starts: Tensor
    t_end: float | None
    exact: Tensor
    rows: Rows
    weights: Array
    standard: Array = field(default_factory=lambda: np.array([math.inf]))

    def among(self, chosen: Rows, weights: Array | None = None) -> _Problem:
        """The problem on some of its rows, of equal weight unless given."""
        weights = np.ones(len(chosen)) if weights is None else weights
        standard = self.standard[chosen]
        return dataclasses.replace(
            self, rows=self.rows[chosen], weights=weights, standard=standard
        )

    def logs(self, ts: Tensor) -> Array:
        return np.log(np.diff(self.denoiser.sde.lam(ts.double().cpu()).numpy()))

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

    def errors(self, logs: Array) -> Array:
        """|e_i| / rms |x|, (rows,).

        Infinite if the grid ends below ``t_min``, does not decrease, or one start diverges.
        """
        ts, bad = self.times(logs), np.full(len(self.rows), math.inf)
        if float(ts[-1]) < min(self.denoiser.sde.t_min, self.t_end or math.inf):
            return bad
        if not bool((ts.diff() < 0).all()):
            return bad
        rows = torch.from_numpy(self.rows).to(self.starts.device)
        denoiser = self.calls.on(self.denoiser.among(rows, len(self.starts)))
        end = sample(denoiser, self.starts[rows], ts, self.step, _no_noise)
        error, exact = (end - self.exact[rows]).flatten(1).double(), self.exact.flatten(1).double()
        each = error.norm(dim=1) / exact.norm(dim=1).square().mean().sqrt()
        return each.cpu().numpy() if bool(each.isfinite().all()) else bad

    def measures(self, errors: Array) -> tuple[Array, Array]:
        """l and m of ``Optimised`` for errors (..., rows)."""
        floored = errors + _FLOOR
        l2 = np.log(np.average(floored**2, axis=-1, weights=self.weights)) / 2
        return l2, np.average(np.log(floored), axis=-1, weights=self.weights)

    def loss(self, errors: Array) -> float:
        """The loss of ``Optimised``."""
        if not np.isfinite(errors).all():
            return math.inf
        found, standard = self.measures(errors), self.measures(self.standard)
        behind = max(0.0, *(float(a - b) for a, b in zip(found, standard, strict=True)))
        return float(sum(found)) / 2 + 2 * behind

    def is_surely_better(self, errors: Array) -> bool:
        """Whether each measure is less than the default's in 75% of bootstrap resamples."""
        b = len(errors)
        picks = np.random.default_rng(0).integers(b, size=(_RESAMPLES, b))
        found, standard = self.measures(errors[picks]), self.measures(self.standard[picks])
        less = [(a < b).mean() for a, b in zip(found, standard, strict=True)]
        return bool(min(less) >= _CONFIDENCE)

    def along(self, origin: Array, profile: Array) -> Loss:
        """The loss as a function of moves (directions,) from ``origin``."""
        return lambda move: self.loss(self.errors(origin + profile @ move))


_FLOOR = 1e-6
"""Relative error below which a start no longer lowers the loss."""

_RESAMPLES, _CONFIDENCE = 1000, 0.75


def _reference(denoiser: Denoiser, starts: Tensor, n: int, budget: int) -> Tensor:
    """The flow down to ``t_min``, denoised, by the default with several times as many steps."""
    steps = min(3 * n + 25, budget // 2 - 1)
    if steps < 2 * n:
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

_ROUNDS, _TRIES, _KNOTS, _FINE, _ROWS = 3, 3, 6, 20, 64
_SHARES = (1.0, 0.5, 0.25)


def _informative(errors: Sequence[Array]) -> tuple[Rows, Array]:
    """A quarter of the rows, at least 8 if there are and at most 64, and their weights.

    The probability of a row is the mean of a uniform one and one proportional to its squared
    error, relative to each grid's mean; it is at most 1, and the weight is its inverse. The draw
    is systematic along the rows in the order of their errors.
    """
    count = len(errors[0])
    k = min(count, max(8, count // 4), _ROWS)
    if k == count:
        return np.arange(count), np.ones(count)
    finite = [e + _FLOOR for e in errors if np.isfinite(e).all()] or [np.ones(count)]
    share = 1 + np.mean([e**2 / (e**2).mean() for e in finite], axis=0)
    chance = share * k / share.sum()
    while (chance > 1).any():  # rows that are certain leave more for the others
        sure = chance >= 1
        chance = np.where(sure, 1.0, share * (k - sure.sum()) / share[~sure].sum())
    order = np.argsort(share)
    places = np.searchsorted(chance[order].cumsum(), np.arange(k) + 0.5)
    chosen = order[places]
    return chosen, 1 / chance[chosen]


def _searched(problem: _Problem, ranked: Sequence[Found], n: int, budget: float) -> Array:
    """The best grid after descents from the first of the ranked ones, within the budget."""
    coarse, *finer = _profiles(n)
    best = ranked[0]
    for base in ranked[:_TRIES]:
        # Try a base that is not the best only while little of the budget is used.
        if base is ranked[0] or problem.calls.count < budget / 3:
            best = min(best, _improved(problem, base, coarse, budget), key=lambda found: found[0])
    for profile in finer:
        best = _improved(problem, best, profile, budget)
    return best[1]


def _improved(problem: _Problem, found: Found, profile: Array, budget: float) -> Found:
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
