"""What the network's output means, and how its errors are weighed: an ablation on the digits.

    python experiments/ablation.py [--seeds 2] [--steps 400] [--only v,edm]

Every parameterisation with every weighting under VP at uniform times; equal network, batch, steps
and rate. Of each the variational bound on the bits per dimension of the test split, and the
Frechet distance of samples to it. A run that is stored is not made again, so that the experiment
can be interrupted, and seeds added. Writes experiments/results/ablation.json and ablation.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from judging import Judge, bits, drawn, errors_by_level, judge_of, surroundings, trained

from scoresde.config import Config, build_dataset, load_config
from scoresde.registry import Scoring

RESULTS = Path(__file__).parent / "results"
STORE, FIGURE = RESULTS / "ablation.json", RESULTS / "ablation.png"
PARAMETERIZATIONS = ("eps", "x0", "v", "flow", "edm")
WEIGHTINGS = ("unit", "sigma2", "likelihood", "min_snr", "edm")
SAMPLES = 512
RATIOS = torch.logspace(-2, 1, 13)
BOUND = Scoring(method="elbo", times=32, batch=360)
BUDGET: dict[str, Any] = {
    "sde": {"kind": "vp", "t_min": 1e-3, "t_eps": 1e-3},
    "network.width": 32,
    "network.multipliers": [1, 2],
    "network.blocks": 1,
    "network.attention": [],
    "network.dropout": 0.0,
    "train.times": "uniform",
    "train.batch": 32,
    "train.lr": 2e-3,
    "train.warmup": 50,
    "train.schedule": "cosine",
    "train.ema": 0.98,
    "train.holdout": 0,
    "train.keep_best": False,
    "sample.sampler": "heun",
    "sample.grid": "karras",
    "sample.steps": 12,
}


@dataclass(frozen=True, order=True)
class Cell:
    """What is varied."""

    parameterization: str
    weighting: str

    @property
    def name(self) -> str:
        return f"{self.parameterization}, {self.weighting}"


def cells() -> list[Cell]:
    """What is run: equal ones once, and ``score`` as a control, which is -eps."""
    product = [Cell(p, w) for p in PARAMETERIZATIONS for w in WEIGHTINGS]
    return [c for c in [*product, Cell("score", "sigma2")] if c == same_as(c)]


def same_as(cell: Cell) -> Cell:
    """The cell with the same loss, by which it is known: unit weight on eps is sigma^2, ..."""
    twins = {("eps", "unit"): "sigma2", ("score", "unit"): "sigma2", ("edm", "unit"): "edm"}
    key = (cell.parameterization, cell.weighting)
    return Cell(cell.parameterization, twins.get(key, cell.weighting))


def configured(cell: Cell, seed: int, steps: int) -> Config:
    """The configuration of a run."""
    given = {
        "seed": seed,
        "train.steps": steps,
        "parameterization": cell.parameterization,
        "train.weighting": cell.weighting,
    }
    return load_config(None, {**BUDGET, **given})


def main() -> int:
    """Run what is missing, store it, draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", default="", help="make runs of these parameterisations only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = read()
    only = arguments.only.split(",") if arguments.only else [*PARAMETERIZATIONS, "score"]
    missed = missing(stored, arguments.seeds)
    if todo := [(seed, cell) for seed, cell in missed if cell.parameterization in only]:
        fill(stored, todo, arguments.steps)
    print(table(stored))
    figure(stored)
    return 0


def fill(stored: dict[str, Any], todo: list[tuple[int, Cell]], steps: int) -> None:
    """Make the runs that are missing, and store each."""
    judge = judge_of(build_dataset(load_config(None, {}).data))
    for seed, cell in todo:
        result = run(configured(cell, seed, steps), judge)
        stored["runs"].append({**asdict(cell), "seed": seed, **result})
        stored |= about(judge, steps)
        STORE.write_text(json.dumps(stored, indent=1) + "\n")
        text = f"{result['bits_per_dim']:.3f} bits/dim, Frechet {result['frechet']:.2f}"
        print(f"{cell.name}, seed {seed}: {text}, {result['seconds']:.0f} s", flush=True)


def read() -> dict[str, Any]:
    """What is stored."""
    found: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"runs": []}
    return found


