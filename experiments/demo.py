"""The demonstration: learn the digits, sample them class by class, score them in bits per
dimension.

    python experiments/demo.py --out runs/demo

writes into that folder a training run, samples.png (a class a row) and one picture more for each
further sampler, trajectory.gif, loss.png and report.json, and prints one table. Interrupted, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from scoresde.config import load_config
from scoresde.data import Dataset, Split, digits
from scoresde.evaluation import Classifier, copy_rate, fit_classifier, sample_grid, save_png
from scoresde.registry import GridSampler
from scoresde.runs.draw import draw
from scoresde.runs.folder import RunFolder
from scoresde.runs.load import LoadedRun, load_run
from scoresde.runs.pictures import Recorder, pixels
from scoresde.runs.score import score
from scoresde.runs.train import parameters, train_run
from scoresde.samplers import DDIM, Ancestral, Heun, grids

CONFIG = Path(__file__).parent.parent / "configs" / "digits_vp_conditional.yaml"
SAMPLERS = {
    "heun": GridSampler(grids.karras(), Heun(), 18),
    "ddim": GridSampler(grids.karras(), DDIM(), 40),
    "ancestral": GridSampler(grids.log_snr, Ancestral(), 80),
}
FIRST = "heun"
SAMPLES = 1000


@dataclass(frozen=True)
class Judged:
    """How the samples of one sampler fare."""

    nfe: float
    seconds: float
    class_accuracy: float
    copy_rate: float


def main() -> int:
    """Parse, demonstrate, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="the run folder")
    out: Path = parser.parse_args().out
    try:
        report = demonstrate(out)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    Console().print(table(report))
    print(f"pictures and report.json are in {out}")
    return 0


