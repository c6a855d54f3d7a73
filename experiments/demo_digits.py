"""The smaller demonstration: learn the digits, draw them class by class, score them.

    python experiments/demo_digits.py --out runs/digits

writes into that folder a training run, a picture of samples for each sampler (samples.png and
samples-SAMPLER.png, a class a row), trajectory.gif, loss.png and report.json, and prints one
table. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from demonstration import CONFIGS, demonstrate, say, spent, trained
from rich.table import Table
from torch import Tensor

import scoresde as ss
from scoresde.data import Dataset, Split, digits
from scoresde.evaluation import Classifier, copy_rate, fit_classifier, sample_grid, save_png
from scoresde.progress import bar
from scoresde.runs.pictures import Recorder, pixels
from scoresde.training import describe

CONFIG = CONFIGS / "digits_vp_conditional.yaml"
SAMPLERS: dict[str, dict[str, Any]] = {
    "recommended": {"nfe": 19},
    "heun": {"step": "heun", "grid": "karras", "nfe": 37},
    "ancestral": {"step": "ancestral", "grid": "log_snr", "nfe": 81},
}
FIRST = "recommended"
SAMPLES, SHOWN, FITTED = 500, 10, 400


@dataclass(frozen=True)
class Judged:
    """How the samples of one sampler fare."""

    nfe: float
    seconds: float
    class_accuracy: float
    copy_rate: float


def work(out: Path) -> dict[str, Any]:
    """Train (or go on), sample, judge and score; the report."""
    started = time.perf_counter()
    run = trained(CONFIG, out)
    learned = time.perf_counter()
    model, dataset = ss.load(out), digits()
    say(2, "fitting a classifier on the training images, which is to judge the samples")
    with bar(FITTED, "classifier steps") as advance:
        x, y = dataset.train.x, labels(dataset.train)
        judge = fit_classifier(x, y, 10, steps=FITTED, advance=advance)
    judged = {name: draw_and_judge(name, out, model, dataset, judge) for name in SAMPLERS}
    save_film(out / "trajectory.gif", model, dataset)
    sampled = time.perf_counter()
    say(4, "scoring every test image, without and with its class")
    free, classed = (
        ss.score(model, dataset, conditional=conditional, batch=45, progress=bar)
        for conditional in (False, True)
    )
    ended = time.perf_counter()
    return {
        "bits_per_dim": free.bits_per_dim,
        "bits_per_dim_se": free.standard_error,
        "bits_per_dim_given_class": classed.bits_per_dim,
        "bits_per_dim_given_class_se": classed.standard_error,
        "likelihood_nfe": free.nfe,
        "bits_per_dim_independent_pixels": independent_pixels(dataset),
        "test_images": len(dataset.test),
        "class_accuracy": judged[FIRST].class_accuracy,
        "classifier_test_accuracy": judge.accuracy(dataset.test.x, labels(dataset.test)),
        "copy_rate": judged[FIRST].copy_rate,
        "copy_rate_of_test_images": copy_rate(dataset.test.x, dataset.train.x),
        "nfe": judged[FIRST].nfe,
        "samples": SAMPLES,
        "samplers": {name: asdict(found) for name, found in judged.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "step": run.step,
        **spent(started, learned, sampled, ended),
    }


def labels(split: Split) -> Tensor:
    """The classes of the examples, which every split of the digits has."""
    assert split.label is not None
    return split.label


def draw_and_judge(
    name: str, out: Path, model: ss.ScoreModel, dataset: Dataset, judge: Classifier
) -> Judged:
    """Draw as many samples of each class: how many are recognised, how many are copies.

    The first ones of each class go into a picture.
    """
    classes = dataset.classes or ()
    say(3, f"drawing {SAMPLES} samples, {SAMPLES // len(classes)} of each class: {name}")
    begin = time.perf_counter()
    drawn = ss.draw(model, SAMPLES, label="all", batch=100, progress=bar, **SAMPLERS[name])
    seconds = time.perf_counter() - begin
    assert drawn.label is not None
    accuracy = judge.accuracy(drawn.x, drawn.label)
    rows = torch.cat([(drawn.label == k).nonzero()[:SHOWN, 0] for k in range(len(classes))])
    title = f"{name}, {drawn.nfe:.0f} network calls a sample: {accuracy:.1%} recognised"
    picture = "samples.png" if name == FIRST else f"samples-{name}.png"
    shown = pixels(drawn.x[rows], dataset.scaling)
    save_png(out / picture, sample_grid(shown, drawn.label[rows], classes, title))
    return Judged(drawn.nfe, seconds, accuracy, copy_rate(drawn.x, dataset.train.x))


def save_film(path: Path, model: ss.ScoreModel, dataset: Dataset) -> None:
    """Four digits of each class as they appear, by the first sampler."""
    label = torch.arange(10).repeat_interleave(4)
    recorder = Recorder(describe(dataset), label)
    ss.draw(model, label=label, look=recorder, **SAMPLERS[FIRST])
    recorder.save_film(path)


def independent_pixels(dataset: Dataset) -> float:
    """Bits per dimension of the test images if every pixel had its own smoothed histogram."""
    train, test = (split.x.flatten(1).long() for split in (dataset.train, dataset.test))
    counts = torch.nn.functional.one_hot(train, dataset.scaling.levels or -1).sum(0) + 1
    probability = (counts / counts.sum(1, keepdim=True)).T
    return float(-probability.gather(0, test).log2().mean())


def table(r: dict[str, Any]) -> Table:
    """What was reached, and what to compare it with."""
    page = Table(title="scoresde on the 8 x 8 digits", title_justify="left")
    for column in ("", "reached", "compare with"):
        page.add_column(column)
    for key, name in (
        ("bits_per_dim", f"bits/dim of {r['test_images']} test images"),
        ("bits_per_dim_given_class", "  given their classes"),
    ):
        apart = f"{r['bits_per_dim_independent_pixels']:.2f} independent pixels"
        value = f"{r[key]:.3f} +- {r[f'{key}_se']:.3f}"
        page.add_row(name, value, apart if key == "bits_per_dim" else "")
    judge, copies = r["classifier_test_accuracy"], r["copy_rate_of_test_images"]
    for name, found in r["samplers"].items():
        title = f"{name}, {found['nfe']:.0f} calls: recognised"
        page.add_row(title, f"{found['class_accuracy']:.1%}", f"{judge:.1%} of real digits")
        page.add_row("  copy rate", f"{found['copy_rate']:.1%}", f"{copies:.1%} of real digits")
    return page


if __name__ == "__main__":
    raise SystemExit(
        demonstrate("demo_digits", __doc__, "runs/digits", "samples.png", work, table)
    )
