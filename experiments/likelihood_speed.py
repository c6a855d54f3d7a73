"""What a likelihood of the digits U-Net costs, against scipy's RK45 with one held probe.

    python experiments/likelihood_speed.py [--run runs/likelihood_speed] [--steps 300]

Trains configs/digits_vp.yaml for 300 steps if there is no run yet. (i) Time to a given standard
error over probes, seconds times variance: ours along the path with one orthogonal probe a node,
against the loop of score-based SDE code, the batch as one flattened state in t, solved by scipy at
rtol = atol = 1e-5 with one sign probe. The bias of each is what its solver does to the exact trace
of a few images, against 96 nodes with 4 steps between. (ii) The exact trace against a loop of 64
backward passes: an evaluation, and whole likelihoods of one image at a time. Times are CPU seconds
of one thread, medians. Prints the tables in markdown and stores them.
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

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scoresde import Denoiser
from scoresde.config import build_dataset, load_config
from scoresde.likelihood import Exact, path_log_likelihood
from scoresde.likelihood.divergence import EXACT, rademacher
from scoresde.likelihood.path import Orthogonal
from scoresde.runs.load import load_run
from scoresde.runs.train import train_run

HERE = Path(__file__).parent
IMAGES, FEW = 16, 3
PATHS = {
    "path, 32 nodes": (32, 1),
    "path, 48 nodes": (48, 1),
    "path, 32 nodes, 4 steps between": (32, 4),
    "path, 48 nodes, 3 steps between": (48, 3),
}
Trace = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/likelihood_speed"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "likelihood_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, x = trained(args.run, args.steps)
    results: dict[str, Any] = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "network": f"digits U-Net after {args.steps} steps",
        "evaluation": evaluations(denoiser, x),
        "exact": exact_traces(denoiser, x[:FEW]),
    }
    bias = {name: row["rms_bias_nats"] for name, row in results["exact"].items()}
    results["probe"] = probed(denoiser, x[:IMAGES], bias, args.repeats)
    for name in ("probe", "evaluation", "exact"):
        print(f"\n{table(results[name])}", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def trained(run: Path, steps: int) -> tuple[Denoiser, Tensor]:
    """The digits model, and dequantised test images in model units."""
    config = load_config(HERE.parent / "configs" / "digits_vp.yaml", {"train.steps": steps})
    data = build_dataset(config.data)
    if not run.exists():
        train_run(config, run, device="cpu")
    levels = data.test.x[:64]
    u = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = data.scaling.encode(levels, u, dtype=torch.float64)
    return load_run(run).model.denoiser(), x


def loop(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The trace by one backward pass a direction, as published code has it."""
    u = x.detach().requires_grad_()
    value = field(u)
    trace = x.new_zeros(len(x))
    for i in range(x[0].numel()):
        v = torch.zeros_like(value).flatten(1)
        v[:, i] = 1
        (row,) = torch.autograd.grad(value, u, v.reshape(value.shape), retain_graph=True)
        trace = trace + row.flatten(1)[:, i]
    return value.detach(), trace