def demonstrate(out: Path) -> dict[str, Any]:
    """Train (or go on), sample, judge and score; the report."""
    started = time.perf_counter()
    train_run(load_config(CONFIG, {}), out, resume=RunFolder(out).is_run())
    trained = time.perf_counter()
    run, dataset = load_run(out), digits()
    judge = fit_classifier(dataset.train.x, labels(dataset.train), 10)
    judged = {name: sample_and_judge(name, out, run, dataset, judge) for name in SAMPLERS}
    save_trajectory(out / "trajectory.gif", run)
    sampled = time.perf_counter()
    bits = likelihoods(run, dataset)
    ended = time.perf_counter()
    return {
        **bits,
        "bits_per_dim_independent_pixels": independent_pixels(dataset),
        "test_images": len(dataset.test),
        "class_accuracy": judged[FIRST].class_accuracy,
        "classifier_test_accuracy": judge.accuracy(dataset.test.x, labels(dataset.test)),
        "copy_rate": judged[FIRST].copy_rate,
        "copy_rate_of_test_images": copy_rate(dataset.test.x, dataset.train.x),
        "nfe": judged[FIRST].nfe,
        "samplers": {name: asdict(found) for name, found in judged.items()},
        "parameters": parameters(run.model),
        "step": run.step,
        "training_seconds": trained - started,
        "sampling_seconds": sampled - trained,
        "scoring_seconds": ended - sampled,
        "seconds": ended - started,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def labels(split: Split) -> Tensor:
    """The classes of the examples, which every split of the digits has."""
    assert split.label is not None
    return split.label


def sample_and_judge(
    name: str, out: Path, run: LoadedRun, dataset: Dataset, judge: Classifier
) -> Judged:
    """1000 samples, 100 a class: how many the judge takes for their class, how many are copies."""
    label = torch.arange(SAMPLES) * 10 // SAMPLES
    begin = time.perf_counter()
    drawn = draw(run.model, SAMPLES, sampler=SAMPLERS[name], label=label, batch=250)
    seconds = time.perf_counter() - begin
    shown = torch.cat([torch.nonzero(label == k).flatten()[:10] for k in range(10)])
    picture = "samples.png" if name == FIRST else f"samples-{name}.png"
    title = f"digits: {name}, {drawn.nfe:g} network calls"
    images = pixels(drawn.x[shown], dataset.scaling)
    save_png(out / picture, sample_grid(images, label[shown], dataset.classes, title))
    accuracy = judge.accuracy(drawn.x, label)
    return Judged(drawn.nfe, seconds, accuracy, copy_rate(drawn.x, dataset.train.x))


def save_trajectory(path: Path, run: LoadedRun) -> None:
    """Four digits of every class as they appear, by the first sampler."""
    label = torch.arange(40) // 4
    recorder = Recorder(run.data, label)
    # In equal steps of log-SNR the digits take half of the film to appear.
    sampler = GridSampler(grids.log_snr, Heun(), 24)
    draw(run.model, 40, sampler=sampler, label=label, look=recorder)
    recorder.save_film(path)


def likelihoods(run: LoadedRun, dataset: Dataset) -> dict[str, float]:
    """Bits per dimension of every test image, without and with its class."""
    free, given = (
        score(run.model, dataset.test, conditional=conditional) for conditional in (False, True)
    )
    return {
        "bits_per_dim": free.bits_per_dim,
        "bits_per_dim_se": free.standard_error,
        "bits_per_dim_given_class": given.bits_per_dim,
        "bits_per_dim_given_class_se": given.standard_error,
        "likelihood_nfe": free.nfe,
    }


def independent_pixels(dataset: Dataset) -> float:
    """Bits per dimension of the test images if every pixel had its own smoothed histogram."""
    train, test = (split.x.flatten(1).long() for split in (dataset.train, dataset.test))
    counts = torch.nn.functional.one_hot(train, dataset.scaling.levels or -1).sum(0) + 1
    probability = (counts / counts.sum(1, keepdim=True)).T
    return float(-probability.gather(0, test).log2().mean())


def table(report: dict[str, Any]) -> Table:
    """What was reached, and what to compare it with."""
    page = Table(title="scoresde on the 8 x 8 digits", title_justify="left")
    for column in ("", "reached", "compare with"):
        page.add_column(column)
    for row in [*_bits(report), *_samplers(report), *_rest(report)]:
        page.add_row(*row)
    return page


Row = tuple[str, str, str]


def _bits(r: dict[str, Any]) -> list[Row]:
    value = "{:.3f} +- {:.3f}".format
    compare = (
        f"{r['bits_per_dim_independent_pixels']:.2f} independent pixels, "
        f"{math.log2(17):.2f} uniform"
    )
    free = value(r["bits_per_dim"], r["bits_per_dim_se"])
    given = value(r["bits_per_dim_given_class"], r["bits_per_dim_given_class_se"])
    return [
        (f"bits/dim of {r['test_images']} test images", free, compare),
        ("bits/dim given their classes", given, ""),
    ]


def _samplers(r: dict[str, Any]) -> list[Row]:
    judge = f"{r['classifier_test_accuracy']:.1%} of real test digits"
    copies = f"{r['copy_rate_of_test_images']:.1%} of real test digits"
    rows = []
    for name, found in r["samplers"].items():
        effort = f"NFE {found['nfe']:.0f}, {found['seconds']:.0f} s for {SAMPLES}"
        rows += [
            (f"{name} ({effort})", "", ""),
            ("  recognised as their class", f"{found['class_accuracy']:.1%}", judge),
            (
                "  nearer to a training image than its own kind",
                f"{found['copy_rate']:.1%}",
                copies,
            ),
        ]
    return rows


def _rest(r: dict[str, Any]) -> list[Row]:
    spent = "{training_seconds:.0f} training, {sampling_seconds:.0f} sampling, "
    spent += "{scoring_seconds:.0f} scoring"
    return [
        ("parameters", f"{r['parameters']:,}", f"weights of step {r['step']}, the best held out"),
        ("seconds", f"{r['seconds']:.0f}", spent.format(**r)),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
