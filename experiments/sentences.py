"""Pictures from sentences: are they what was said?

    python experiments/sentences.py avatars [--seeds 0 1 2] [--steps 12500]
    python experiments/sentences.py pairs --mnist FOLDER [--seeds 0 1 2]

Trains the models of configs/avatars.yaml and configs/digit_pairs.yaml, draws pictures from
sentences that were not trained on at several guidance scales, and lets a judge fitted on real
pictures read them (experiments/judges.py has its ceiling). The avatars are trained without any
portrait of green hair and a purple shirt, and then asked for it; sentences that leave a hat or
glasses open are drawn with "a person with a hat" or "... glasses" as a negative prompt. Times are
CPU seconds of the training on one thread. Writes experiments/results/sentences.json and a picture
of each, and prints tables.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from judging import surroundings
from torch import Tensor

import scoresde as ss
from scoresde.data import Captions, Dataset, Split, avatars, digit_pairs
from scoresde.evaluation import Accuracy, Judge, attribute_judge, halves_judge, save_png
from scoresde.progress import bar

HERE = Path(__file__).parent
STORE = HERE / "results" / "sentences.json"
CONFIGS = HERE.parent / "configs"
SCALES = (1.0, 2.0, 3.0)
DRAWN = 500
HIDDEN = ("green hair", "purple shirt")
SHOWN = (8, 4)  # pictures in a row, and rows

Truth = Mapping[str, Tensor]


def main() -> int:
    """Train, draw, judge, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=("avatars", "pairs"))
    parser.add_argument("--mnist", help="folder with the four idx files of MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, help="steps of the training; not those of the file")
    parser.add_argument("--trial", action="store_true", help="store nothing")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="pictures for each figure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    one: Callable[[Dataset, Judge, int, int | None, int], dict[str, Any]]
    if given.task == "avatars":
        data = without_hidden(avatars(partial=0.4))
        judge = attribute_judge(data.train.x, truth_of(data.train))
        one = portraits
    else:
        if not given.mnist:
            parser.error("pairs need --mnist FOLDER")
        data = digit_pairs(given.mnist, height=12)
        columns = data.train.columns
        judge = halves_judge(data.train.x, columns["left"], columns["right"])
        one = pairs
    for seed in given.seeds:
        found = one(data, judge, seed, given.steps, given.drawn)
        report(given.task, found)
        if not given.trial:
            stored = json.loads(STORE.read_text()) if STORE.exists() else {}
            before = stored.get(given.task, {}).get("runs", [])
            key = (found["seed"], found["steps"])
            runs = [run for run in before if (run["seed"], run["steps"]) != key]
            runs = sorted([*runs, found], key=lambda run: (run["steps"], run["seed"]))
            stored[given.task] = {"runs": runs, **surroundings()}
            STORE.write_text(json.dumps(stored, indent=1) + "\n")
    return 0


def trained(name: str, data: Dataset, seed: int, steps: int | None) -> tuple[Any, float, int]:
    """The model of a configuration, the CPU seconds of its training, and its steps."""
    began = time.process_time()
    run = ss.train(CONFIGS / f"{name}.yaml", data, seed=seed, steps=steps, progress=bar)
    return run.model, time.process_time() - began, run.step


def texts_of(split: Split) -> Captions:
    """The sentences of some examples."""
    found = split.columns["text"]
    assert isinstance(found, Captions)
    return found


def truth_of(split: Split) -> dict[str, Tensor]:
    """What the judge is to read off the examples."""
    return {
        name: column
        for name, column in split.columns.items()
        if isinstance(column, Tensor) and name != "template"
    }


def drawn(model: Any, sentences: list[str], scale: float, negative: str | None = None) -> Tensor:
    """One picture of each sentence."""
    return ss.draw(
        model, prompt=sentences, guidance=scale, negative=negative, batch=100, progress=bar
    ).x


# Portraits ---------------------------------------------------------------------------------------


def without_hidden(data: Dataset) -> Dataset:
    """The data without training portraits of the hidden combination."""
    texts = texts_of(data.train).pick()
    rows = [k for k, text in enumerate(texts) if not all(words in text for words in HIDDEN)]
    return replace(data, train=data.train.take(torch.tensor(rows)))


def portraits(data: Dataset, judge: Judge, seed: int, steps: int | None, n: int) -> dict[str, Any]:
    """Accuracy of every attribute, of negative prompts, and of the hidden combination."""
    model, seconds, step = trained("avatars", data, seed, steps)
    split = data.test.take(torch.arange(n))
    texts, truth = texts_of(split).pick(), truth_of(split)
    found: dict[str, Any] = {"seed": seed, "cpu_seconds": seconds, "steps": step}
    found["accuracy"] = {}
    for scale in SCALES:
        accuracy = judge.accuracy(drawn(model, texts, scale), truth)
        found["accuracy"][f"{scale:g}"] = {k: a.value for k, a in accuracy.items()}
    found["negative"] = {name: removed(data, model, judge, name, n) for name in ("hat", "glasses")}
    found["hidden"] = {f"{scale:g}": hidden(data, model, judge, scale, n) for scale in SCALES}
    columns, rows = SHOWN
    if seed == 0:
        show("avatars", data, model, texts[: columns * rows])
    return found


def removed(data: Dataset, model: Any, judge: Judge, name: str, n: int) -> dict[str, float]:
    """How many portraits lack a hat or glasses, of sentences that leave it open.

    Without guidance they show it as often as the data do; then it is said against.
    """
    none, said = data.words[name].index("none"), open_sentences(data, n)
    against = {"hat": "a person with a hat", "glasses": "a person with glasses"}[name]

    def share(scale: float, negative: str | None) -> float:
        read = judge.read(drawn(model, said, scale, negative))
        return float((read[name] == none).double().mean())

    return {
        "of": len(said),
        "absent_unguided": share(1.0, None),
        "absent_guided": share(3.0, None),
        "absent_with_negative": share(3.0, against),
    }


def open_sentences(data: Dataset, n: int) -> list[str]:
    """Sentences about hair and shirt, which leave glasses, beards and hats open."""
    pattern = r"(a \w+ person with \w+ skin, \w+ \w+ hair),? (?:and )?(an? \w+ shirt)"
    found = (re.match(pattern, text) for text in texts_of(data.test).pick()[:n])
    return [f"{match[1]} and {match[2]}" for match in found if match]


def hidden(data: Dataset, model: Any, judge: Judge, scale: float, n: int) -> float:
    """How often both attributes of the combination that was never trained are right."""
    asked = hidden_sentences(data, n)
    read = judge.read(drawn(model, asked, scale))
    both = (read["hair"] == data.words["hair"].index("green")) & (
        read["shirt"] == data.words["shirt"].index("purple")
    )
    return float(both.double().mean())


def hidden_sentences(data: Dataset, n: int) -> list[str]:
    """Test sentences without a hat, of the hidden hair and shirt."""
    texts = [text for text in texts_of(data.test).pick() if "hat" not in text][:n]
    coloured = (re.sub(r"\w+ hair", HIDDEN[0], text) for text in texts)
    return [re.sub(r"an? \w+ shirt", f"a {HIDDEN[1]}", text) for text in coloured]


# Pairs of digits ---------------------------------------------------------------------------------


def pairs(data: Dataset, judge: Judge, seed: int, steps: int | None, n: int) -> dict[str, Any]:
    """How often both digits are right, or swapped, for pairs seen in training and others."""
    model, seconds, step = trained("digit_pairs", data, seed, steps)
    found: dict[str, Any] = {"seed": seed, "cpu_seconds": seconds, "steps": step}
    for part, split in (("seen", data.test), ("held_out", data.parts["held_out"])):
        some = split.take(torch.arange(n))
        texts, (left, right) = texts_of(some).pick(), (some.columns[k] for k in ("left", "right"))
        found[part] = {}
        for scale in SCALES:
            read = judge.read(drawn(model, texts, scale))
            right_pairs = (read["left"] == left) & (read["right"] == right)
            swapped = (read["left"] == right) & (read["right"] == left) & (left != right)
            found[part][f"{scale:g}"] = {
                name: Accuracy(int(each.sum()), n).value
                for name, each in (("right", right_pairs), ("swapped", swapped))
            }
    columns, rows = SHOWN
    if seed == 0:
        texts = texts_of(data.parts["held_out"]).pick()[: columns * rows]
        show("digit_pairs", data, model, texts)
    return found


# Reporting ---------------------------------------------------------------------------------------


def show(name: str, data: Dataset, model: Any, texts: list[str]) -> None:
    """Store a picture of samples, and print what was said of them."""
    columns, rows = SHOWN
    x = data.scaling.to_uint8(data.scaling.encode(drawn(model, texts, 2.0)))
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    tiles = x.reshape(rows, columns, *x.shape[1:]).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * x.shape[2], columns * x.shape[3], -1)
    save_png(HERE / "results" / f"{name}.png", picture.squeeze(-1).numpy())
    for row in range(rows):
        print(*texts[row * columns : (row + 1) * columns], sep=" | ")


def report(task: str, found: Mapping[str, Any]) -> None:
    """Print the figures of one seed."""
    seconds, step = found["cpu_seconds"], found["steps"]
    print(f"{task}, seed {found['seed']}: {step} steps in {seconds:.0f} CPU seconds")
    for key, value in found.items():
        if isinstance(value, Mapping):
            print(f"  {key}: {json.dumps(value)}")


if __name__ == "__main__":
    raise SystemExit(main())
