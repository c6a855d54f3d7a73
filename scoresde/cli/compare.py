"""``scoresde compare``: compares samplers with the exact paths of a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from scoresde.cli.choices import counts, names
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import CompareOptions
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.parameterization import ScoreModel
from scoresde.registry import GRIDS, STEPS
from scoresde.runs.compare import Comparison, compare, compare_folder
from scoresde.runs.compare_plot import save_plot
from scoresde.runs.optimised import grid_folder

CHOICES = tuple(name for name in GRIDS if name != "file")


def run(options: CompareOptions, overrides: Mapping[str, Any]) -> int:
    """Compare the samplers, print a table and write the report."""
    samplers = names("--samplers", options.samplers, STEPS)
    steps = counts("--steps", options.steps)
    grids = None if options.grid is None else names("--grid", options.grid, CHOICES)
    if options.out is not None:
        compare_folder(options.out).require_free(options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    found = compare(
        loaded.model.to(pick_device(options.device)),
        samplers,
        steps,
        grids,
        num=options.num,
        seed=options.seed,
        tolerance=options.tolerance,
        folder=grid_folder(loaded.source),
        progress=progress,
    )
    for note in (*found.left_out, *found.notes):
        print(note, file=sys.stderr)
    record = {
        "checkpoint": str(loaded.source.resolve()),
        "step": loaded.step,
        **described_choice(options),
        "num": options.num,
        "seed": options.seed,
        "reference": {"tolerance": options.tolerance, "nfe": found.nfe},
        "left_out": list(found.left_out),
        "trials": [asdict(each) for each in found.trials],
    }
    if options.out is not None:
        plot = {"compare.png": lambda path: save_plot(path, found.trials)}
        compare_folder(options.out).write(plot, record)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _show(found, options, loaded.model)
    return 0


def _show(found: Comparison, options: CompareOptions, model: ScoreModel) -> None:
    """Print one row per trial, then how the reference was computed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("sampler", "grid", header_style="bold")
    for column in ("steps", "calls", "relative L2", "median", "seconds"):
        table.add_column(column, justify="right")
    for each in found.trials:
        errors = ("diverged" if e is None else f"{e:.2e}" for e in (each.relative, each.median))
        numbers = (str(each.steps), str(each.nfe), *errors, f"{each.seconds:.2f}")
        table.add_row(each.sampler, each.grid, *numbers)
    console = Console(highlight=False)
    console.print(table)
    end, what = model.sde.t_eps, "Distance" if model.codec is None else "Distance, of latents,"
    console.print(
        f"{what} from the paths of {options.num} starts to t={end:g}, solved to tolerance "
        f"{options.tolerance:g} in {found.nfe} calls. Every path ends with the denoised state. "
        "The error of a grid that ends at another time does not converge to 0."
    )
