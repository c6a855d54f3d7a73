"""The demonstration: learn portraits from sentences, and draw what is said.

    python experiments/demo.py --out runs/demo

writes into that folder a training run, pictures of what was said (said.png) and of the same
sentences at several guidance scales (scales.png), trajectory.gif, loss.png and report.json, and
prints the table of a judge that reads the nine attributes off the portraits. Interrupted, it goes
on where it was.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from demonstration import CONFIGS, demonstrate, say, spent, trained
from rich.table import Table
from torch import Tensor

import scoresde as ss
from scoresde.data import Captions, Dataset, Split, avatars
from scoresde.evaluation import Judge, attribute_judge, copy_rate
from scoresde.progress import bar
from scoresde.runs.pictures import Recorder, pixels
from scoresde.training import describe

CONFIG = CONFIGS / "avatars.yaml"
STEPS = 3000  # fewer than the configuration's, for all to end within six minutes
SCALE = 3.0
SCALES = (1.0, 2.0, SCALE)
JUDGED, SCORED, FITTED = 300, 100, 800
SAYINGS = (
    "a happy person with green hair and a purple shirt",
    "a person with a red hat and sunglasses",
    "a sad person with dark skin, long pink hair and a yellow shirt on a blue background",
    "a person with a beard and short grey hair on a white background",
)
SHOWN = 6  # portraits of each saying
AGAINST = {"hat": "a person with a hat", "glasses": "a person with glasses"}


def work(out: Path) -> dict[str, Any]:
    """Train (or go on), draw, judge and score; the report."""
    started = time.perf_counter()
    run = trained(CONFIG, out, STEPS)
    learned = time.perf_counter()
    model, dataset = ss.load(out), avatars()
    say(2, "fitting a judge on the training portraits, which is to read the drawn ones")
    with bar(FITTED, "steps of the judge") as advance:
        judge = attribute_judge(
            dataset.train.x, truth_of(dataset.train), steps=FITTED, advance=advance
        )
    say(3, f"drawing from sentences that were not trained on, {JUDGED} at each guidance scale")
    some = dataset.test.take(torch.arange(JUDGED))
    texts, truth = texts_of(some).pick(), truth_of(some)
    accuracy: dict[str, dict[str, float]] = {}
    copies = 0.0
    for scale in SCALES:
        x = drawn(model, texts, scale)
        read = judge.accuracy(x, truth)
        accuracy[f"{scale:g}"] = {name: found.value for name, found in read.items()}
        if scale == SCALE:
            copies = copy_rate(x, dataset.train.x)
    against = {name: without(model, judge, dataset, name) for name in AGAINST}
    show(out, model, dataset)
    sampled = time.perf_counter()
    say(4, f"scoring {SCORED} test portraits, without and with their sentences")
    test = dataset.test.take(torch.arange(SCORED))
    free, said = (
        ss.score(model, score_set(dataset, test), conditional=conditional, progress=bar)
        for conditional in (False, True)
    )
    ended = time.perf_counter()
    ceiling = judge.accuracy(dataset.test.x, truth_of(dataset.test))
    return {
        "accuracy": accuracy,
        "judge_on_real_portraits": {name: found.value for name, found in ceiling.items()},
        "judged": JUDGED,
        "against": against,
        "copy_rate": copies,
        "copy_rate_of_test_images": copy_rate(some.x, dataset.train.x),
        "bits_per_dim": free.bits_per_dim,
        "bits_per_dim_se": free.standard_error,
        "bits_per_dim_given_sentence": said.bits_per_dim,
        "bits_per_dim_given_sentence_se": said.standard_error,
        "likelihood_nfe": free.nfe,
        "bits_per_dim_independent_pixels": independent_pixels(dataset),
        "scored": SCORED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step": run.step,
        **spent(started, learned, sampled, ended),
    }


def texts_of(split: Split) -> Captions:
    """The sentences of some portraits."""
    found = split.columns["text"]
    assert isinstance(found, Captions)
    return found


def truth_of(split: Split) -> dict[str, Tensor]:
    """The nine attributes of some portraits."""
    return {name: c for name, c in split.columns.items() if isinstance(c, Tensor)}


def score_set(dataset: Dataset, test: Split) -> Dataset:
    """The data with fewer test portraits."""
    return Dataset(dataset.name, dataset.train, test, dataset.scaling, words=dataset.words)


def drawn(model: ss.ScoreModel, texts: list[str], scale: float, **more: Any) -> Tensor:
    """One portrait of each sentence."""
    return ss.draw(model, prompt=texts, guidance=scale, batch=100, progress=bar, **more).x


def without(model: ss.ScoreModel, judge: Judge, dataset: Dataset, name: str) -> dict[str, float]:
    """How many portraits of "a person" lack a hat or glasses, and with it said against.

    Sunglasses are no glasses: they are a word of their own.
    """
    words, texts = dataset.words[name], ["a person"] * 100
    others = ("none", "sunglasses")
    present = torch.tensor([k for k, word in enumerate(words) if word not in others])

    def share(negative: str | None, scale: float) -> float:
        found = judge.read(drawn(model, texts, scale, negative=negative))[name]
        return 1 - float(torch.isin(found, present).double().mean())

    return {"said_nothing": share(None, 1.0), "said_against": share(AGAINST[name], SCALE)}


def show(out: Path, model: ss.ScoreModel, dataset: Dataset) -> None:
    """Portraits of the sayings, the same at several scales, and a film of them as they appear."""
    many = [saying for saying in SAYINGS for _ in range(SHOWN)]
    scaling = dataset.scaling
    said = pixels(drawn(model, many, SCALE), scaling)
    panels(out / "said.png", dict(zip(SAYINGS, said.split(SHOWN), strict=True)))
    first = [SAYINGS[0]] * SHOWN
    at = {f"guidance {s:g}: {SAYINGS[0]}": pixels(drawn(model, first, s), scaling) for s in SCALES}
    panels(out / "scales.png", at)
    recorder = Recorder(describe(dataset))
    ss.draw(model, prompt=many, guidance=SCALE, look=recorder)
    recorder.save_film(out / "trajectory.gif")


def panels(path: Path, rows: dict[str, Tensor]) -> None:
    """A row of pictures, uint8 (N, 3, H, W), beside what was said of them."""
    from matplotlib.figure import Figure

    count = max(len(images) for images in rows.values())
    figure = Figure(figsize=(count + 2.6, len(rows) * 1.05), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), count + 1, width_ratios=[2.6, *[1] * count], squeeze=False)
    for axes, (text, images) in zip(grid, rows.items(), strict=True):
        axes[0].text(0, 0.5, textwrap.fill(text, 30), va="center", fontsize=8)
        for place, image in zip(axes[1:], images, strict=True):
            place.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        for place in axes:
            place.set_axis_off()
    figure.savefig(path)


def independent_pixels(dataset: Dataset) -> float:
    """Bits per dimension of the test portraits if every number had its own smoothed histogram."""
    train, test = (split.x.flatten(1).long() for split in (dataset.train, dataset.test))
    counts = torch.ones(256, train.shape[1])
    counts.scatter_add_(0, train, torch.ones(train.shape))
    probability = counts / counts.sum(0)
    return float(-probability.gather(0, test).log2().mean())


def table(r: dict[str, Any]) -> Table:
    """What was reached, and what to compare it with."""
    real, shown = r["judge_on_real_portraits"], r["accuracy"][f"{SCALE:g}"]
    page = Table(title="scoresde: portraits from sentences", title_justify="left")
    columns = ("", *(f"guidance {scale:g}" for scale in SCALES), "real portraits")
    for column in columns:
        page.add_column(column)
    for name in shown:
        title = "all nine" if name == "all" else name.replace("_", " ")
        found = (f"{r['accuracy'][f'{scale:g}'][name]:.0%}" for scale in SCALES)
        page.add_row(title, *found, f"{real[name]:.0%}")
    for name, share in r["against"].items():
        title = f"no {name}, said against"
        page.add_row(
            title, "", f"{share['said_against']:.0%}", "", f"{share['said_nothing']:.0%} unsaid"
        )
    page.add_row(
        "copy rate", "", f"{r['copy_rate']:.0%}", "", f"{r['copy_rate_of_test_images']:.0%}"
    )
    bits = f"{r['bits_per_dim']:.3f} +- {r['bits_per_dim_se']:.3f}"
    page.add_row("bits/dim", bits, "", "", f"{r['bits_per_dim_independent_pixels']:.2f} indep.")
    told = f"{r['bits_per_dim_given_sentence']:.3f} +- {r['bits_per_dim_given_sentence_se']:.3f}"
    page.add_row("  given the sentence", told, "", "", "")
    return page


if __name__ == "__main__":
    raise SystemExit(demonstrate("demo", __doc__, "runs/demo", "said.png", work, table))