def held(probe: Tensor) -> Trace:
    """Hutchinson's estimate with one probe."""

    def estimate(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        u = x.detach().requires_grad_()
        value = field(u)
        (row,) = torch.autograd.grad(value, u, probe)
        return value.detach(), (row * probe).flatten(1).sum(1)

    return estimate


def rk45(denoiser: Denoiser, x: Tensor, trace: Trace) -> tuple[Tensor, int]:
    """Log-densities (B,) and calls: dx/dt and its divergence as one flattened state."""
    sde, shape, split = denoiser.sde, x.shape, x.numel()

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        at = torch.tensor(t, dtype=torch.float64)
        z = torch.from_numpy(state[:split]).reshape(shape)
        drift, divergence = trace(lambda z: denoiser.velocity(z, at), z)
        return np.concatenate([drift.flatten().numpy(), divergence.numpy()])

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    found = solve_ivp(rate, (sde.t_min, sde.t_max), start, rtol=1e-5, atol=1e-5, method="RK45")
    end = torch.from_numpy(found.y[:, -1])
    prior = sde.prior().log_prob(end[:split].reshape(shape)).flatten(1).sum(1)
    return prior + end[split:], found.nfev


def evaluations(denoiser: Denoiser, x: Tensor) -> dict[str, dict[str, float]]:
    """Milliseconds of one exact trace: a loop, and many directions at a time."""
    at = torch.tensor(0.3, dtype=torch.float64)
    rows = {}
    for batch, repeats in ((1, 7), (4, 3), (16, 3), (64, 1)):
        some = x[:batch]
        times = interleaved(
            {
                "loop": lambda some=some: loop(lambda z: denoiser(z, at), some),
                "ours": lambda some=some: Exact()(lambda z: denoiser(z, at), some),
            },
            repeats,
        )
        rows[f"batch {batch}"] = {
            "loop_ms": 1e3 * times["loop"],
            "ours_ms": 1e3 * times["ours"],
            "times_faster": times["loop"] / times["ours"],
        }
    return rows


def exact_traces(denoiser: Denoiser, x: Tensor) -> dict[str, dict[str, float]]:
    """Likelihoods with the exact trace, an image at a time: bias, calls, seconds an image."""

    def path(nodes: int, between: int) -> Callable[[Tensor], tuple[Tensor, int]]:
        def score(x: Tensor) -> tuple[Tensor, int]:
            found = path_log_likelihood(denoiser, x, EXACT, nodes=nodes, between=between)
            return found.log_prob, found.nfe

        return score

    truth = torch.cat([path(96, 4)(one)[0] for one in x.split(1)])
    methods = {"RK45 1e-5": lambda x: rk45(denoiser, x, loop)}
    methods |= {name: path(*sizes) for name, sizes in PATHS.items()}
    rows: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        started = time.process_time()
        values, calls = zip(*(method(one) for one in x.split(1)), strict=True)
        seconds = (time.process_time() - started) / len(x)
        error = torch.cat(values) - truth
        rows[name] = {
            "rms_bias_nats": float(error.square().mean().sqrt()),
            "calls": sum(calls) / len(calls),
            "seconds": seconds,
            "times_faster": rows["RK45 1e-5"]["seconds"] / seconds if rows else 1.0,
        }
    return rows


def probed(
    denoiser: Denoiser, x: Tensor, bias: dict[str, float], repeats: int
) -> dict[str, dict[str, float]]:
    """Deviation over probes of one image, seconds an image, and time to a standard error."""

    def published(seed: int) -> tuple[Tensor, int]:
        return rk45(denoiser, x, held(signs(x, seed)[0]))

    def ours(nodes: int, between: int) -> Callable[[int], tuple[Tensor, int]]:
        def score(seed: int) -> tuple[Tensor, int]:
            probing = Orthogonal(signs(x, seed))
            found = path_log_likelihood(denoiser, x, probing, nodes=nodes, between=between)
            return found.log_prob, found.nfe

        return score

    methods = {"RK45 1e-5": published} | {name: ours(*sizes) for name, sizes in PATHS.items()}
    values: dict[str, list[Tensor]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    calls = {}
    for seed in range(repeats):
        for name, method in methods.items():
            started = time.process_time()
            value, calls[name] = method(seed)
            seconds[name].append(time.process_time() - started)
            values[name].append(value)
    work, rows = {}, {}
    for name in methods:
        variance = float(torch.stack(values[name]).var(0).mean())
        each = statistics.median(seconds[name]) / len(x)
        work[name] = each * variance
        rows[name] = {
            "rms_bias_nats": bias[name],
            "deviation_nats": variance**0.5,
            "calls": calls[name],
            "seconds_an_image": each,
            "time_to_error": work[name] / work["RK45 1e-5"],
        }
    return rows


def signs(x: Tensor, seed: int) -> Tensor:
    return rademacher(x, 1, torch.Generator().manual_seed(seed))


def interleaved(methods: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds, after one call each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name, method in methods.items():
            started = time.process_time()
            method()
            if repeat:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(c.replace("_", " ") for c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
