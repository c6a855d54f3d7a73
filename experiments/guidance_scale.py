"""Class-conditional samples against the guidance scale: accuracy, precision, recall, distance.

    python experiments/guidance_scale.py
    python experiments/guidance_scale.py --mnist FOLDER --fashion FOLDER --steps 1000 --num 256

Trains the conditional configuration of each data set into RUNS (or goes on), and draws the same
seeds and classes at every scale, 0 being the unconditional model, and at two scales within an
interval of sigma / alpha. A classifier fitted on the training images tells whether a sample shows
its class; precision, recall and the Frechet distance to the test images are in its features. A
data set that is stored is not measured again. ``--steps`` shortens the training, and the result
says so. Writes experiments/results/guidance_scale.json and guidance_scale.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from judging import Judge, judge_of, some, surroundings
from torch import Tensor

from scoresde.config import build_dataset, load_config
from scoresde.evaluation import share
from scoresde.evaluation.metrics import Sets, rows
from scoresde.parameterization import ScoreModel
from scoresde.runs.draw import draw
from scoresde.runs.folder import RunFolder
from scoresde.runs.load import load_run
from scoresde.runs.run import parameters
from scoresde.runs.train import train_run

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE.parent / "configs", HERE / "results"
STORE, FIGURE = RESULTS / "guidance_scale.json", RESULTS / "guidance_scale.png"
CONFIGURED = {
    "digits": "digits_vp_conditional",
    "mnist": "mnist_small_conditional",
    "fashion": "fashion_mnist_small_conditional",
}
INTERVAL = (0.2, 2.0)
SETTINGS: list[tuple[float, tuple[float, float] | None]] = [
    *((scale, None) for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)),
    *((scale, INTERVAL) for scale in (3.0, 5.0)),
]
METRICS = ("precision", "recall", "frechet")
TITLES = {
    "accuracy": "recognised as its class",
    "precision": "precision",
    "recall": "recall",
    "frechet": "Frechet distance",
}


def main() -> int:
    """Measure what is missing, store it, print it, draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mnist", help="folder with the four idx files of MNIST")
    parser.add_argument("--fashion", help="folder with the four idx files of Fashion-MNIST")
    parser.add_argument("--runs", type=Path, default=Path("runs/guidance_scale"))
    parser.add_argument("--steps", type=int, help="train for fewer steps")
    parser.add_argument("--num", type=int, default=1000, help="samples at each scale")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(STORE.read_text()) if STORE.exists() else {}
    folders = {"digits": "", "mnist": arguments.mnist, "fashion": arguments.fashion}
    for name, folder in folders.items():
        if folder is not None and name not in stored:
            stored[name] = measured(name, folder, arguments)
            STORE.write_text(json.dumps(stored, indent=1) + "\n")
    for name, result in stored.items():
        print(f"\n{name}, {result['steps']} steps, {result['samples']} samples\n\n{table(result)}")
    figure(stored)
    return 0


