"""Precision and cost of a log-likelihood, against RK45 with one held probe.

    python experiments/likelihood.py [--out experiments/results/likelihood.json]

64 samples in 64 dimensions, on turned axes so that the Jacobian is far from diagonal: a Gaussian
with deviations from 0.05 to 2, and a mixture of 10, with exact scores on VP; root mean square and
mean error in nats against the exact log-density at t_min. Time is over that of the held probe,
medians of interleaved runs. Prints the tables in markdown and stores them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy import gmm
from torch import Tensor

from scoresde import VP, Denoiser
from scoresde.likelihood import (
    Exact,
    Hutchinson,
    LogLikelihood,
    log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood.divergence import rademacher
from scoresde.likelihood.path import Orthogonal
from scoresde.testing import Mixture

DIM, SAMPLES = 64, 64
STDS = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0], dtype=torch.float64)
PROBLEMS = {
    "Gaussian": Mixture(
        torch.ones(1).double(), torch.zeros(1, DIM).double(), STDS.repeat_interleave(8)[None]
    ),
    "mixture of 10": gmm(10, DIM, 0.02, 0.4, 0.5, seed=10),
}
Score = Callable[[Denoiser, Tensor, Any, int], LogLikelihood]


def held(denoiser: Denoiser, x: Tensor, prior: Any, seed: int) -> LogLikelihood:
    """What published code does: scipy's RK45 at 1e-5, one probe held for the solve."""
    probe = rademacher(x, 1, torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"method": "scipy_solver", "rtol": 1e-5, "atol": 1e-5}
    return log_likelihood(denoiser, x, Hutchinson(probe), prior=prior, **options)


def exactly(denoiser: Denoiser, x: Tensor, prior: Any, seed: int) -> LogLikelihood:
    """RK45 at 1e-5 with the exact trace."""
    options: dict[str, Any] = {"method": "scipy_solver", "rtol": 1e-5, "atol": 1e-5}
    return log_likelihood(denoiser, x, Exact(), prior=prior, **options)


def fresh(rows: int, nodes: int) -> Score:
    """Along the path, with so many orthogonal probes at each of so many nodes."""

    def score(denoiser: Denoiser, x: Tensor, prior: Any, seed: int) -> LogLikelihood:
        signs = rademacher(x, 1, torch.Generator().manual_seed(seed))
        return path_log_likelihood(denoiser, x, Orthogonal(signs, rows), prior=prior, nodes=nodes)

    return score


def path_exactly(denoiser: Denoiser, x: Tensor, prior: Any, seed: int) -> LogLikelihood:
    """Along the path, the exact trace at every node."""
    return path_log_likelihood(denoiser, x, prior=prior, nodes=64)


METHODS: dict[str, Score] = {
    "RK45 1e-5, one held probe": held,
    "path, 48 nodes, 1 probe a node": fresh(1, 48),
    "path, 64 nodes, 2 probes a node": fresh(2, 64),
    "path, 64 nodes, 4 probes a node": fresh(4, 64),
    "path, 96 nodes, 4 probes a node": fresh(4, 96),
    "RK45 1e-5, exact trace": exactly,
    "path, 64 nodes, exact trace": path_exactly,
}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "likelihood.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"hardware": f"one thread of an {platform.machine()} CPU"}
    for name, problem in PROBLEMS.items():
        results[name] = precision(problem, args.repeats)
        print(f"\n{table(name, results[name])}")
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def precision(problem: Mixture, repeats: int) -> dict[str, dict[str, float]]:
    """Errors in nats, calls, and time over that of the held probe."""
    g = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=g, dtype=torch.float64)).Q
    sde = VP()
    flat = problem.denoiser(sde)
    denoiser = Denoiser(sde, lambda x, t: flat(x @ turn, t) @ turn.T)
    first, last = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_min, sde.t_max))
    y = problem.sample(SAMPLES, g)
    z = torch.randn(SAMPLES, DIM, generator=g, dtype=torch.float64)
    x = (sde.alpha(first) * y + sde.sigma(first) * z) @ turn.T
    truth = problem.log_prob(x @ turn, sde, first)

    def prior(x: Tensor) -> Tensor:
        return problem.log_prob(x @ turn, sde, last)

    found, seconds = timed(denoiser, x, prior, repeats)
    rows = {}
    for name, values in found.items():
        errors = torch.cat([value.log_prob - truth for value in values])
        rows[name] = {
            "rms_nats": float(errors.square().mean().sqrt()),
            "bias_nats": float(errors.mean()),
            "calls": values[0].nfe,
            "time": seconds[name] / seconds["RK45 1e-5, one held probe"],
        }
    return rows


def timed(
    denoiser: Denoiser, x: Tensor, prior: Any, repeats: int
) -> tuple[dict[str, list[LogLikelihood]], dict[str, float]]:
    """Every method with every seed, interleaved; median seconds."""
    found: dict[str, list[LogLikelihood]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(repeats):
        for name, method in METHODS.items():
            if seed and "exact" in name:
                continue  # no randomness, and slow
            started = time.perf_counter()
            found[name].append(method(denoiser, x, prior, seed))
            seconds[name].append(time.perf_counter() - started)
    return found, {name: statistics.median(times) for name, times in seconds.items()}


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [f"| {title} | rms nats | bias nats | calls | time |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['rms_nats']:.2g} | {row['bias_nats']:+.2g} | {row['calls']:.0f} "
            f"| {row['time']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
