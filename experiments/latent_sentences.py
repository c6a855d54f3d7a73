"""Pictures from sentences in the latents of an autoencoder: are they what was said?

    python experiments/latent_sentences.py pairs --data FOLDER [--seeds 0 1 2]
    python experiments/latent_sentences.py avatars [--seeds 0]
    python experiments/latent_sentences.py emoji --data FOLDER [--size 64]
    python experiments/latent_sentences.py encoders --data FOLDER --minilm FOLDER
    python experiments/latent_sentences.py cost

``--data`` has the files of MNIST (pairs), or the sheets of emoji. The first two train an
autoencoder and a model of its latents and let a judge fitted on real pictures read what is drawn,
as experiments/sentences.py does; portraits are averaged to 16 pixels for it. Emoji are drawn from
names in a style in which training never shows them. What is drawn is looked up by
EfficientNet-Lite0 features among 100 emoji of other styles, one of them of the name; the real
emoji of the name and style is looked up in the same way. The part "test" has names of which
training shows no emoji at all. ``encoders`` compares a text encoder that is trained with the model
and a frozen MiniLM, at equal CPU seconds. ``cost`` compares a step in latents and in pixels, and
counts what an epoch encodes. Times are CPU seconds of one thread. Writes
experiments/results/latent_sentences.json and pictures, and prints the results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from autoencoders import PROBED, Clock, recoded, show_rows, store, trained
from sentences import SCALES, SHOWN, drawn, removed, texts_of, truth_of
from torch import Tensor
from torch.nn import functional as F

import scoresde as ss
from scoresde.config import load_config
from scoresde.data import Dataset, Split, avatars, digit_pairs, digits, emoji
from scoresde.evaluation import Accuracy, Judge, attribute_judge, halves_judge, lite0_features
from scoresde.latent import KLAutoencoder
from scoresde.nn import UNet
from scoresde.parameterization import ScoreModel, edm
from scoresde.progress import Progress, bar, silent
from scoresde.runs.run import parameters
from scoresde.sde import EDM
from scoresde.training import Plan, TrainState, fit

HERE = Path(__file__).parent
STORE = HERE / "results" / "latent_sentences.json"
CONFIGS = HERE.parent / "configs"
AMONG = 100  # emoji that a picture is looked up among, and pictures of a part
TIMED = 10  # steps and calls of which the fastest counts
LONGEST = 48  # word pieces of a sentence
KL = 0.1  # weight of the autoencoder of emoji of 32 pixels

Found = dict[str, Any]
Results = Iterator[tuple[str, Found]]


def main() -> int:
    """Train, draw, judge, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", help="folder with the files of MNIST, or of the emoji")
    parser.add_argument("--minilm", help="folder of the text model all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--size", type=int, default=32, help="side of the emoji")
    parser.add_argument("--drawn", type=int, default=500, help="pictures for each figure")
    parser.add_argument("--seconds", type=float, default=300, help="of each text encoder")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one by default")
    parser.add_argument("--trial", action="store_true", help="store nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given.out = given.out or Path(folder)
        store(None if given.trial else STORE, TASKS[given.task](given))
    print(*tables(json.loads(STORE.read_text())), sep="\n\n")
    return 0


def two_stages(
    name: str,
    data: Dataset,
    seed: int,
    out: Path,
    codec_keys: Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    progress: Progress = bar,
) -> tuple[Any, Found]:
    """A model of latents with its codec, and what both took.

    A codec that lies in ``out`` with its figures is taken from there.
    """
    folder = out / f"{name}-{seed}"
    figures = folder / "figures.json"
    if not figures.exists():
        _, found = trained(f"{name}_kl", data, folder, seed=seed, keys=codec_keys)
        figures.write_text(json.dumps(found))
    began = time.process_time()
    more = {"seed": seed, "codec": str(folder), **(keys or {})}
    run = ss.train(load_config(CONFIGS / f"{name}_latent.yaml", more), data, progress=progress)
    if run.stopped:
        raise SystemExit("interrupted: nothing is stored of it")
    return run.model, {
        "seed": seed,
        "codec": json.loads(figures.read_text()),
        "seconds": time.process_time() - began,
        "steps": run.step,
        "parameters": parameters(run.model),
    }


# Pairs of digits ---------------------------------------------------------------------------------


def pairs(given: argparse.Namespace) -> Results:
    """How often both digits are right, or swapped, for pairs seen in training and others."""
    data = digit_pairs(given.data, height=32)
    columns, templates = data.train.columns, data.words["template"]
    judge = halves_judge(data.train.x, columns["left"], columns["right"])
    for seed in given.seeds:
        model, found = two_stages("digit_pairs", data, seed, given.out)
        for part, split in (("seen", data.test), ("held_out", data.parts["held_out"])):
            some = split.take(torch.arange(given.drawn))
            found[part] = {"real": pairs_right(judge, split.x, split, templates)}
            for scale in SCALES:
                x = drawn(model, texts_of(some).pick(), scale)
                found[part][f"{scale:g}"] = pairs_right(judge, x, some, templates)
                if (part, scale, seed) == ("held_out", 2, 0):
                    show_rows("digit_pairs_latent", x[:64].to(torch.uint8), 8)
        yield f"pairs, seed {seed}", found


def pairs_right(judge: Judge, x: Tensor, asked: Split, templates: Sequence[str]) -> Found:
    """Shares of right and of swapped pairs, and of right ones under each sentence."""
    left, right, template = (asked.columns[name] for name in ("left", "right", "template"))
    read = judge.read(x)
    ok = (read["left"] == left) & (read["right"] == right)
    swapped = (read["left"] == right) & (read["right"] == left) & (left != right)
    share = Accuracy(int(ok.sum()), len(ok))
    return {
        "right": share.value,
        "error": share.error,
        "swapped": float(swapped.double().mean()),
        "by_template": {
            words: float(ok[template == k].double().mean()) for k, words in enumerate(templates)
        },
    }


# Portraits ---------------------------------------------------------------------------------------


def portraits(given: argparse.Namespace) -> Results:
    """Accuracy of every attribute, and of negative prompts."""
    small, data = avatars(), avatars(64, partial=0.4)
    judge = averaged(attribute_judge(small.train.x, truth_of(small.train)), 16)
    split = data.test.take(torch.arange(given.drawn))
    texts, truth = texts_of(split).pick(), truth_of(split)
    for seed in given.seeds:
        model, found = two_stages("avatars64", data, seed, given.out)
        found["accuracy"] = {
            "real": accuracies(judge, data.test.x, truth_of(data.test)),
            "codec": accuracies(judge, recoded(model.codec, data, split.x), truth),
        }
        for scale in SCALES:
            x = drawn(model, texts, scale)
            found["accuracy"][f"{scale:g}"] = accuracies(judge, x, truth)
            if (scale, seed) == (2, 0):
                show_rows("avatars_latent", x[: 2 * SHOWN[0]].to(torch.uint8), SHOWN[0])
        found["negative"] = {
            name: removed(data, model, judge, name, given.drawn // 2)
            for name in ("hat", "glasses")
        }
        yield f"avatars, seed {seed}", found


def averaged(judge: Judge, side: int) -> Judge:
    """A judge of larger pictures, which are averaged to its side first."""
    return replace(judge, predict=lambda x: judge.predict(F.adaptive_avg_pool2d(x.float(), side)))


def accuracies(judge: Judge, x: Tensor, truth: Mapping[str, Tensor]) -> dict[str, float]:
    """The accuracy of each attribute, and the mean over all but the mood."""
    found = {name: each.value for name, each in judge.accuracy(x, truth).items()}
    easy = [value for name, value in found.items() if name not in ("mood", "all")]
    return {**found, "easy": sum(easy) / len(easy)}


# Emoji -------------------------------------------------------------------------------------------


def emojis(given: argparse.Namespace) -> Results:
    """Names in a style that training does not show them in: retrieval and style."""
    data = emoji(given.data, size=given.size)
    catalogue = Catalogue(data)
    # Pixels of twice the side are copies: as many latents, at the same price for each.
    codec = {
        "data.size": given.size,
        "autoencoder.patch": given.size // 16,
        "loss.kl": KL * (given.size / 32) ** 2,
    }
    name, keys = f"emoji{given.size}", {"data.size": given.size}
    for seed in given.seeds:
        model, found = two_stages("emoji", data, seed, given.out / name, codec, keys)
        if seed == 0:
            sheet(f"{name}_latent", catalogue, model)
        said = f"emoji, {given.size} pixels, seed {seed}"
        yield said, found | catalogue.judged(model)


class Catalogue:
    """All emoji of a data set by name and style, with their features."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.held = data, data.parts["held_out"]
        self.judge = attribute_judge(data.train.x, {"style": data.train.columns["style"]})
        self.features = lite0_features().of
        self.shown = [*self.keys(data.train), *self.keys(data.test)]
        found = self.features(torch.cat([data.train.x, data.test.x]))
        self.mean = found.mean(0)
        self.known = F.normalize(found - self.mean, dim=1)

    def keys(self, split: Split) -> list[tuple[str, int]]:
        """Name and style of every emoji."""
        names = [texts[1] for texts in texts_of(split)]
        return list(zip(names, split.columns["style"].tolist(), strict=True))

    def places(self, name: str, style: int, seed: int) -> list[int]:
        """Places of emoji of other styles: one of the name, and others of further names."""
        other = {n: k for k, (n, s) in enumerate(self.shown) if s != style}
        right, every = other.pop(name), list(other.values())
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        return [right, *(every[k] for k in order[: AMONG - 1].tolist())]

    def retrieved(self, x: Tensor, keys: Sequence[tuple[str, int]]) -> Found:
        """How often the emoji of the name is the most similar one, and among the first five."""
        found = F.normalize(self.features(x.to(torch.uint8)) - self.mean, dim=1)
        ranks = []
        for seed, (feature, key) in enumerate(zip(found, keys, strict=True)):
            likeness = self.known[self.places(*key, seed)] @ feature
            ranks.append(int((likeness > likeness[0]).sum()))
        first = Accuracy(sum(rank == 0 for rank in ranks), len(ranks))
        five = sum(rank < 5 for rank in ranks) / len(ranks)
        return {"first": first.value, "error": first.error, "in_five": five}

    def judged(self, model: Any) -> Found:
        """Retrieval and style of pictures of the held-out names, and of names for testing."""
        found: Found = {}
        names = [name for name, _ in self.keys(self.data.test)]
        several = torch.tensor([k for k, n in enumerate(names) if names.count(n) > 1][:AMONG])
        for part, split in (("held_out", self.held), ("test", self.data.test.take(several))):
            times = AMONG // len(split)
            texts, keys = texts_of(split).pick() * times, self.keys(split) * times
            style = split.columns["style"].repeat(times)
            real = split.x.repeat(times, 1, 1, 1)  # each looked up among others
            found[part] = {"real": self.retrieved(real, keys) | self.styles(real, style)}
            for scale in SCALES:
                x = drawn(model, texts, scale)
                found[part][f"{scale:g}"] = self.retrieved(x, keys) | self.styles(x, style)
        return found

    def styles(self, x: Tensor, style: Tensor) -> Found:
        """How often the style is read off the pictures."""
        return {"style": self.judge.accuracy(x, {"style": style})["style"].value}


def sheet(name: str, catalogue: Catalogue, model: Any) -> None:
    """Store a picture: a seen emoji of each held-out name, one drawn, and the real one."""
    held, train = catalogue.held, catalogue.data.train
    texts, names = texts_of(held).pick(), [name for name, _ in catalogue.keys(held)]
    first = drawn(model, texts, 2.0).to(torch.uint8)
    place = {name: k for k, (name, _) in enumerate(catalogue.keys(train))}
    seen = train.x[[place[name] for name in names]]
    columns = torch.stack([seen, first, held.x], 1).flatten(0, 1).float()
    show_rows(name, F.adaptive_avg_pool2d(columns, 32).to(torch.uint8), 15)
    print(*texts, sep=" | ")


# Text encoders -----------------------------------------------------------------------------------


def encoders(given: argparse.Namespace) -> Results:
    """A text encoder that is trained, and a frozen one, at equal CPU seconds of training."""
    data = emoji(given.data)
    catalogue, out = Catalogue(data), given.out / "emoji32"
    frozen = {"kind": "frozen_text", "folder": given.minilm, "length": LONGEST, "width": 64}
    for name, keys in (("tokens", {}), ("minilm", {"conditions": {"text": frozen}})):
        began, clock = time.process_time(), Clock()
        two_stages("emoji", data, 0, out, None, {**keys, "train.steps": PROBED}, clock)
        setup = time.process_time() - began - clock.seconds * PROBED
        steps = int(given.seconds / clock.seconds)
        model, found = two_stages("emoji", data, 0, out, None, {**keys, "train.steps": steps})
        found |= {"setup_seconds": setup, "step_seconds": clock.seconds}
        yield f"encoders, {name}", found | catalogue.judged(model)


# Cost --------------------------------------------------------------------------------------------

SPACES = {
    "32 x 64 x 1, width 48": ((1, 32, 64), (4, 8, 16), 48),
    "32 x 32 x 3, width 64": ((3, 32, 32), (4, 8, 8), 64),
}
"""Shapes of pictures and of their latents, and the width of both networks."""


def cost(given: argparse.Namespace) -> Results:
    """CPU seconds of a training step and of a network call, in pixels and in latents."""
    for name, (pixels, latents, width) in SPACES.items():
        found: Found = {}
        for space, shape, several in (("pixels", pixels, (1, 2, 2)), ("latents", latents, (1, 2))):
            net = UNet(shape[0], width=width, multipliers=several, blocks=2, attention=(1,))
            found[space] = {"parameters": parameters(net), **step_seconds(net, shape)}
        for what in ("training", "call"):
            found[f"{what}_ratio"] = found["pixels"][what] / found["latents"][what]
        yield f"cost, {name}", found
    yield "encoded", encoded(given.out)


def encoded(out: Path) -> Found:
    """Pictures that are encoded in one epoch, and in three later ones of another model."""
    data = digits()
    settings = {"data": "digits", "autoencoder": {"kind": "kl", "widths": [16]}}
    ss.train_autoencoder(settings, out=out / "codec", steps=20, progress=silent)
    encode, seen = KLAutoencoder.encode, []

    def counted(codec: KLAutoencoder, x: Tensor) -> Any:
        seen.append(len(x))
        return encode(codec, x)

    found: Found = {"pictures": len(data.train) + len(data.test)}
    for name, epochs in (("first", 1), ("cached", 3)):
        seen.clear()
        steps = epochs * len(data.train) // 64
        small = {"data": "digits", "network": {"kind": "unet", "width": 8, "multipliers": [1, 1]}}
        with patch.object(KLAutoencoder, "encode", counted):
            more = {"out": out / name, "codec": out / "codec", "batch": 64, "steps": steps}
            ss.train(small, progress=silent, **more)
        found[name] = {"epochs": epochs, "encoded": sum(seen)}
    return found


def step_seconds(net: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """CPU seconds of a training step and of a call without gradient: the best of ``TIMED``."""
    model, plan = ScoreModel(net, EDM(), edm()), Plan(batch=32, steps=TIMED)
    state, x = TrainState.of(model, plan), torch.randn(256, *shape)
    steps, began = [], time.process_time()
    for _ in fit(state, plan, x):
        steps.append(time.process_time() - began)
        began = time.process_time()
    denoiser, calls = model.eval().denoiser(), []
    for _ in range(TIMED):
        began = time.process_time()
        with torch.no_grad():
            denoiser(x[:32], torch.ones(32, dtype=torch.float64))
        calls.append(time.process_time() - began)
    return {"training": min(steps), "call": min(calls)}


# Reporting ---------------------------------------------------------------------------------------


def tables(stored: Mapping[str, Found]) -> list[str]:
    """Markdown of what is stored."""
    named: dict[str, list[tuple[str, Found]]] = {}
    for key, found in stored.items():
        task, _, rest = key.partition(", ")
        named.setdefault(task, []).append((rest, found))
    return [maker(named[task]) for task, maker in TABLES.items() if task in named]


def listed(values: Iterable[float], digits: int = 1) -> str:
    """Shares in percent."""
    return " / ".join(f"{100 * value:.{digits}f}" for value in values)


def table_of_pairs(rows: Sequence[tuple[str, Found]]) -> str:
    """Right pairs at the scales, by seed."""
    lines = [
        "| pairs | CPU s | seen, scale 1 / 2 / 3 | swapped | held out, 1 / 2 / 3 | swapped "
        "| least of a sentence, at 2 |",
        "|---" * 7 + "|",
    ]
    for name, r in rows:
        cells = [name, f"{r['codec']['seconds']:.0f} + {r['seconds']:.0f}"]
        for part in ("seen", "held_out"):
            cells.append(listed(r[part][f"{scale:g}"]["right"] for scale in SCALES))
            cells.append(listed(r[part][f"{scale:g}"]["swapped"] for scale in SCALES))
        cells.append(listed([min(r["seen"]["2"]["by_template"].values())]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_portraits(rows: Sequence[tuple[str, Found]]) -> str:
    """The accuracy of every attribute."""
    names = list(rows[0][1]["accuracy"]["real"])
    lines = ["| portraits | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, r in rows:
        for what, accuracy in r["accuracy"].items():
            said = f"{name}, scale {what}" if what[0].isdigit() else what
            lines.append(f"| {said} | {' | '.join(listed([accuracy[n]]) for n in names)} |")
    return "\n".join(lines)


def table_of_emoji(rows: Sequence[tuple[str, Found]]) -> str:
    """Retrieval and style, of real emoji and of what is drawn."""
    lines = [
        "| emoji | CPU s | part | first of 100: real; scale 1 / 2 / 3 | in the first 5 | style |",
        "|---" * 6 + "|",
    ]
    for name, r in rows:
        for part in ("held_out", "test"):
            cells = [name, f"{r['codec']['seconds']:.0f} + {r['seconds']:.0f}", part]
            for what in ("first", "in_five", "style"):
                real, drawn = r[part]["real"][what], [r[part][f"{s:g}"][what] for s in SCALES]
                cells.append(f"{listed([real], 0)}; {listed(drawn, 0)}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_cost(rows: Sequence[tuple[str, Found]]) -> str:
    """Milliseconds of a step and a call."""
    lines = [
        "| pictures | parameters, pixels and latents | step, ms | ratio | call, ms | ratio |",
        "|---" * 6 + "|",
    ]
    for name, r in rows:
        both = [r[space] for space in ("pixels", "latents")]
        cells = [name, ", ".join(f"{each['parameters']:,}" for each in both)]
        for what in ("training", "call"):
            cells.append(", ".join(f"{1000 * each[what]:.0f}" for each in both))
            cells.append(f"{r[f'{what}_ratio']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Sequence[tuple[str, Found]]], str]] = {
    "pairs": table_of_pairs,
    "avatars": table_of_portraits,
    "emoji": table_of_emoji,
    "encoders": table_of_emoji,
    "cost": table_of_cost,
}

TASKS: dict[str, Callable[[argparse.Namespace], Results]] = {
    "pairs": pairs,
    "avatars": portraits,
    "emoji": emojis,
    "encoders": encoders,
    "cost": cost,
}

if __name__ == "__main__":
    raise SystemExit(main())
