"""Samples to evaluate: those of a folder or file, or drawn now from a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import wanted
from scoresde.cli.console import progress
from scoresde.cli.sample import MOST, draw, optimised_grid
from scoresde.config import Config, build_sampler, to_plain
from scoresde.data import Dataset
from scoresde.data import examples
from scoresde.data.foreign import unfinished


@dataclass(frozen=True)
class Samples:
    """Samples (N, ...) as the data set has its examples, and where they come from."""

    x: Tensor
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_samples(path: Path, dataset: Dataset) -> Samples:
    """The samples at a path, as ``data.examples`` reads them; unfinished ones are noted."""
    x = examples(path, tuple(dataset.shape), dataset.scaling).x
    left = unfinished(path, MOST)
    notes = (f"{path}: {left} unfinished samples left out",) if left else ()
    return Samples(x, {"source": str(path)}, notes)


def draw_samples(
    loaded: LoadedRun,
    config: Config,
    num: int,
    seed: int,
    batch: int,
    labels: Tensor | None,
) -> Samples:
    """Samples of a model by the sampler of its configuration, from seeds ``seed``, ``seed + 1``...

    ``labels`` (M,) are those that a model with classes is given, in turn. Raises as ``draw``
    does.
    """
    want = wanted(config.sample)
    grid = None if want is None else optimised_grid(loaded, want)
    sampler, seeds = build_sampler(config.sample, grid), range(seed, seed + num)
    given = None if labels is None else labels[torch.arange(num) % len(labels)]
    shape, kind = loaded.data.shape, config.sample.sampler.kind
    with progress(num, "samples") as advance:
        drawn = draw(
            loaded.model, sampler, shape, seeds, given, name=kind, batch=batch, advance=advance
        )
    settings = {
        "checkpoint": str(loaded.source),
        "step": loaded.step,
        "nfe": drawn.nfe,
        **to_plain(config)["sample"],
    }
    return Samples(loaded.data.scaling.decode(drawn.x), settings)
