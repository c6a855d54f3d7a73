"""The engine's own time in a training step, over that of forward, backward and optimiser alone.

    python experiments/engine_overhead.py [--repeats N] [--out experiments/results/...json]

A U-Net of about 1.1 M parameters on images of 28 x 28, batches of 32, one thread. A step of the
engine is ``update`` and what ``scoresde train`` counts of it: the batch drawn on the host, the
noise, its generators, clipping, the check that all is finite, the average of the weights, the loss
by noise level. The bare step has its batch at hand and does nothing but loss, backward and
optimiser. The two take turns on the same weights, and the median of the differences of neighbours
is compared with the median of the bare steps. The parts are timed by themselves as well, without
the network between them. Times are of the thread: those of other programs do not count, but their
use of the caches does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.config import build_model, build_plan, load_config
from scoresde.data import Dataset, Scaling, Split
from scoresde.runs.cost import flops
from scoresde.runs.log import Window
from scoresde.runs.run import parameters
from scoresde.training import TrainState, averages, fsdp
from scoresde.training.batches import draw_batch
from scoresde.training.loop import update
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.losses import dsm_loss

LIMIT = 0.03
NETWORK = {
    "network.width": 64,
    "network.multipliers": [1, 1, 2],
    "network.blocks": 1,
    "network.attention": [2],
    "network.dropout": 0,
}
OTHERS = {"train.batch": 32, "train.ema": 0.9999, "train.steps": 10**6}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "engine_overhead.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.repeats)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(repeats: int) -> dict[str, Any]:
    """Milliseconds a step, with the engine and bare, and of its parts."""
    config = load_config(None, NETWORK | OTHERS)
    dataset = pictures()
    plan, split = build_plan(config, dataset), dataset.train
    model = build_model(config, dataset)
    state = TrainState.of(model, plan)
    window = Window(0.0, LossByNoise(model.sde))
    batch = draw_batch(plan, split, dataset.scaling, model.sde, 0)

    def bare() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        loss = dsm_loss(model, batch.x0, batch.t, batch.eps, plan.weight)
        (loss.sum() / plan.batch).backward()
        state.optimizer.step()

    def engine() -> None:
        window.add(update(state, plan, split, dataset.scaling), 1.0)

    model.train()
    times = alternating({"bare": bare, "engine": engine}, repeats)
    beside = [(before + after) / 2 for before, after in pairwise(times["bare"])]
    pairs = zip(times["engine"], beside, strict=False)  # the last has no neighbour after it
    extra = [whole - alone for whole, alone in pairs]
    metrics, step = update(state, plan, split, dataset.scaling), iter(range(10**6))

    def clipped() -> None:
        norm = fsdp.sum_gradients(model, metrics.loss, plan.rank)
        nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
        bool(torch.isfinite(metrics.loss + norm))

    parts: dict[str, Callable[[], object]] = {
        "batch": lambda: draw_batch(plan, split, dataset.scaling, model.sde, next(step)),
        "clipping": clipped,
        "average": lambda: averages.update(state.ema, model, 0.9999),
        "records": lambda: window.add(metrics, 1.0),
    }
    by_part = {name: statistics.median(t) for name, t in alternating(parts, repeats).items()}
    unit = statistics.median(times["bare"])
    return {
        "machine": f"{platform.machine()} CPU, 1 thread",
        "torch": torch.__version__,
        "parameters": parameters(model),
        "gflop_forward_backward": flops(model, tuple(dataset.shape), None) / 1e9,
        "batch": plan.batch,
        "repeats": repeats,
        "bare_ms": 1e3 * unit,
        "engine_ms": 1e3 * statistics.median(times["engine"]),
        "overhead": statistics.median(extra) / unit,
        "overhead_quartiles": [q / unit for q in statistics.quantiles(extra, n=4)[::2]],
        "limit": LIMIT,
        "parts_ms": {name: 1e3 * seconds for name, seconds in by_part.items()},
        "overhead_by_parts": sum(by_part.values()) / unit,
    }


def pictures() -> Dataset:
    """Random levels of the size of MNIST's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (10_000, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return Dataset("noise", Split(x), Split(x[:10]), Scaling(256))


def alternating(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of the thread of each call, all of them measured in every repeat."""
    for run in runs.values():
        for _ in range(3):
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.thread_time()
            run()
            found[name].append(time.thread_time() - started)
    return found


if __name__ == "__main__":
    main()
