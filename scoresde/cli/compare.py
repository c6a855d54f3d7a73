"""``scoresde compare``: samplers against the exact paths of a trained model."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.cli.choices import counts, names
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import CompareOptions
from scoresde.cli.sample import optimised_grid
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import Config, build_grid
from scoresde.convergence import draws_noise, gap
from scoresde.denoiser import Denoiser
from scoresde.registry import GRIDS, SELF_PACED, STEPS, GridSampler, build_step, grid_steps
from scoresde.runs.compare_plot import Trial, draw
from scoresde.runs.folder import write_text
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import Wanted, checked
from scoresde.runs.watch import Watch
from scoresde.samplers import per_sample_noise, solve_adaptive, starting_noise

MOST_CALLS = 20_000
CHOICES = tuple(name for name in GRIDS if name != "file")
FINEST = 1e-8  # what float32 resolves
FILES = ("compare.json", "compare.png")


@dataclass(frozen=True)
class Contender:
    """A sampler by its names."""

    kind: str
    grid: str
    sampler: GridSampler


@dataclass(frozen=True)
class Problem:
    """A model with its starts (B, ...), and the denoised ends of their paths."""

    denoiser: Denoiser
    seeds: Sequence[int]
    x: Tensor
    exact: Tensor
    nfe: int


def run(options: CompareOptions, overrides: Mapping[str, Any]) -> int:
    """Solve, compare, print and write."""
    _check(options)
    kinds, left_out = followers(names("--samplers", options.samplers, STEPS))
    steps = counts("--steps", options.steps)
    asked = None if options.grid is None else names("--grid", options.grid, CHOICES)
    loaded = load_chosen(options.checkpoint, options)
    for note in (*loaded.notes, *left_out):
        print(note, file=sys.stderr)
    loaded.model.to(pick_device(options.device))
    found = list(contenders(kinds, asked, steps, loaded))
    problem = solve(loaded, options)
    with progress(len(found), "samplers") as advance:
        trials = [trial(problem, contender, advance) for contender in found]
    record = _settings(options, loaded, problem) | {
        "left_out": left_out,
        "trials": [asdict(each) for each in trials],
    }
    if options.out is not None:
        _write(options.out, record, trials)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show(trials, problem, options)
    return 0


def followers(kinds: Sequence[str]) -> tuple[list[str], list[str]]:
    """The samplers that follow the probability flow, and a line about each of the others.

    Raises ValueError if none does.
    """
    noisy = [kind for kind in kinds if draws_noise(build_step(kind, {}, 20))]
    if len(noisy) == len(kinds):
        raise ValueError(
            f"--samplers: {', '.join(noisy)}: with noise there is no path to compare with; "
            "add one without, such as heun"
        )
    lines = [f"{kind}: left out, with noise there is no path to compare with" for kind in noisy]
    return [kind for kind in kinds if kind not in noisy], lines


def contenders(
    kinds: Sequence[str], asked: Sequence[str] | None, steps: Sequence[int], loaded: LoadedRun
) -> Iterator[Contender]:
    """Every sampler on every grid with every number of steps; once, if it paces itself.

    Without ``--grid`` the grid is that of the run.
    """
    run = loaded.config.sample.grid
    for kind in kinds:
        paced = kind in SELF_PACED
        for name in [run.kind] if asked is None else asked[: 1 if paced else None]:
            for n in steps[: 1 if paced else None]:
                step = build_step(kind, {}, n)
                planned = grid_steps(step, n)
                if paced:
                    yield Contender(kind, "-", GridSampler(GRIDS["log_snr"](), step, planned))
                elif name == "optimised":
                    want = checked(
                        Wanted(
                            kind, step, planned, Config(sample={"grid": "optimised"}).sample.grid
                        )
                    )
                    grid = optimised_grid(loaded, want)
                    yield Contender(kind, name, GridSampler(grid, step, planned))
                else:
                    grid = build_grid(run) if asked is None else GRIDS[name]()
                    yield Contender(kind, name, GridSampler(grid, step, planned))


def solve(loaded: LoadedRun, options: CompareOptions) -> Problem:
    """The starts of the seeds, carried along the paths of the model within the tolerance."""
    model = loaded.model
    weight = next(model.parameters())
    seeds = range(options.seed, options.seed + options.num)
    empty = torch.empty(options.num, *loaded.data.shape, device=weight.device)
    x = starting_noise(model.sde, empty, per_sample_noise(seeds))
    denoiser, sde = model.denoiser(), model.sde
    end = solve_adaptive(
        denoiser, x, sde.t_max, sde.t_eps, options.tolerance, options.tolerance, MOST_CALLS
    )
    if not bool(end.finished.all()):
        raise RuntimeError(
            f"the reference path took more than {MOST_CALLS} network calls; raise --tolerance"
        )
    with torch.no_grad():
        exact = denoiser(end.x, torch.tensor(sde.t_eps, dtype=torch.float64))
    return Problem(denoiser, seeds, x, exact.cpu(), end.nfe + 1)


def trial(problem: Problem, contender: Contender, advance: Callable[[int], None]) -> Trial:
    """Let a sampler run from the starts of the problem; one that diverges shows in the table."""
    watch, noise = Watch(strict=False), per_sample_noise(problem.seeds)
    sampler = contender.sampler
    started = time.perf_counter()
    x = sampler(watch.over(problem.denoiser), problem.x, noise).cpu()
    seconds = time.perf_counter() - started
    advance(1)
    relative, median = (e if math.isfinite(e) else None for e in gap(x, problem.exact))
    kind, grid = contender.kind, contender.grid
    return Trial(kind, grid, sampler.steps, watch.count, relative, median, seconds)


# Reports --------------------------------------------------------------------------------------


def show(trials: Sequence[Trial], problem: Problem, options: CompareOptions) -> None:
    """A line a trial, and what they are compared with."""
    from rich.console import Console
    from rich.table import Table

    table = Table("sampler", "grid", header_style="bold")
    for column in ("steps", "calls", "relative L2", "median", "seconds"):
        table.add_column(column, justify="right")
    for each in trials:
        errors = ("diverged" if e is None else f"{e:.2e}" for e in (each.relative, each.median))
        numbers = (str(each.steps), str(each.nfe), *errors, f"{each.seconds:.2f}")
        table.add_row(each.sampler, each.grid, *numbers)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"Distance from the paths of {len(problem.x)} starts to t={problem.denoiser.sde.t_eps:g}, "
        f"solved within {options.tolerance:g} in {problem.nfe} calls. All end with the denoised "
        "state, so that a grid with an end of its own never comes nearer than the ends are."
    )


def _settings(options: CompareOptions, loaded: LoadedRun, problem: Problem) -> dict[str, Any]:
    return {
        "checkpoint": str(loaded.source),
        "step": loaded.step,
        **described_choice(options),
        "num": options.num,
        "seed": options.seed,
        "reference": {"tolerance": options.tolerance, "nfe": problem.nfe},
    }


def _write(folder: Path, record: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "compare.json", json.dumps(record, indent=2) + "\n")
    draw(folder / "compare.png", trials)


def _check(options: CompareOptions) -> None:
    """Raise ValueError for options that cannot be used, and for a folder in use."""
    if options.num < 1:
        raise ValueError(f"--num: need at least 1, got {options.num}")
    if not FINEST <= options.tolerance < 1:
        raise ValueError(f"--tolerance: need {FINEST:g} to 1, got {options.tolerance:g}")
    folder = options.out
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not a folder; give another --out")
    held = [name for name in FILES if folder is not None and (folder / name).exists()]
    if held and not options.overwrite:
        raise ValueError(f"{folder}: holds {held[0]}; give another --out, or --overwrite")
