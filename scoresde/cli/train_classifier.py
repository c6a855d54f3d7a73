"""``scoresde train-classifier``: trains a classifier of noisy states, to guide a trained model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from scoresde.cli.console import progress
from scoresde.cli.options import TrainClassifierOptions
from scoresde.cli.weights import load_chosen
from scoresde.runs.train_classifier import train_classifier


def run(options: TrainClassifierOptions, overrides: Mapping[str, Any]) -> int:
    """Train or resume, and print the accuracy on held-out examples by noise level."""
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    found = train_classifier(
        loaded.model,
        out=options.out,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        width=options.width,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        overwrite=options.overwrite,
        device=options.device,
        progress=progress,
    )
    print("sigma/alpha  accuracy")
    for ratio, accuracy in found.accuracy.items():
        print(f"{ratio:<11g}  {accuracy:.3f}")
    if found.stopped:
        raise SystemExit(130)
    return 0
