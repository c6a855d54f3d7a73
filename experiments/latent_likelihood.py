"""Bits per dimension of MNIST through a codec, beside pixel models of the same CPU seconds.

    python experiments/latent_likelihood.py --mnist FOLDER [ROW ...]

``latents`` trains a KL autoencoder with a logistic law and a model of its latents. The divergence
from the standard normal law has half its weight in the evidence bound, because the model codes the
latents in fewer bits than that law; ``latents_kl_1`` trains with the bound itself. ``pixels`` has
the network of configs/mnist_small.yaml as that trains it, and ``levels`` trains the same
network on the levels themselves, in the way of configs/mnist_likelihood.yaml. Each takes as many
steps as fit in --seconds of one thread, by the time of a step that a short training takes before;
the latents share them. The first test images are scored: through the latents by the flow and by
the variational bound, with the two parts of the bound; the pixel models by their variational
bounds. Errors are standard errors over images and draws. What is stored is not measured again.
Writes experiments/results/latent_likelihood.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from autoencoders import Clock
from judging import surroundings

import scoresde as ss
from scoresde.config import AutoencoderConfig, Config, build_dataset, load_config, override
from scoresde.data import Dataset
from scoresde.parameterization import ScoreModel
from scoresde.progress import silent
from scoresde.runs.score import Scores

HERE = Path(__file__).parent
CONFIGS, STORE = HERE.parent / "configs", HERE / "results" / "latent_likelihood.json"
PROBED = 30
FIRST = 0.65
"""Share of the seconds that the autoencoder takes."""
CODEC = {
    "autoencoder.law": "logistic",
    "autoencoder.widths": [32, 64],
    "loss.kl": 0.5,
    "train.batch": 16,
    "train.lr": 4e-3,
    "train.ema": 0.998,
}
LATENTS = {"conditional": False, "train.batch": 64}
LEVELS = {
    "sde": {"kind": "vp", "t_min": 2.4e-6, "t_eps": 2.4e-6},
    "parameterization": "x0",
    "network.head": "levels",
    "train.dither": False,
    "train.weighting": "sigma2",
    "train.times": {"kind": "lognormal", "mean": -2.3, "std": 2.2},
    "likelihood.dequantisation": "decoder",
}
OWN_CODEC = {"train.holdout": 0, "train.precision": "bf16"}
OWN = OWN_CODEC | {"train.posthoc": [], "train.keep_best": False}
Row = dict[str, Any]


def main() -> int:
    """Measure what is missing, store it, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", help="of " + ", ".join(ROWS) + "; all by default")
    parser.add_argument("--mnist", required=True, help="folder with the four idx files of MNIST")
    parser.add_argument("--seconds", type=float, default=400.0, help="CPU seconds of a row")
    parser.add_argument("--num", type=int, default=500, help="test images to score")
    parser.add_argument("--trial", action="store_true", help="store nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = {} if arguments.trial else read()
    dataset = build_dataset(configured("mnist_small", {}, arguments.mnist).data)
    for name in arguments.rows or ROWS:
        if name not in stored:
            found = ROWS[name](dataset, arguments) | surroundings()
            stored = (stored if arguments.trial else read()) | {name: found}
            if not arguments.trial:
                STORE.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(stored, indent=1) if arguments.trial else "", *tables(stored), sep="\n")
    return 0


def read() -> dict[str, Row]:
    """What is stored."""
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def latents(changes: Row) -> Callable[[Dataset, argparse.Namespace], Row]:
    """An autoencoder with a law, and a model of its latents."""

    def row(dataset: Dataset, arguments: argparse.Namespace) -> Row:
        config = load_config(
            CONFIGS / "mnist_kl.yaml",
            {**OWN_CODEC, **CODEC, **changes},
            AutoencoderConfig,
        )
        codec, of_codec = within(
            arguments.seconds * FIRST,
            config,
            lambda config, clock: ss.train_autoencoder(
                config, dataset, device="cpu", progress=clock
            ),
        )
        config = configured("mnist_latent", {**OWN, **LATENTS}, arguments.mnist)
        rest = arguments.seconds - of_codec["seconds"]
        trained, of_model = within(
            rest,
            config,
            lambda config, clock: ss.train(
                config, dataset, codec=codec.codec, device="cpu", progress=clock
            ),
        )
        scores = scored(trained.model, dataset, arguments, method="path", bound=True)
        columns, bits = scores.values.columns, scores.job.bits
        return {
            **summary(scores),
            "is": scores.job.estimator.bounds,
            "distortion": average(bits(-columns["distortion"])),
            "rate": average(bits(-columns["rate"])),
            "variational": average(bits(columns["bound"])),
            "rate_to_standard_normal": standard_rate(codec.codec, dataset, arguments.num),
            "codec": {**of_codec, "settings": CODEC | changes, "parameters": size(codec.codec)},
            "model": {**of_model, "parameters": size(trained.model)},
            "seconds": of_codec["seconds"] + of_model["seconds"],
        }

    return row


