"""Accuracy per network call with an exact score, against the best of nine packages.

    python experiments/accuracy.py [--budget CALLS] [--out experiments/results/accuracy.json]

384 starts in float64, error against the exact flow to sigma = 0, every call counted. Three rows a
problem: the default of ``scoresde.samplers.recommended``, its step on a grid optimised on 64 other
starts, and the best peer of each cell. Prints the tables in markdown and stores them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoresde import EDM, SDE, VP, Denoiser
from scoresde.samplers import EPS, Multistep, Step, grids, sample, solve_adaptive
from scoresde.samplers.optimise import search_grid
from scoresde.samplers.recommended import recommended
from scoresde.testing import Mixture, grid25

NFES = (5, 6, 8, 10, 15, 20, 35, 50)
JUDGED, TRAINED = 384, 64  # starts
Errors = tuple[float, float]  # relative L2, median per-sample error / rms
Choice = Callable[[int], tuple[Step, Tensor]]

# The best error of k-diffusion, diffusers, EDM, DPM-Solver, UniPC, DEIS, azula, smalldiffusion
# and score_sde over all their solvers and grids, picked for each cell: relative L2, then medians.
# "Best peer at each NFE, edm" and "..., vp" of the measurements of peers of 2026-11-23, section 2.
PEERS = {
    ("edm", "grid25"): (
        (5.9e-2, 3.7e-2, 2.1e-2, 2.2e-2, 1.3e-2, 6.4e-3, 2.0e-3, 7.1e-4),
        (3.1e-2, 6.5e-3, 1.3e-2, 3.3e-3, 1.3e-3, 1.3e-3, 3.8e-4, 5.8e-5),
    ),
    ("edm", "gmm10"): (
        (2.4e-1, 1.8e-1, 1.3e-1, 8.9e-2, 5.7e-2, 8.4e-3, 1.9e-3, 8.8e-4),
        (1.0e-1, 5.2e-2, 2.2e-2, 1.1e-2, 3.6e-3, 2.1e-3, 2.3e-4, 9.8e-5),
    ),
    ("vp", "grid25"): (
        (8.9e-2, 5.8e-2, 3.7e-2, 3.2e-2, 9.6e-3, 4.2e-3, 2.0e-3, 9.0e-4),
        (3.5e-2, 3.4e-2, 1.7e-2, 1.1e-2, 3.6e-3, 2.3e-3, 5.0e-4, 7.8e-5),
    ),
    ("vp", "gmm10"): (
        (1.9e-1, 1.3e-1, 9.1e-2, 8.2e-2, 1.2e-2, 4.2e-3, 9.8e-4, 3.4e-4),
        (5.4e-2, 4.0e-2, 2.4e-2, 1.1e-2, 4.2e-3, 3.1e-3, 4.7e-4, 2.2e-4),
    ),
}
PROCESSES: dict[str, SDE] = {"edm": EDM(), "vp": VP()}


def gmm(k: int, dim: int, low: float, high: float, total: float, seed: int) -> Mixture:
    """k equal Gaussians with diagonal, log-uniform deviations in [low, high], total deviation
    ``total`` per dimension.
    """
    g = torch.Generator().manual_seed(seed)
    stds = low * (high / low) ** torch.rand(k, dim, generator=g, dtype=torch.float64)
    means = torch.randn(k, dim, generator=g, dtype=torch.float64)
    means -= means.mean(0)
    spread = (total**2 - stds.square().mean()) / means.var(0, unbiased=False).mean()
    return Mixture(torch.ones(k, dtype=torch.float64), means * spread.sqrt(), stds)


PROBLEMS = {
    "grid25": grid25(),
    "gmm10": gmm(10, 64, 0.02, 0.4, 0.5, seed=10),
    "gmm6": gmm(6, 16, 0.05, 0.3, 0.5, seed=2024),
    "gmm4 wide": gmm(4, 8, 0.05, 0.5, 1.0, seed=2025),
}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--budget", type=int, default=20_000, help="calls to optimise a grid")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "accuracy.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {f"{p} {d}": measure(p, d, args.budget) for p in PROCESSES for d in PROBLEMS}
    print("\n" + summary(results))
    args.out.write_text(json.dumps(results, indent=1) + "\n")


Rows = dict[str, list[Errors]]


def measure(process: str, data: str, budget: int) -> Rows:
    """All rows of one problem, printed as they are found."""
    sde, problem = PROCESSES[process], PROBLEMS[data]
    denoiser = problem.denoiser(sde)
    x = starts(sde, problem, JUDGED, seed=101)
    exact = flow_to_data(denoiser, x)
    began = time.perf_counter()
    choices: dict[str, Choice] = {
        "default": lambda nfe: default(sde, nfe),
        "optimised": lambda nfe: optimised(problem, sde, nfe, budget),
        "eps-EAB(4), log-SNR": lambda nfe: published(sde, nfe),
    }
    rows: Rows = {}
    for name, choose in choices.items():
        rows[name] = [errors(denoiser, x, exact, *choose(nfe), nfe) for nfe in NFES]
    if (process, data) in PEERS:
        rows["best peer"] = list(zip(*PEERS[process, data], strict=True))
    print(f"\n{table(f'{process}, {data}', rows)}\n\n{time.perf_counter() - began:.0f} s")
    return rows


def default(sde: SDE, nfe: int) -> tuple[Step, Tensor]:
    """What a user gets who chooses nothing."""
    step, grid = recommended(nfe)
    return step, grid(sde, nfe - 1)


def optimised(problem: Mixture, sde: SDE, nfe: int, budget: int) -> tuple[Step, Tensor]:
    """The default step on a grid found on starts that nothing is judged on."""
    step, _ = recommended(nfe)
    x = starts(sde, problem, TRAINED, seed=5)
    return step, search_grid(problem.denoiser(sde), step, nfe - 1, x, budget=budget).times


def published(sde: SDE, nfe: int) -> tuple[Step, Tensor]:
    """azula's zEAB(4) on a log-SNR grid, the best fixed choice among peers on EDM."""
    return Multistep(EPS, 4), grids.log_snr(sde, nfe - 1)