def measured(name: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the model of a data set, and judge its samples at every scale."""
    given: dict[str, Any] = {"data.path": folder} if folder else {}
    if steps := arguments.steps:
        every = ("validate", "sample", "checkpoint")
        given |= {"train.steps": steps, **{f"train.{kind}_every": steps for kind in every}}
    config = load_config(CONFIGS / f"{CONFIGURED[name]}.yaml", given)
    out = arguments.runs / CONFIGURED[name]
    train_run(config, out, resume=RunFolder(out).is_run())
    run, judge = load_run(out), judge_of(build_dataset(config.data))
    found = []
    for scale, interval in SETTINGS:
        row = at_scale(run.model, judge, arguments.num, scale, interval)
        print(json.dumps({name: row}), flush=True)
        found.append(row)
    return {
        "configuration": CONFIGURED[name],
        "step": run.step,
        "steps": config.train.steps,
        "shortened": arguments.steps is not None,
        "batch": config.train.batch,
        "parameters": parameters(run.model.requires_grad_(True)),
        "samples": arguments.num,
        "test_images": len(judge.dataset.test),
        "real": real(judge, arguments.num),
        "rows": found,
        **surroundings(),
    }


def at_scale(
    model: ScoreModel, judge: Judge, n: int, scale: float, interval: tuple[float, float] | None
) -> dict[str, Any]:
    """What n samples are like, as many of each class; unconditional ones have no class."""
    began = time.process_time()
    drawn = draw(
        model, n, nfe=19, label="all", guidance=scale, guidance_interval=interval, batch=128
    )
    seconds = round(time.process_time() - began, 1)
    label = drawn.label if scale else None
    row = {"scale": scale, "interval": interval, "nfe": drawn.nfe, "drawing_cpu_seconds": seconds}
    return row | judged(judge, drawn.x, label)


def real(judge: Judge, n: int) -> dict[str, Any]:
    """The classifier's accuracy on test images, and training images in the samples' place."""
    test = judge.dataset.test
    return judged(judge, some(judge.dataset.train, n).x, None) | read(judge, test.x, test.label)


def judged(judge: Judge, x: Tensor, label: Tensor | None) -> dict[str, Any]:
    """Metrics of images beside the test images, with standard errors."""
    order = torch.randperm(len(judge.reference), generator=torch.Generator().manual_seed(0))
    sets = Sets(judge.classifier.features(x), judge.reference[order], None)
    found = read(judge, x, label)
    for name, row in rows(METRICS, sets, Sets(x, judge.dataset.train.x, None)):
        found |= {name: row.value, f"{name}_error": row.error}
    return found


def read(judge: Judge, x: Tensor, label: Tensor | None) -> dict[str, Any]:
    """How many of the images show their class."""
    if label is None:
        return {"accuracy": None, "accuracy_error": None}
    found = share(judge.classifier.predict(x) == label)
    return {"accuracy": found.value, "accuracy_error": found.error}


# --- the table and the figure ------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a scale, and what real images would get."""
    lines = [f"| scale | {' | '.join(TITLES.values())} |", "|---" * (len(TITLES) + 1) + "|"]
    for row in [*result["rows"], {"scale": None} | result["real"]]:
        lines.append(f"| {' | '.join([shown(row), *(cell(row, key) for key in TITLES)])} |")
    return "\n".join(lines)


def shown(row: dict[str, Any]) -> str:
    """The scale, and its interval."""
    if row["scale"] is None:
        return "real images"
    low, high = row["interval"] or (None, None)
    return f"{row['scale']:g}" + ("" if low is None else f", from {low:g} to {high:g}")


def cell(row: dict[str, Any], key: str) -> str:
    """A value with its error."""
    value, error = row[key], row[f"{key}_error"]
    if value is None:
        return ""
    if key == "accuracy":
        return f"{100 * value:.1f} +- {100 * error:.1f} %"
    return f"{value:.3f} +- {error:.3f}"


def figure(stored: dict[str, Any]) -> None:
    """A row a data set, a column a metric; hollow within the interval, dashed for real images."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(11, 2.7 * len(stored)), dpi=60, layout="constrained")
    axes = page.subplots(len(stored), len(TITLES), squeeze=False)
    for (name, result), line in zip(stored.items(), axes, strict=True):
        for axis, (key, title) in zip(line, TITLES.items(), strict=True):
            for within, style in ((False, "o-"), (True, "s:")):
                found = [
                    (row["scale"], row[key], row[f"{key}_error"])
                    for row in result["rows"]
                    if bool(row["interval"]) == within and row[key] is not None
                ]
                axis.errorbar(
                    *zip(*found, strict=True),
                    fmt=style,
                    color="C1" if within else "C0",
                    markersize=5,
                    markerfacecolor="white" if within else None,
                    label="within the interval" if within else "at all levels",
                )
            axis.axhline(result["real"][key], color="grey", linestyle="--", label="real images")
            axis.set(xlabel="guidance scale", xlim=(-0.3, 5.3), title=f"{name}: {title}")
            axis.title.set_fontsize(9)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8, frameon=False)
    page.savefig(FIGURE)


if __name__ == "__main__":
    raise SystemExit(main())
