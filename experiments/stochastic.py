"""Stochastic samplers with an exact score, against the best stochastic sampler of eight packages.

    python experiments/stochastic.py [--seeds N] [--out experiments/results/stochastic.json]

Two problems: a Gaussian in 64 dimensions, 8 of each of 8 deviations from 0.05 to 2, judged by the
root mean square of log(deviation / true deviation); and 25 Gaussians in the plane, judged by the
sliced Wasserstein distance between 20,000 samples and 20,000 draws of the data. Every call is
counted, the denoising one included. On the Gaussian every step is affine in the state and its
draws, so its error is computed without sampling; the numbers of the peers hold a sampling error of
5.1e-3, which is most of them from 50 calls on. Prints the tables in markdown and stores them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde import EDM, SDE, VP, Denoiser
from scoresde.samplers import (
    WIDE,
    Grid,
    SASolver,
    Step,
    StochasticMultistep,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    grids,
    per_sample_noise,
    sample,
)
from scoresde.testing import Gaussian, Mixture, grid25

NFES = (10, 20, 35, 50, 100)
STDS = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0], dtype=torch.float64)
SAMPLES, SLICES = 20_000, 64
DRAWS = "draws of the data"
PROCESSES: dict[str, SDE] = {"edm": EDM(), "vp": VP()}

# "Best stochastic peer at each NFE", of the measurements of peers of 2026-11-23, section 2: the
# best of k-diffusion, diffusers, azula, EDM, score_sde and others, picked for each cell with
# hindsight. Their noise floors: 5.1e-3 on the Gaussian, 8.7e-3 on the grid.
PEERS = {
    ("edm", "gauss64"): (3.1e-2, 2.0e-2, 8.1e-3, 7.4e-3, 5.1e-3),
    ("edm", "grid25"): (3.6e-2, 1.5e-2, 1.1e-2, 9.1e-3, 5.9e-3),
    ("vp", "gauss64"): (5.2e-2, 2.7e-2, 1.1e-2, 8.6e-3, 9.5e-3),
    ("vp", "grid25"): (3.0e-2, 1.8e-2, 1.3e-2, 1.0e-2, 8.7e-3),
}


@dataclass(frozen=True)
class Candidate:
    """A step on a grid; ``first`` counts the calls it makes beyond one a step."""

    name: str
    step: Step
    grid: Grid
    first: int = 0


def candidates() -> Iterator[Candidate]:
    """The published samplers, and ours in the frame of a residual, on a few grids."""
    places: dict[str, Grid] = {
        "log_snr": grids.log_snr,
        "arctan": WIDE,
    }
    for place, grid in places.items():
        yield Candidate(f"dpmpp_2m_sde [{place}]", dpmpp_2m_sde(), grid)
        yield Candidate(f"dpmpp_3m_sde [{place}]", dpmpp_3m_sde(), grid)
        yield Candidate(f"sa_solver [{place}]", SASolver(), grid, 1)
        for eta in (0.25, 0.5, 1.0):
            for points in (2, 3):
                name = f"eab_sde points={points} eta={eta:g} std=0.5 [{place}]"
                yield Candidate(name, StochasticMultistep(points, eta, 0.5), grid)
        name = f"sa_solver 3/3 tau=0.5 std=0.5 [{place}]"
        yield Candidate(name, SASolver(3, 3, 0.5, 0.5), grid, 1)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of 20,000 samples")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "stochastic.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for process, sde in PROCESSES.items():
        for problem, measure in (("gauss64", gaussian_rows), ("grid25", plane_rows)):
            rows = measure(sde, args.seeds)
            results[f"{process} {problem}"] = rows
            print(f"\n{table(process, problem, rows)}\n", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


Rows = dict[str, list[float]]


# --- the Gaussian -----------------------------------------------------------------------------


def gaussian_rows(sde: SDE, seeds: int) -> Rows:
    """The root mean square error of the log deviation of every candidate."""
    return {each.name: [log_std_error(sde, each, nfe) for nfe in NFES] for each in candidates()}


def log_std_error(sde: SDE, each: Candidate, nfe: int) -> float:
    """Exact, by probing the affine map of a walk on 8 independent lines."""
    data = Gaussian(torch.zeros(8, dtype=torch.float64), STDS**2)
    n = nfe - 1 - each.first
    rows = 2 * n + 20
    x = torch.zeros(1 + rows, 8, dtype=torch.float64)
    x[0] = 1.0
    draw = iter(range(1, 1 + rows))

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        z = torch.zeros_like(x)
        z[next(draw)] = 1.0
        return z

    end = sample(data.denoiser(sde), x, each.grid(sde, n), each.step, noise)
    start = float(sde.prior().stddev)
    variance = (start * end[0]) ** 2 + end[1:].square().sum(0)
    return float((variance.sqrt() / STDS).log().square().mean().sqrt())


# --- the plane --------------------------------------------------------------------------------


def plane_rows(sde: SDE, seeds: int) -> Rows:
    """Sliced Wasserstein distance of every candidate, mean over seeds, and of the data itself."""
    problem = grid25()
    rows: Rows = {}
    for each in candidates():
        rows[each.name] = [
            sum(plane_error(sde, problem, each, nfe, seed) for seed in range(seeds)) / seeds
            for nfe in NFES
        ]
    draws = [problem.sample(SAMPLES, seeded(100 + s)) for s in range(8)]
    floor = sum(sliced(a, b) for a, b in zip(draws[::2], draws[1::2], strict=True)) / 4
    return rows | {DRAWS: [floor] * len(NFES)}


def plane_error(sde: SDE, problem: Mixture, each: Candidate, nfe: int, seed: int) -> float:
    """The distance of one set of samples."""
    denoiser = problem.denoiser(sde)
    calls = 0

    def predict(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoiser(x, t)

    noise = per_sample_noise(range(seed * SAMPLES, (seed + 1) * SAMPLES))
    x = noise(torch.empty(SAMPLES, 2, dtype=torch.float64)) * sde.prior().stddev
    ts = each.grid(sde, nfe - 1 - each.first)
    end = sample(Denoiser(sde, predict), x, ts, each.step, noise)
    assert calls == nfe, f"{each.name}: {calls} calls where {nfe} were allowed"
    return sliced(end, problem.sample(SAMPLES, seeded(300 + seed)))


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced 2-Wasserstein distance between point sets of one size, over 64 directions."""
    angles = torch.arange(SLICES, dtype=torch.float64) * math.pi / SLICES
    directions = torch.stack([angles.cos(), angles.sin()])
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


# --- tables -----------------------------------------------------------------------------------


def table(process: str, problem: str, rows: Rows) -> str:
    """Markdown: the best peer of each cell, ours, and our candidates by their mean ratio to it."""
    peers = PEERS[process, problem]
    mine = {name: row for name, row in rows.items() if name != DRAWS}

    def ratio(name: str) -> float:
        logs = [math.log(a / b) for a, b in zip(mine[name], peers, strict=True)]
        return math.exp(sum(logs) / len(logs))

    lines = [f"| {process}, {problem} | " + " | ".join(map(str, NFES)) + " | mean ratio |"]
    lines.append("|---" * (len(NFES) + 2) + "|")
    lines.append(_row("best peer of the cell", peers, 1.0))
    for name in sorted(mine, key=ratio):
        lines.append(_row(name, mine[name], ratio(name)))
    if DRAWS in rows:
        lines.append(_row(DRAWS, rows[DRAWS], None))
    return "\n".join(lines)


def _row(name: str, values: Sequence[float], ratio: float | None) -> str:
    last = "" if ratio is None else f"{ratio:.2f}"
    return f"| {name} | " + " | ".join(f"{value:.1e}" for value in values) + f" | {last} |"


if __name__ == "__main__":
    main()