def pixels(changes: Row) -> Callable[[Dataset, argparse.Namespace], Row]:
    """A model of pixels with the network of configs/mnist_small.yaml."""

    def row(dataset: Dataset, arguments: argparse.Namespace) -> Row:
        config = configured("mnist_small", {**OWN, **changes}, arguments.mnist)
        trained, effort = within(
            arguments.seconds,
            config,
            lambda config, clock: ss.train(config, dataset, device="cpu", progress=clock),
        )
        scores = scored(trained.model, dataset, arguments)
        return {
            **summary(scores),
            "is": scores.job.estimator.bounds,
            **effort,
            "parameters": size(trained.model),
        }

    return row


def within(
    seconds: float, config: Any, train: Callable[[Any, Clock], Any]
) -> tuple[Any, dict[str, float]]:
    """Train for as many steps as fit in CPU seconds, and what it took."""
    clock = Clock()
    began = time.process_time()
    train(override(config, {"train.steps": PROBED}), clock)
    around = time.process_time() - began - PROBED * clock.seconds
    steps = int((seconds - around) / clock.seconds)
    began = time.process_time()
    found = train(override(config, {"train.steps": steps}), clock)
    if found.stopped:
        raise SystemExit("interrupted: nothing is stored of it")
    return found, {
        "seconds": time.process_time() - began,
        "steps": steps,
        "batch": config.train.batch,
    }


def scored(
    model: ScoreModel, dataset: Dataset, arguments: argparse.Namespace, **settings: Any
) -> Scores:
    return ss.score(model, dataset, num=arguments.num, check=0, progress=silent, **settings)


def summary(scores: Scores) -> Row:
    return {
        "bits_per_dim": scores.bits_per_dim,
        "standard_error": scores.standard_error,
        "images": len(scores.bits),
        "method": scores.job.settings.method,
    }


def average(bits: torch.Tensor) -> dict[str, float]:
    """Mean and standard error."""
    return {"value": float(bits.mean()), "error": float(bits.std()) / len(bits) ** 0.5}


@torch.no_grad()
def standard_rate(codec: Any, dataset: Dataset, num: int) -> dict[str, float]:
    """KL(q(z | x) | N(0, 1)) of test images in bits per dimension: the rate that was trained."""
    mean, std = codec.encode(dataset.scaling.encode(dataset.test.x[:num]))
    nats = ((mean.square() + std.square() - 1) / 2 - std.log()).flatten(1).sum(1)
    return average(nats.double() / dataset.shape.numel() / math.log(2))


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def configured(name: str, changes: Row, folder: str) -> Config:
    found: Config = load_config(CONFIGS / f"{name}.yaml", {"data.path": folder, **changes})
    return found


def tables(stored: dict[str, Row]) -> list[str]:
    """The rows in Markdown."""
    lines = [
        "| model of | CPU seconds | bits per dimension | of them distortion, rate |",
        "|---|---|---|---|",
    ]
    for name, row in stored.items():
        value = f"{row['bits_per_dim']:.3f} +- {row['standard_error']:.3f}"
        parts = ""
        if "rate" in row:
            parts = f"{row['distortion']['value']:.3f}, {row['rate']['value']:.3f}"
        lines.append(f"| {name} | {row['seconds']:.0f} | {value} | {parts} |")
    return ["\n".join(lines)]


ROWS: dict[str, Callable[[Dataset, argparse.Namespace], Row]] = {
    "latents": latents({}),
    "latents_kl_1": latents({"loss.kl": 1.0}),
    "pixels": pixels({}),
    "levels": pixels(LEVELS),
}

if __name__ == "__main__":
    raise SystemExit(main())
