"""Pictures restored from a part of them: digits by their upper half, photographs by grey or 8 x 8.

    python experiments/restoring.py [--mnist FOLDER] [--cifar FOLDER]

Hides the lower half of test digits (and of MNIST), draws one sample of the posterior for each by
several methods of registry.POSTERIORS, and lets a classifier that was fitted on whole training
images read them; beside it what it reads with the lower half left empty. Colours and enlarges (4
times) the photographs of a subset of CIFAR-10, and measures the error and the Frechet distance in
the features of a classifier, beside those of the grey and the enlarged picture itself. Models are
trained in RUNS, or taken from there. What is stored is not measured again. Writes
experiments/results/restoring.json and a picture of each data set beside it.
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

import scoresde as ss
from scoresde.config import build_dataset, load_config
from scoresde.evaluation import captioned, image_grid, save_png, share
from scoresde.posterior import Downsample, Grey
from scoresde.runs.folder import RunFolder
from scoresde.runs.pictures import pixels
from scoresde.runs.train import train_run

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE.parent / "configs", HERE / "results"
STORE = RESULTS / "restoring.json"
CONFIGURED = {
    "digits": "digits_vp",
    "mnist": "mnist_small_conditional",  # with nothing said
    "cifar": "cifar_subset_small",
}
METHODS = ("moment_matching", "dps", "diffpir", "repaint", "replacement")
NFE, SHOWN = 50, 12


def main() -> int:
    """Measure what is missing, store it, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mnist", help="folder with the four idx files of MNIST")
    parser.add_argument("--cifar", help="folder with the subset of CIFAR-10")
    parser.add_argument("--runs", type=Path, default=Path("runs/restoring"))
    parser.add_argument("--num", type=int, default=300, help="pictures to restore")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(STORE.read_text()) if STORE.exists() else {}
    folders = {"digits": "", "mnist": arguments.mnist, "cifar": arguments.cifar}
    for name, folder in folders.items():
        if folder is not None and name not in stored:
            stored[name] = measured(name, folder, arguments)
            STORE.write_text(json.dumps(stored, indent=1) + "\n")
    for name, result in stored.items():
        print(f"\n{name}, {result['pictures']} pictures\n\n{table(result)}")
    return 0


def measured(name: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Restore test pictures of a data set by every method."""
    config = load_config(
        CONFIGS / f"{CONFIGURED[name]}.yaml", {"data.path": folder} if folder else {}
    )
    out = arguments.runs / CONFIGURED[name]
    train_run(config, out, resume=RunFolder(out).is_run())
    model, judge = ss.load(out), judge_of(build_dataset(config.data))
    test = some(judge.dataset.test, arguments.num)
    assert test.label is not None
    tasks = photographs if name == "cifar" else halves
    rows, pictures = tasks(model, judge, test.x, test.label)
    shown = [pixels(x[:SHOWN], judge.dataset.scaling) for _, x in pictures]
    grid = image_grid(torch.cat(shown), SHOWN, 2)
    title = f"{CONFIGURED[name]}, {NFE} calls"
    save_png(
        RESULTS / f"restored_{name}.png", captioned(grid, title, [each for each, _ in pictures])
    )
    return {
        "configuration": CONFIGURED[name],
        "pictures": len(test.x),
        "nfe": NFE,
        "rows": rows,
        **surroundings(),
    }


Rows = tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]


def halves(model: Any, judge: Judge, x: Tensor, label: Tensor) -> Rows:
    """Digits with the lower half painted anew."""
    height, width = x.shape[-2:]
    empty = x.clone()
    empty[..., height // 2 :, :] = 0
    pictures, rows = [("whole", x), ("upper half", empty)], []

    def row(name: str, found: Tensor, seconds: float | None = None) -> None:
        right = share(judge.classifier.predict(found) == label)
        rows.append({"method": name, "read": right.value, "error": right.error})
        rows[-1]["cpu_seconds"] = seconds
        print(json.dumps(rows[-1]), flush=True)

    for name, found in list(pictures):
        row(name, found)
    box = (0, height // 2, width, height)
    for method in METHODS:
        began = time.process_time()
        found = ss.edit(model, x, "inpaint", box=box, method=method, nfe=NFE).x
        pictures.append((method, found))
        row(method, found, time.process_time() - began)
    return rows, pictures


def photographs(model: Any, judge: Judge, x: Tensor, label: Tensor) -> Rows:
    """Photographs coloured, and enlarged from a fourth of the size."""
    pictures, rows = [("whole", x)], []

    def row(task: str, name: str, found: Tensor, seconds: float | None = None) -> None:
        error = float((found.float() - x.float()).square().mean().sqrt())
        rows.append({"task": task, "method": name, "rms_levels": error, "cpu_seconds": seconds})
        rows[-1] |= judge.distance(found)
        print(json.dumps(rows[-1]), flush=True)

    row("", "whole", x)
    grey, small = Grey(), Downsample(4)
    shown = {
        "colourise": grey(x.float()).expand_as(x),
        "superres": small(x.float()).repeat_interleave(4, -1).repeat_interleave(4, -2),
    }
    tasks: dict[str, dict[str, Any]] = {"colourise": {}, "superres": {"factor": 4}}
    for task, settings in tasks.items():
        known = shown[task].round().to(x.dtype)
        pictures.append((f"{task}: known", known))
        row(task, "known", known)
        for method in METHODS:
            began = time.process_time()
            found = ss.edit(model, x, task, method=method, nfe=NFE, **settings).x
            pictures.append((f"{task}: {method}", found))
            row(task, method, found, time.process_time() - began)
    return rows, pictures


def table(result: dict[str, Any]) -> str:
    """The rows of a data set, for docs/editing.md."""
    if "read" in result["rows"][0]:
        lines = ["| lower half | read as its class |", "|---|---|"]
        for row in result["rows"]:
            lines.append(
                f"| {row['method']} | {100 * row['read']:.1f} +- {100 * row['error']:.1f} % |"
            )
        return "\n".join(lines)
    lines = ["| task | method | error in levels | Frechet distance |", "|---|---|---|---|"]
    for row in result["rows"]:
        distance = f"{row['frechet']:.3f} +- {row['frechet_error']:.3f}"
        lines.append(f"| {row['task']} | {row['method']} | {row['rms_levels']:.1f} | {distance} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
