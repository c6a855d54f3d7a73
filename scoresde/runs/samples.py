"""Samples to evaluate, read from files or drawn from a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde
from scoresde.config import Config, Section, build_sampler, plain
from scoresde.data import Dataset, examples
from scoresde.data.foreign import unfinished
from scoresde.progress import Progress, silent
from scoresde.registry import STEPS, Sampler
from scoresde.runs.draw import ALONE, MOST, Drawn, draw
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import configured_search, grid_folder, optimised_grid
from scoresde.runs.processes import World
from scoresde.runs.recipe import as_json
from scoresde.runs.space import state_shape


@dataclass(frozen=True)
class Samples:
    """Samples (N, ...) in the units of the data, and a record of their origin."""

    x: Tensor
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def read_samples(path: Path, dataset: Dataset) -> Samples:
    """Read samples by ``data.examples``; a note reports unfinished ones."""
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
    *,
    compile: bool = False,
    world: World = ALONE,
    progress: Progress = silent,
) -> Samples:
    """Draw samples by the configured sampler, from seeds ``seed``, ``seed + 1``, ...

    A conditional model takes the ``labels`` (M,) cyclically. With several processes, the first one
    returns all samples. Raises the errors of ``draw``.
    """
    sampler, note = configured_sampler(loaded, config.sample, world, progress)
    names = loaded.data.classes or ()
    given = None if labels is None else [names[int(labels[k % len(labels)])] for k in range(num)]
    drawn = draw(
        loaded.model,
        seeds=range(seed, seed + num),
        sampler=sampler,
        name=config.sample.sampler.kind,
        label=given,
        batch=batch,
        compile=compile,
        world=world,
        progress=progress,
    )
    settings = sampling_settings(loaded, config.sample) | {"nfe": drawn.nfe}
    return Samples(drawn.x, settings, (note,) if note else ())


def configured_sampler(
    loaded: LoadedRun, sample: Section, world: World = ALONE, progress: Progress = silent
) -> tuple[Sampler, str]:
    """Build the sampler of ``config.sample``, with a line about its grid if it is optimised.

    With several processes, the first one optimises the grid and the others read it from the file.
    """
    if (search := configured_search(sample, loaded.model.std)) is None:
        return build_sampler(sample, std=loaded.model.std), ""
    found: list[Any] = []

    def find() -> None:
        folder = grid_folder(loaded.source)
        found[:] = optimised_grid(
            loaded.model, state_shape(loaded.model), search, folder, progress
        )

    if world.rank == 0:
        find()
    if world.size > 1:
        torch.distributed.barrier()
    if world.rank > 0:
        find()
    grid, note = found
    return build_sampler(sample, grid), note


def sampling_settings(loaded: LoadedRun, sample: Section) -> dict[str, Any]:
    """Record of the checkpoint and the sampler settings."""
    chosen = plain(sample)
    if sample.sampler.kind not in STEPS:
        del chosen["grid"]  # black-box solvers have none
    return {"checkpoint": str(loaded.source.resolve()), "step": loaded.step, **chosen}


def drawn_settings(
    loaded: LoadedRun,
    sample: Section,
    said: Mapping[str, Any],
    drawn: Drawn,
    seconds: float,
    *,
    batch: int,
    compile: bool = False,
) -> dict[str, Any]:
    """What the pictures of a drawing carry: its settings, and how it went.

    ``said`` are the arguments negative, guidance and guidance_interval of ``draw``.
    """
    against = said["negative"]
    return {
        **sampling_settings(loaded, sample),
        "weights": "ema",
        "negative": against and {k: as_json(v) for k, v in against.items()},
        "guidance": said["guidance"],
        "guidance_interval": said["guidance_interval"],
        "model_hash": loaded.digest,
        "version": scoresde.__version__,
        "device": loaded.model.device.type,
        "batch": batch,
        "compile": compile,
        "nfe": drawn.nfe,
        "seconds": seconds,
        "images_per_second": len(drawn) / seconds,
    }