def starts(sde: SDE, problem: Mixture, n: int, seed: int) -> Tensor:
    """n draws of the prior."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *problem.means.shape[1:], generator=g, dtype=torch.float64)
    return sde.prior().stddev * z


def flow_to_data(denoiser: Denoiser, x: Tensor) -> Tensor:
    """The exact end: the flow at tolerance 1e-9 to sigma / alpha = 1e-5, denoised."""
    t = denoiser.sde.time(torch.tensor(math.log(1e5), dtype=torch.float64))
    end = solve_adaptive(denoiser, x, denoiser.sde.t_max, float(t), 1e-9, 1e-9, 100_000)
    assert end.finished.all()
    return denoiser(end.x, t)


def errors(
    denoiser: Denoiser, x: Tensor, exact: Tensor, step: Step, ts: Tensor, nfe: int
) -> Errors:
    """Relative L2 and median error, the calls counted on the way."""
    calls = 0

    def predict(y: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoiser(y, t)

    end = sample(Denoiser(denoiser.sde, predict), x, ts, step)
    assert calls == nfe, f"{calls} calls where {nfe} were allowed"
    each = (end - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(
        dim=1
    ).square().mean().sqrt()
    return float(each.square().mean().sqrt()), float(each.median())


# --- tables ------------------------------------------------------------------------------------


def table(title: str, rows: Rows) -> str:
    """Markdown: relative L2, median for each NFE; ratios to the best peer where there is one."""
    lines = [f"| {title} | " + " | ".join(map(str, NFES)) + " |", "|---" * (len(NFES) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{a:.1e}, {b:.1e}" for a, b in row) + " |")
    if peers := rows.get("best peer"):
        for name in ("default", "optimised"):
            cells = (f"{a:.2f}, {b:.2f}" for a, b in ratios(rows[name], peers))
            lines.append(f"| {name} / best peer | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(row: Sequence[Errors], peers: Sequence[Errors]) -> list[Errors]:
    """Ours over theirs, cell by cell."""
    return [(a / c, b / d) for (a, b), (c, d) in zip(row, peers, strict=True)]


def summary(results: dict[str, Rows]) -> str:
    """Geometric means over NFE of the ratios to the best peer of each cell."""
    names = ("default", "optimised")
    judged = {title: rows for title, rows in results.items() if "best peer" in rows}
    found: dict[str, list[Errors]] = {name: [] for name in names}
    lines = [
        "| geometric mean over NFE | default: rel. L2, median | optimised: rel. L2, median |",
        "|---|---|---|",
    ]
    for title, rows in judged.items():
        cells = []
        for name in names:
            cell = ratios(rows[name], rows["best peer"])
            found[name] += cell
            cells.append(f"{mean(a for a, _ in cell):.2f}, {mean(b for _, b in cell):.2f}")
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    ends = [mean(v for cell in found[name] for v in cell) for name in names]
    lines.append(f"| all cells | {ends[0]:.2f} | {ends[1]:.2f} |")
    return "\n".join(lines)


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


if __name__ == "__main__":
    main()
