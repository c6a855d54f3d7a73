"""Images in minutes of one CPU thread: train a small configuration, look at it, judge it.

    python experiments/images.py mnist_small mnist_small_conditional --path FOLDER

Trains configs/NAME.yaml into RUNS/NAME (or goes on), chooses the width of the averaged weights on
held-out images, and draws samples: a picture of some in experiments/results/NAME.png, and of all
the Frechet distance to the test split, precision, recall, copies, and how many show the class they
were asked for. Bits per dimension of the first test images are bounded.
Numbers go to experiments/results/images.json and to the footer of the configuration; FOLDER holds
the data of all configurations named.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from judging import Judge, bits, drawn, judge_of, some, surroundings
from torch import Tensor

from scoresde.config import Config, build, build_dataset, build_plan, load_config
from scoresde.data import Dataset, Split, holdout
from scoresde.evaluation import precision, recall
from scoresde.evaluation.figures import image_grid, save_png
from scoresde.runs.cost import flops
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.load import LoadedRun, load_width
from scoresde.runs.run import parameters
from scoresde.runs.train import train_run
from scoresde.training import held_out_loss

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE.parent / "configs", HERE / "results"
STORE = RESULTS / "images.json"
FOOTER = "# Reached"
WIDTHS = (0.05, 0.1, 0.15)
HELD_OUT = 512
SHOWN = {1: 80, 3: 20}
"""Images in the picture, by the number of channels: a file stays below 100 kB."""


def main() -> int:
    """Record every configuration named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", help="configurations of one data set, without .yaml")
    parser.add_argument("--path", type=Path, required=True, help="the data folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    parser.add_argument("--num", type=int, default=512, help="samples to judge")
    parser.add_argument("--scored", type=int, default=256, help="test images to score")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge: Judge | None = None
    for name in arguments.names:
        config = load_config(CONFIGS / f"{name}.yaml", {"data.path": str(arguments.path)})
        out = arguments.runs / name
        train_run(config, out, resume=RunFolder(out).is_run())
        judge = judge or judge_of(build_dataset(config.data))
        result = record(name, config, out, judge, arguments)
        stored = json.loads(STORE.read_text()) if STORE.exists() else {}
        STORE.write_text(json.dumps(stored | {name: result}, indent=1) + "\n")
        write_footer(CONFIGS / f"{name}.yaml", result)
        print(json.dumps({name: result}), file=sys.stderr)
        print(table(stored | {name: result}))
    return 0


def record(
    name: str, config: Config, out: Path, judge: Judge, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Everything that is measured of a trained run."""
    begin, dataset = time.perf_counter(), judge.dataset
    widths = losses_of_widths(out, config, dataset)
    width = min(widths, key=lambda w: widths[w])
    run = load_width(out, float(width))
    classes = len(dataset.classes or ()) if config.conditional else 0
    n = arguments.num
    label = torch.arange(n) % classes if classes else None
    levels, nfe = drawn(run.model, config, dataset, n, label)
    save_picture(RESULTS / f"{name}.png", levels, classes, dataset)
    drawing = time.perf_counter() - begin
    scored = dataset.test.take(torch.arange(arguments.scored))
    return {
        **bits(run.model, scored, build(config.likelihood)),
        "scored_images": len(scored),
        "test_images": len(dataset.test),
        "samples": n,
        "sampler_nfe": nfe,
        **judged(judge, levels, label),
        "width": float(width),
        "held_out_by_width": widths,
        "held_out_images": HELD_OUT,
        **cost(run, config, dataset, out),
        "drawing_seconds": round(drawing, 1),
        "judging_seconds": round(time.perf_counter() - begin - drawing, 1),
        "command": f"python experiments/images.py {name} --path FOLDER",
        **surroundings(),
    }


def losses_of_widths(out: Path, config: Config, dataset: Dataset) -> dict[str, float]:
    """The held-out loss of averages of several widths, with the weight of the training."""
    _, held_out = holdout(dataset.train, config.train.holdout, config.seed)
    images = held_out.take(torch.arange(HELD_OUT))
    return {
        str(width): loss_of(load_width(out, width), config, images, dataset) for width in WIDTHS
    }


def loss_of(run: LoadedRun, config: Config, images: Split, dataset: Dataset) -> float:
    """The error of the network's output over uniform log-SNR, on held-out images."""
    return held_out_loss(
        run.model,
        images,
        dataset.scaling,
        weight=None,
        conditional=config.conditional,
        draws=2,
        seed=config.seed,
    )


def save_picture(path: Path, levels: Tensor, classes: int, dataset: Dataset) -> None:
    """The first samples, of a model with classes a class a column."""
    shown = levels[: SHOWN[dataset.shape[0]]]
    pixels = dataset.scaling.to_uint8(dataset.scaling.encode(shown))
    save_png(path, image_grid(pixels, columns=10))


def judged(judge: Judge, levels: Tensor, label: Tensor | None) -> dict[str, Any]:
    """How the samples fare beside real images."""
    n, features = len(levels), judge.classifier.features(levels)
    reference = judge.reference[:n]
    real = judge.classifier.features(some(judge.dataset.train, n).x)
    found = judge.classifier.predict(levels)
    shares = found.bincount(minlength=len(judge.dataset.classes or ())) / n
    return {
        **judge.distance(levels),
        "frechet_real": judge.floor(n),
        "precision": precision(features, reference),
        "precision_real": precision(real, reference),
        "recall": recall(features, reference),
        "recall_real": recall(real, reference),
        **judge.copied(levels),
        "recognised": None if label is None else float((found == label).double().mean()),
        "recognised_real": judge.accuracy(),
        "shares_of_classes": [round(float(share), 3) for share in shares],
    }


def cost(run: LoadedRun, config: Config, dataset: Dataset, out: Path) -> dict[str, Any]:
    """What the training took."""
    classes = build_plan(config, dataset).classes
    last = records(RunFolder(out))[-1]
    model = run.model.requires_grad_(True)
    return {
        "parameters": parameters(model),
        "flops_an_image": flops(model, tuple(dataset.shape), classes),
        "steps": run.step,
        "batch": config.train.batch,
        "training_seconds": round(last["seconds"], 1),
        "images_a_second": round(run.step * config.train.batch / last["seconds"], 1),
    }


def table(stored: dict[str, Any]) -> str:
    """Markdown: a row a configuration, in brackets what real images would get."""
    lines = [
        "| configuration | bits/dim | Frechet distance | precision | recall | copy rate "
        "| recognised | trained on, minutes |",
        "|---" * 8 + "|",
    ]
    lines += [f"| `{name}` | {' | '.join(cells(r))} |" for name, r in sorted(stored.items())]
    return "\n".join(lines)


def cells(r: dict[str, Any]) -> list[str]:
    """A row of the table."""
    none = r["recognised"] is None
    return [
        f"{r['bits_per_dim']:.3f} +- {r['standard_error']:.3f}",
        f"{r['frechet']:.3f} +- {r['frechet_error']:.3f} ({r['frechet_real']:.3f})",
        f"{r['precision']:.2f} ({r['precision_real']:.2f})",
        f"{r['recall']:.2f} ({r['recall_real']:.2f})",
        f"{r['copy_rate']:.2f} ({r['copy_rate_real']:.2f})",
        "" if none else f"{r['recognised']:.1%} ({r['recognised_real']:.1%})",
        f"{r['steps'] * r['batch']:,}, {r['training_seconds'] / 60:.0f}",
    ]


def write_footer(path: Path, r: dict[str, Any]) -> None:
    """Replace the configuration's footer with what was reached."""
    body = path.read_text().split(FOOTER)[0].rstrip("\n")
    shown = ""
    if r["recognised"] is not None:
        shown = f"{r['recognised']:.1%} recognised as their class, "
    text = (
        f"{FOOTER[2:]}: {r['bits_per_dim']:.3f}~+-~{r['standard_error']:.3f} bits/dim by the "
        f"variational bound ({r['scored_images']} of {r['test_images']} test images). Of "
        f"{r['samples']} samples: Frechet distance {r['frechet']:.3f}~+-~{r['frechet_error']:.3f} "
        f"in the features of a classifier (training images {r['frechet_real']:.3f}), {shown}copy "
        f"rate {r['copy_rate']:.2f} (test images {r['copy_rate_real']:.2f}). "
        f"{r['parameters']:,} parameters, {r['steps']} steps of {r['batch']} images, "
        f"{r['training_seconds'] / 60:.0f} minutes of {r['hardware']} shared with other work. "
        f"All numbers in experiments/results/images.json, by {r['command']}"
    )
    wrapped = textwrap.wrap(text, 97, break_on_hyphens=False)
    lines = [f"# {line}".replace("~", " ") for line in wrapped]
    path.write_text("\n".join([body, *lines]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