def missing(stored: dict[str, Any], seeds: int) -> Iterator[tuple[int, Cell]]:
    """The runs not stored yet, seed by seed."""
    there = {(r["seed"], *(r[k] for k in Cell.__dataclass_fields__)) for r in stored["runs"]}
    for seed in range(seeds):
        for cell in cells():
            if (seed, cell.parameterization, cell.weighting) not in there:
                yield seed, cell


def run(config: Config, judge: Judge, ratios: torch.Tensor = RATIOS) -> dict[str, Any]:
    """Train and measure one."""
    begin = time.perf_counter()
    model = trained(config, judge.dataset)
    seconds = time.perf_counter() - begin
    test = judge.dataset.test
    levels, _ = drawn(model, config, judge.dataset, SAMPLES)
    return {
        **bits(model, test, BOUND),
        **judge.distance(levels),
        "error_by_level": errors_by_level(model, test, judge.dataset, ratios),
        "seconds": round(seconds, 1),
    }


def about(judge: Judge, steps: int) -> dict[str, Any]:
    """What all runs share."""
    return {
        "steps": steps,
        "budget": BUDGET,
        "samples": SAMPLES,
        "test_images": len(judge.dataset.test),
        "frechet_of_training_images": judge.floor(SAMPLES),
        "ratios": [round(float(r), 4) for r in RATIOS],
        **surroundings(),
    }


# --- tables and the figure ---------------------------------------------------------------------


def values(stored: dict[str, Any], cell: Cell, key: str) -> list[float]:
    """Of every seed."""
    known = asdict(same_as(cell))
    return [r[key] for r in stored["runs"] if all(r[k] == v for k, v in known.items())]


def spread(stored: dict[str, Any], key: str) -> float:
    """The deviation between seeds: the root of the mean variance within a cell."""
    found = (values(stored, cell, key) for cell in cells())
    variances = [statistics.variance(v) for v in found if len(v) > 1]
    return math.sqrt(statistics.mean(variances)) if variances else math.nan


def table(stored: dict[str, Any]) -> str:
    """Markdown: means over seeds, bits per dimension and Frechet distance."""
    lines = ["| | " + " | ".join(WEIGHTINGS) + " |", "|---" * (len(WEIGHTINGS) + 1) + "|"]
    for p in PARAMETERIZATIONS:
        found = [shown(stored, Cell(p, w)) for w in WEIGHTINGS]
        lines.append(f"| {p} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def shown(stored: dict[str, Any], cell: Cell) -> str:
    """Mean bits per dimension, mean Frechet distance."""
    found = (values(stored, cell, key) for key in ("bits_per_dim", "frechet"))
    return ", ".join(f"{statistics.mean(v):.{d}f}" for v, d in zip(found, (3, 2), strict=True))


def figure(stored: dict[str, Any]) -> None:
    """A dot a seed, a colour a weighting; the band is the spread between seeds."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(9, 5.2), dpi=90, layout="constrained")
    axes = page.subplots(1, 2, sharey=True)
    titles = {
        "bits_per_dim": ("variational bound, bits/dim", (2.5, 3, 4, 5, 7, 10, 20, 50)),
        "frechet": ("Frechet distance, classifier features", (0.1, 0.15, 0.2, 0.3, 0.5, 1)),
    }
    rows = [Cell(p, w) for p in PARAMETERIZATIONS[::-1] for w in WEIGHTINGS[::-1]]
    for axis, (key, (title, ticks)) in zip(axes, titles.items(), strict=True):
        for y, cell in enumerate(rows):
            found = values(stored, cell, key)
            colour = f"C{WEIGHTINGS.index(cell.weighting)}"
            axis.plot(found, [y] * len(found), "o", color=colour, markersize=4.5)
            axis.plot([min(found), max(found)], [y, y], color=colour, linewidth=1)
        axis.set_xlabel(f"{title}\n(deviation between seeds {spread(stored, key):.2g})")
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
        for y in range(len(WEIGHTINGS), len(rows), len(WEIGHTINGS)):
            axis.axhline(y - 0.5, color="#9aa5b1", linewidth=0.6)
    axes[0].set_yticks(range(len(rows)), [f"{c.parameterization}, {c.weighting}" for c in rows])
    page.savefig(FIGURE)


if __name__ == "__main__":
    raise SystemExit(main())
