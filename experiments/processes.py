"""Five processes under one budget: the same network, images, steps, rate, sampler and seeds.

    python experiments/processes.py [--seeds 1]

Each process is trained on the digits with the parameterisation, the law of times and the weight of
the paper that made it known, and ends at sigma / alpha = 0.01. Of each the variational bound on
the bits per dimension of the test split, the Frechet distance of samples to it, and the error of
eps at equal levels. Beside them the table has configurations of one longer budget, where VP,
sub-VP and VE share v, uniform log-SNR and the error of eps. A run that is stored is not made
again. Writes experiments/results/processes.json and processes.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ablation import BUDGET, about, run
from judging import judge_of

from scoresde.config import Config, build_dataset, load_config
from scoresde.registry import SDES

RESULTS = Path(__file__).parent / "results"
STORE, FIGURE = RESULTS / "processes.json", RESULTS / "processes.png"
# Parameterisation, weighting, times: DDPM and score_sde, EDM, flow matching.
OWN = {
    "vp": ("eps", "unit", "uniform"),
    "sub_vp": ("eps", "unit", "uniform"),
    "ve": ("score", "unit", "uniform"),
    "edm": ("edm", "unit", "lognormal"),
    "linear_flow": ("flow", "unit", "uniform"),
}
# Configurations of one budget too, a longer one, with likelihoods in place of bounds.
LONGER = {
    "vp": "digits_vp",
    "sub_vp": "digits_subvp",
    "ve": "digits_ve",
    "edm": "digits_edm",
    "linear_flow": "digits_flow",
}
LEAST = 0.01
FURTHEST = 9.0
"""sigma_max of VE: about the largest distance between two images, arXiv 2006.09011."""
RATIOS = torch.logspace(-2, 0.9, 13)


def configured(process: str, seed: int, steps: int) -> Config:
    """The configuration of a run."""
    parameterization, weighting, times = OWN[process]
    given = {
        "seed": seed,
        "train.steps": steps,
        "sde": section(process),
        "parameterization": parameterization,
        "train.weighting": weighting,
        "train.times": times,
    }
    return load_config(None, {**BUDGET, **given})


def section(process: str) -> dict[str, Any]:
    """A process that ends at the least noise."""
    if process == "ve":
        return {"kind": "ve", "sigma_min": LEAST, "sigma_max": FURTHEST}
    t = float(SDES[process]().time(-torch.tensor(LEAST, dtype=torch.float64).log()))
    return {"kind": process, "t_min": t, "t_eps": t}


def main() -> int:
    """Run what is missing, store it, draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = read()
    if todo := list(missing(stored, arguments.seeds)):
        fill(stored, todo, arguments.steps)
    print(table(stored))
    figure(stored)
    return 0


def fill(stored: dict[str, Any], todo: list[tuple[int, str]], steps: int) -> None:
    """Make the runs that are missing, and store each."""
    judge = judge_of(build_dataset(load_config(None, {}).data))
    for seed, process in todo:
        result = run(configured(process, seed, steps), judge, RATIOS)
        stored["runs"].append({"process": process, "seed": seed, **result})
        stored |= {**about(judge, steps), "ratios": [round(float(r), 5) for r in RATIOS]}
        STORE.write_text(json.dumps(stored, indent=1) + "\n")
        text = f"{result['bits_per_dim']:.3f} bits/dim, Frechet {result['frechet']:.3f}"
        print(f"{process}, seed {seed}: {text}, {result['seconds']:.0f} s", flush=True)


def read() -> dict[str, Any]:
    """What is stored."""
    found: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {"runs": []}
    return found


def missing(stored: dict[str, Any], seeds: int) -> Iterator[tuple[int, str]]:
    """The runs not stored yet, seed by seed."""
    there = {(r["seed"], r["process"]) for r in stored["runs"]}
    return ((s, p) for s in range(seeds) for p in OWN if (s, p) not in there)


# --- the table and the figure ------------------------------------------------------------------


def values(stored: dict[str, Any], process: str, key: str) -> list[Any]:
    """Of every seed."""
    return [r[key] for r in stored["runs"] if r["process"] == process]


def table(stored: dict[str, Any]) -> str:
    """Markdown: means over seeds of bits per dimension and distance; the longer records beside."""
    lines = [
        "| process | recipe | bits/dim | Frechet distance | configuration |",
        "|---" * 5 + "|",
    ]
    for process, name in LONGER.items():
        bound, distance = (
            statistics.mean(values(stored, process, key)) for key in ("bits_per_dim", "frechet")
        )
        r = json.loads((RESULTS / f"{name}.json").read_text())
        longer = f"`{name}`: {r['bits_per_dim']:.3f} +- {r['bits_per_dim_se']:.3f}"
        cells = (process, ", ".join(OWN[process]), f"{bound:.3f}", f"{distance:.2f}", longer)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(stored: dict[str, Any]) -> None:
    """The error of eps by level, and a dot a seed of the bits and the distance."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(10, 3.2), dpi=85, layout="constrained")
    level, bound, distance = page.subplots(1, 3)
    for k, process in enumerate(OWN):
        curves = torch.tensor(values(stored, process, "error_by_level"))
        level.plot(stored["ratios"], curves.mean(0), color=f"C{k}", label=process)
        for axis, key in ((bound, "bits_per_dim"), (distance, "frechet")):
            found = values(stored, process, key)
            axis.plot(found, [-k] * len(found), "o", color=f"C{k}", markersize=6)
    level.set(xscale="log", yscale="log", xlabel="sigma / alpha", ylabel="error of eps")
    level.legend(fontsize=8, frameon=False)
    bound.set_xlabel("variational bound, bits/dim")
    distance.set_xlabel("Frechet distance, classifier features")
    for axis in (bound, distance):
        axis.set_yticks([-k for k in range(len(OWN))], list(OWN))
        axis.grid(axis="x", alpha=0.3)
    page.savefig(FIGURE)


if __name__ == "__main__":
    raise SystemExit(main())
