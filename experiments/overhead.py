"""Time that a sampler adds to the network's, against a hand-written Euler loop in the same run.

    python experiments/overhead.py [--repeats N] [--out experiments/results/overhead.json]

The network is 0.1 x, so that everything timed is the sampler. Each sampler takes 50 steps down a
grid that it has seen before, its coefficients known; the first pass is timed apart. Every repeat
times each of them beside the loop, and medians are compared: time a network call over the time of
a step of the loop. Noise has one stream a sample. The allocator of Linux is told to keep its
memory: it would otherwise return some to the system in every step of one run and not of another.
Times are of the thread: those of other programs do not count, but their use of the caches does.
Prints the tables in markdown and stores them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import VP, Denoiser
from scoresde.convergence import draws_noise
from scoresde.registry import SELF_PACED, STEPS, build_step
from scoresde.samplers import BrownianPath, Step, grids, per_sample_noise, trajectory

SHAPES = ((64, 3, 32, 32), (4096, 2))
STEPS_TAKEN = 50
LIMITS = {"one call": 2.5, "multistep": 4.0, "several calls": None, "stochastic": 12.0}
MULTISTEP = frozenset(
    ("eab", "deis", "lms", "plms", "ipndm", "ipndm_v", "dpm_solver", "dpmpp_2m", "dpmpp_3m")
) | {"unipc", "recommended"}
NOISE_LIMIT = 3.0


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    results: dict[str, Any] = {"hardware": f"one thread of an {platform.machine()} CPU"}
    for shape in SHAPES:
        found = measure(shape, args.repeats)
        results["x".join(map(str, shape))] = found
        print(f"\n{table(shape, found)}\n", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def keep_memory() -> None:
    """glibc's mallopt: no memory of its own for large blocks, none returned."""
    if sys.platform == "linux":
        mmap_threshold, trim_threshold, gigabyte = -3, -1, 1 << 30
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, gigabyte)
        libc.mallopt(trim_threshold, gigabyte)


def network(x: Tensor, t: Tensor) -> Tensor:
    """As good as free."""
    return 0.1 * x


def measure(shape: Sequence[int], repeats: int) -> dict[str, Any]:
    """Every sampler and every source of noise on one shape of state."""
    x = torch.randn(*shape)
    ts = grids.log_snr(VP(), STEPS_TAKEN)
    runs: dict[str, Callable[[], int]] = {
        "loop": lambda: hand_written(x, ts),
        "noisy loop": lambda: hand_written(x, ts, noise=1.0),
    }
    kinds: dict[str, str] = {}
    for name in STEPS:
        if name not in SELF_PACED:
            step = build_step(name, {}, STEPS_TAKEN)
            kinds[name] = kind_of(name, step)
            runs[name] = walk(step, x, grids.log_snr(VP(), STEPS_TAKEN))
    first = {name: timed(run) for name, run in runs.items()}
    seconds = interleaved(runs, repeats)
    unit = seconds["loop"]
    rows = {
        name: {
            "kind": kind,
            "ratio": seconds[name] / unit,
            "first_pass": first[name] / unit,
            "limit": LIMITS[kind],
        }
        for name, kind in kinds.items()
    }
    return {
        "loop_us": 1e6 * unit,
        "loop_with_randn": seconds["noisy loop"] / unit,
        "steps": rows,
        "noise": noise_ratios(x, repeats),
    }


def kind_of(name: str, step: Step) -> str:
    """The class whose limit applies."""
    if draws_noise(step):
        return "stochastic"
    if name in MULTISTEP:
        return "multistep"
    return "one call" if step.nfe_per_step == 1 else "several calls"


def hand_written(x: Tensor, ts: Tensor, noise: float = 0.0) -> int:
    """Euler's steps in sigma, as anybody would write them; with torch's own noise on top."""
    sigmas = VP().sigma(ts).tolist()
    t = ts[0]
    for sigma, following in pairwise(sigmas):
        x = torch.lerp(network(x, t), x, following / sigma)
        if noise:
            x.add_(torch.randn_like(x), alpha=noise * following)
    return STEPS_TAKEN


def walk(step: Step, x: Tensor, ts: Tensor) -> Callable[[], int]:
    """A whole trajectory, which returns the calls it made."""
    calls = 0

    def predict(y: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return network(y, t)

    denoiser = Denoiser(VP(), predict)

    def run() -> int:
        nonlocal calls
        calls = 0
        for _ in trajectory(denoiser, x, ts, step, per_sample_noise(range(len(x)))):
            pass
        return calls

    return run


def noise_ratios(x: Tensor, repeats: int) -> dict[str, float]:
    """Draws of each source over torch.randn."""
    times = torch.linspace(1, 0.02, STEPS_TAKEN, dtype=torch.float64)
    seeds = range(len(x))

    def along(noise: Callable[..., Tensor]) -> int:
        for t, s in pairwise(times):
            noise(x, t, s)
        return len(times) - 1

    runs: dict[str, Callable[[], int]] = {
        "randn": lambda: along(lambda x, t, s: torch.randn_like(x)),
        "per_sample_noise": lambda: along(per_sample_noise(seeds)),
        "BrownianPath": lambda: along(BrownianPath(seeds)),
    }
    seconds = interleaved(runs, repeats)
    return {name: seconds[name] / seconds["randn"] for name in runs if name != "randn"}


def timed(run: Callable[[], int]) -> float:
    """Seconds of the thread a call."""
    started = time.thread_time()
    calls = run()
    return (time.thread_time() - started) / calls


def interleaved(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median seconds a call of each, all measured in every repeat."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(timed(run))
    return {name: statistics.median(times) for name, times in found.items()}


def table(shape: Sequence[int], found: dict[str, Any]) -> str:
    """Markdown, by class and then by cost."""
    lines = [
        f"State {list(shape)}; a step of the loop takes {found['loop_us']:.0f} us, and "
        f"{found['loop_with_randn']:.1f} times that with torch.randn added.",
        "",
        "| sampler | class | time a call / loop | first pass | limit |",
        "|---|---|---|---|---|",
    ]
    order = list(LIMITS)
    rows = sorted(
        found["steps"].items(), key=lambda row: (order.index(row[1]["kind"]), row[1]["ratio"])
    )
    for name, row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:g}"
        late = " (over)" if row["limit"] is not None and row["ratio"] > row["limit"] else ""
        lines.append(
            f"| {name} | {row['kind']} | {row['ratio']:.1f}{late} | {row['first_pass']:.1f} "
            f"| {limit} |"
        )
    for name, ratio in found["noise"].items():
        lines.append(f"| {name} | noise, over randn | {ratio:.1f} | | {NOISE_LIMIT:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
