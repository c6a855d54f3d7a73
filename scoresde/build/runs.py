"""Trained models, from run folders, checkpoints and exported weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.build.models import build_model
from scoresde.config import Config, config_from
from scoresde.parameterization import ScoreModel
from scoresde.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    DataDescription,
    load,
    load_tensors,
    load_weights,
    newest,
    step_files,
)


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with everything its file says about it.

    ``notes`` are lines for the user, such as a damaged newer checkpoint that was passed over.
    """

    model: ScoreModel
    config: Config
    data: DataDescription
    step: int
    source: Path
    notes: tuple[str, ...] = ()


def load_model(run_or_file: str | PathLike[str]) -> ScoreModel:
    """The model of ``load_run`` with its EMA weights."""
    return load_run(run_or_file).model


def load_run(run_or_file: str | PathLike[str], *, ema: bool = True) -> LoadedRun:
    """The model of a run folder, a checkpoint (.pt) or exported weights (.safetensors).

    Of a run folder it is the best checkpoint on held-out data where one was kept, else the newest
    that is intact. Evaluation mode, no gradients to the weights. Raises CheckpointError for
    missing or damaged files, or raw weights (``ema=False``) of an export.
    """
    path = Path(run_or_file).expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        if not ema:
            raise CheckpointError(f"{path}: holds EMA weights only; name a checkpoint instead")
        found = load_weights(path)
        return _loaded(path, found.config, found.data, found.step, found.tensors)
    path, checkpoint, notes = _checkpoint(path)
    weights = checkpoint.ema if ema else checkpoint.model
    return _loaded(path, checkpoint.config, checkpoint.data, checkpoint.step, weights, notes)


def _checkpoint(path: Path) -> tuple[Path, Checkpoint, list[str]]:
    if not path.is_dir():
        return path, load(path), []
    folder = path if step_files(path) or (path / BEST).exists() else path / "checkpoints"
    if not (folder / BEST).exists():
        return newest(folder)
    try:
        return folder / BEST, load(folder / BEST), []
    except CheckpointError as error:
        source, checkpoint, notes = newest(folder)
        return source, checkpoint, [str(error), *notes]


def _loaded(
    path: Path,
    plain: Mapping[str, Any],
    description: DataDescription,
    step: int,
    weights: Mapping[str, Tensor],
    notes: Iterable[str] = (),
) -> LoadedRun:
    config = config_from(plain, path)
    model = build_model(config, description)
    load_tensors(model, weights, path)
    model.eval().requires_grad_(False)
    return LoadedRun(model, config, description, step, path, tuple(notes))
