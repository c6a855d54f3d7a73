"""Train configurations, measure what they reach, and write it down.

    python experiments/record.py digits_vp digits_ve ... [--runs runs/record] [--path FOLDER]

For every name it trains configs/NAME.yaml into RUNS/NAME (or goes on), scores its test split,
draws samples, stores the numbers in experiments/results/NAME.json and writes them as the footer of
the configuration. ``--path`` is the data folder of configurations that need one; ``--steps`` and
``--num`` shorten the training and the scoring of the longer ones, and the footer says so.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scoresde.config import build_dataset, load_config
from scoresde.data import Dataset
from scoresde.evaluation import copy_rate
from scoresde.runs.draw import draw
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.load import LoadedRun, load_run
from scoresde.runs.run import parameters
from scoresde.runs.score import score
from scoresde.runs.train import train_run

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE.parent / "configs", HERE / "results"
FOOTER = "# Reached"


def main() -> int:
    """Record every configuration named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", help="configurations, without .yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/record"))
    parser.add_argument("--path", type=Path, help="the data folder, where one is needed")
    parser.add_argument("--steps", type=int, help="train for fewer steps")
    parser.add_argument("--num", type=int, help="score fewer test examples")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.names:
        result = record(name, arguments.runs / name, arguments)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        write_footer(CONFIGS / f"{name}.yaml", name, result)
        print(json.dumps({name: result}), file=sys.stderr)
    return 0


def record(name: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, score and sample one configuration."""
    steps, path = arguments.steps, arguments.path
    overrides: dict[str, Any] = {} if path is None else {"data.path": str(path)}
    if steps is not None:
        overrides |= {"train.steps": steps, "train.warmup": steps // 10}
        overrides |= {f"train.{kind}_every": steps for kind in ("validate", "sample")}
        overrides |= {"train.ema": min(0.9999, 1 - 10 / steps), "train.log_every": 10}
    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    train_run(config, out, resume=RunFolder(out).is_run())
    trained = time.perf_counter()
    run, dataset = load_run(out), build_dataset(config.data)
    test = dataset.test.take(torch.arange(arguments.num or len(dataset.test)))
    scores = score(run.model, test)
    scored = time.perf_counter()
    return {
        "bits_per_dim": scores.bits_per_dim,
        "bits_per_dim_se": scores.standard_error,
        "nats": float(scores.log_prob.mean()),
        "test_examples": len(test),
        "likelihood_nfe": scores.nfe,
        **samples(run, dataset),
        "step": run.step,
        "steps": config.train.steps,
        "shortened": steps is not None,
        "parameters": parameters(run.model),
        "training_seconds": records(RunFolder(out))[-1]["seconds"],
        "scoring_seconds": scored - trained,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
    }


def samples(run: LoadedRun, dataset: Dataset) -> dict[str, Any]:
    """Samples by the configuration's own sampler: calls, and copies of training images."""
    n = 500 if math.prod(dataset.shape) < 100 else 64
    drawn = draw(run.model, n, label="all" if run.config.conditional else None)
    found: dict[str, Any] = {"sampler": run.config.sample.sampler.kind, "sampler_nfe": drawn.nfe}
    if dataset.scaling.levels is None:
        return found
    return found | {
        "copy_rate": copy_rate(drawn.x, dataset.train.x),
        "copy_rate_of_test_images": copy_rate(dataset.test.x[:n], dataset.train.x),
    }


def write_footer(path: Path, name: str, r: dict[str, Any]) -> None:
    """Replace the configuration's footer with what was reached."""
    body = path.read_text().split(FOOTER)[0].rstrip("\n")
    value = f"{r['bits_per_dim']:.3f} +- {r['bits_per_dim_se']:.3f} bits/dim"
    if "copy_rate" not in r:
        value = f"{-r['nats']:.3f} nats a point ({value} in the units of the data)"
    copies = f", copy rate {r['copy_rate']:.2f}" if "copy_rate" in r else ""
    shortened = ", a run shortened for the record" if r["shortened"] else ""
    at = f"at step {r['step']} of {r['steps']}{shortened}{copies}"
    lines = [
        f"{FOOTER}, {r['machine']}: {value}",
        f"# on {r['test_examples']} test examples {at}",
        f"# ({r['training_seconds']:.0f} s of training; all numbers in",
        f"# experiments/results/{name}.json, by experiments/record.py).",
    ]
    path.write_text("\n".join([body, *lines]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
