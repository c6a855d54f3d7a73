"""Compares samplers with the exact paths of a model: error, network calls and seconds."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde.config import build_grid
from scoresde.convergence import draws_noise, gap
from scoresde.denoiser import Denoiser
from scoresde.parameterization import ScoreModel
from scoresde.progress import Advance, Progress, silent
from scoresde.registry import GRIDS, SELF_PACED, GridSampler, build_step, constructor
from scoresde.runs.instrument import Instrument
from scoresde.runs.optimised import GridSearch, optimised_grid, without_class
from scoresde.runs.results import ResultFolder
from scoresde.runs.space import state_shape
from scoresde.samplers import (
    Grid,
    per_sample_noise,
    solve_adaptive,
    starting_noise,
    suited_grid,
)

MOST_CALLS = 20_000
FINEST = 1e-8  # what float32 resolves
SAMPLERS = ("ddim", "heun", "dpmpp_2m", "unipc", "deis")
STEPS_TAKEN = (5, 10, 20, 50)


@dataclass(frozen=True)
class Trial:
    """Result of one sampler: its distance from the reference, network calls and seconds.

    ``relative`` is the relative L2 error over all samples, ``median`` the median of the relative
    errors of single samples. Both are None if not finite.
    """

    sampler: str
    grid: str
    steps: int
    nfe: int
    relative: float | None
    median: float | None
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """All trials, with the network calls and seeds of the exact paths and lines for the user."""

    trials: tuple[Trial, ...]
    nfe: int
    seeds: tuple[int, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Contender:
    """A sampler to measure, with the names of its step and its grid."""

    name: str
    grid: str
    sampler: GridSampler


def compare(
    model: ScoreModel,
    samplers: Sequence[str] = SAMPLERS,
    steps: Sequence[int] = STEPS_TAKEN,
    grids: Sequence[str] | None = None,
    *,
    num: int = 32,
    seed: int = 0,
    tolerance: float = 1e-7,
    shape: Sequence[int] | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Measure the distance between samplers and exact probability-flow paths from the same starts.

    Every path ends with the denoised state. The errors of a model of latents are those of latents.
    Samplers that draw noise have no exact path and are
    left out. The errors of a sampler that diverges are None.

    Args:
        model: trained model.
        samplers: names in ``registry.STEPS``.
        steps: numbers of steps; a sampler that paces itself runs once.
        grids: names in ``registry.GRIDS``; by default the grid of the model's configuration.
        num: number of starting points.
        seed: seed of the first starting point; the others follow.
        tolerance: relative and absolute tolerance of the exact path.
        shape: shape of one sample, for a model without a description of its data.
        folder: folder that stores optimised grids.
        progress: shows how many samplers are done.

    Raises ValueError for bad arguments, RuntimeError if the exact path takes too many network
    calls.
    """
    for name, value in (("num", num), *(("steps", n) for n in steps)):
        if value < 1:
            raise ValueError(f"{name}: need at least 1, got {value}")
    if not FINEST <= tolerance < 1:
        raise ValueError(f"tolerance: need {FINEST:g} to 1, got {tolerance:g}")
    if model.data is None and shape is None:
        raise ValueError("shape is missing: the model does not say what it was trained on")
    shape = state_shape(model, shape)
    noisy = [n for n in samplers if draws_noise(build_step(n, {}, 20))]
    why = "with noise there is no path to compare with"
    if len(noisy) == len(samplers):
        raise ValueError(f"samplers: {', '.join(noisy)}: {why}; add one without, such as heun")
    kinds = [name for name in samplers if name not in noisy]
    notes: list[str] = []

    def optimised(search: GridSearch) -> Grid:
        found, note = optimised_grid(model, tuple(shape), search, folder, progress)
        notes.append(note)
        return found

    found = list(_contenders(model, kinds, steps, grids, optimised))
    seeds = range(seed, seed + num)
    x = starting_noise(
        model.sde, torch.empty(num, *shape, device=model.device), per_sample_noise(seeds)
    )
    denoiser = without_class(model, num)
    exact, nfe = _reference(denoiser, x, tolerance)
    with progress(len(found), "samplers") as advance:
        trials = tuple(_trial(each, denoiser, x, exact, seeds, advance) for each in found)
    left_out = tuple(f"{name}: left out, {why}" for name in noisy)
    return Comparison(trials, nfe, tuple(seeds), left_out, tuple(notes))


def compare_folder(folder: Path) -> ResultFolder:
    """The folder of a comparison, whose files ``compare.json`` lists."""
    return ResultFolder(folder, "compare.json", re.compile(r"compare\.png"))


def _contenders(
    model: ScoreModel,
    names: Sequence[str],
    steps: Sequence[int],
    grids: Sequence[str] | None,
    optimised: Callable[[GridSearch], Grid],
) -> Iterator[_Contender]:
    """Yield each sampler on each grid with each number of steps; a self-paced one only once."""
    own = None if model.config is None or grids is not None else model.config.sample.grid
    for name in names:
        if name in SELF_PACED:
            step = build_step(name, {}, 1)
            yield _Contender(name, "-", GridSampler(suited_grid(step, model.std), step, 1))
            continue
        for place in grids or [own.kind if own else "recommended"]:
            for n in steps:
                step = build_step(name, {}, n, model.std)
                if place == "optimised":
                    grid = optimised(GridSearch(name, step, n))
                elif grids is None and own:
                    grid = build_grid(own, step, model.std)
                else:
                    grid = (
                        suited_grid(step, model.std)
                        if place == "recommended"
                        else constructor(GRIDS, place)()
                    )
                yield _Contender(name, place, GridSampler(grid, step, n))


def _reference(denoiser: Denoiser, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """Denoised end points of the exact paths, and the network calls that they took."""
    sde = denoiser.sde
    end = solve_adaptive(denoiser, x, sde.t_max, sde.t_eps, tolerance, tolerance, MOST_CALLS)
    if not bool(end.finished.all()):
        raise RuntimeError(
            f"the exact path took more than {MOST_CALLS} network calls; raise the tolerance"
        )
    with torch.no_grad():
        exact = denoiser(end.x, torch.tensor(sde.t_eps, dtype=torch.float64))
    return exact.cpu(), end.nfe + 1


def _trial(
    contender: _Contender,
    denoiser: Denoiser,
    x: Tensor,
    exact: Tensor,
    seeds: Sequence[int],
    advance: Advance,
) -> Trial:
    """Run a sampler from the starts; its errors are None if it diverges."""
    instrument, noise = Instrument(strict=False), per_sample_noise(seeds)
    sampler, started = contender.sampler, time.perf_counter()
    end = sampler(instrument.on(denoiser), x, noise).cpu()
    seconds = time.perf_counter() - started
    advance(1)
    relative, median = (e if math.isfinite(e) else None for e in gap(end, exact))
    names = contender.name, contender.grid
    return Trial(*names, sampler.steps, instrument.count, relative, median, seconds)
