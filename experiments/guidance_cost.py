"""What guidance costs beside the network: a guided call against a plain one of twice the batch.

    python experiments/guidance_cost.py [--repeats N] [--out FILE]

The network is that of configs/digits_vp_conditional.yaml with random weights. A guided call of n
digits is one network call of 2 n; it is compared with the model's own denoiser on 2 n digits, half
with a class and half without, call by call in turn, as a ratio of median times of the thread. The
same with a network that does nothing gives the time of the wrapper itself. Prints a table in
markdown and stores it.
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
from torch import Tensor, nn

from scoresde import ScoreModel, guidance
from scoresde.config import build_model, load_config
from scoresde.data import Scaling
from scoresde.training.checkpoint import DataDescription

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "digits_vp_conditional.yaml"
BATCHES = (1, 16, 64)
LIMIT = 0.05
SETTINGS: dict[str, dict[str, Any]] = {
    "a scale": {},
    "an interval": {"interval": (0.1, 50.0)},
    "rescale and projection": {"rescale": 0.7, "parallel": 0.0, "norm": 5.0},
}


class Nothing(nn.Module):
    """A network that is as good as free."""

    classes = 10

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x itself."""
        return x


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "guidance_cost.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = DataDescription("digits", (1, 8, 8), Scaling(17), tuple(map(str, range(10))))
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG), digits).eval()
    free = ScoreModel(Nothing(), model.sde, model.parameterization)
    rows = [
        {"batch": n, "settings": name, **measured(model, free, n, settings, args.repeats)}
        for n in BATCHES
        for name, settings in SETTINGS.items()
    ]
    results = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "torch": torch.__version__,
        "repeats": args.repeats,
        "limit": LIMIT,
        "rows": rows,
    }
    print("| digits | guidance | network call, ms | guided / plain - 1 | wrapper alone, us |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['batch']} | {row['settings']} | {row['network_ms']:.2f} "
            f"| {100 * row['extra']:.1f} % | {row['wrapper_us']:.0f} |"
        )
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def measured(
    model: ScoreModel, free: ScoreModel, n: int, settings: dict[str, Any], repeats: int
) -> dict[str, float]:
    """The extra share of a guided call, and its time with a network that does nothing."""
    plain, guided = in_turn(*calls(model, n, settings), repeats)
    nothing, wrapped = in_turn(*calls(free, n, settings), repeats)
    return {
        "network_ms": 1e3 * plain,
        "extra": guided / plain - 1,
        "wrapper_us": 1e6 * (wrapped - nothing),
        "wrapper_share": (wrapped - nothing) / plain,
    }


def calls(
    model: ScoreModel, n: int, settings: dict[str, Any]
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A plain call of 2 n digits, and a guided one of n."""
    x, t = torch.randn(2 * n, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    label = torch.arange(n) % 10
    # The label of no class follows the classes.
    none = torch.cat([torch.full((n,), 10), label])
    plain = model.denoiser()
    plain.predict.given["label"] = none
    guided = guidance.free(model, {"label": label}, scale=2.0, **settings)
    return (lambda: plain(x, t)), (lambda: guided(x[:n], t))


def in_turn(
    one: Callable[[], Tensor], other: Callable[[], Tensor], repeats: int
) -> tuple[float, float]:
    """Median seconds of the thread of each, called in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for k in range(repeats + 5):
            for run, found in zip((one, other), seconds, strict=True):
                started = time.thread_time()
                run()
                if k >= 5:
                    found.append(time.thread_time() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
