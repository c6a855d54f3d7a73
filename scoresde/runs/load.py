"""Trained models, from run folders, checkpoints and exported weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.config import Config, build_model, config_from
from scoresde.parameterization import ScoreModel
from scoresde.training import checkpoint as checkpoints
from scoresde.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    DataDescription,
    load_tensors,
    load_weights,
    newest,
    step_files,
)
from scoresde.training.snapshots import AVERAGES, snapshots, synthesised


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


def load(path: str | PathLike[str], model: ScoreModel | None = None) -> ScoreModel:
    """The trained model of a run folder, a checkpoint or an export, with its averaged weights.

    ``model`` is filled and returned; without one it is built from the configuration in the file.
    Its ``data`` describes what it was trained on. Evaluation mode, no gradients to the weights.
    Raises ValueError naming the file when it is missing, damaged or not a scoresde file, or does
    not fit ``model``. Nothing is unpickled.
    """
    if model is not None and not isinstance(model, ScoreModel):
        raise ValueError(f"model: need a ScoreModel, got {type(model).__name__}")
    return load_run(path, model=model).model


def load_width(run_folder: str | PathLike[str], sigma_rel: float) -> LoadedRun:
    """The model of a run folder with the average of a width, made of the snapshots stored there.

    It is that of the last snapshot's step; ``notes`` say how near its profile is. Raises
    ValueError for a width out of range, CheckpointError for no snapshots or damaged ones.
    """
    run = Path(run_folder).expanduser()
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: a file; widths are made of the snapshots of a run folder")
    folder = run / AVERAGES
    if not (found := snapshots(folder)):
        raise CheckpointError(f"{folder}: no averages stored; train with train.posthoc set")
    last = load_weights(found[-1].path)
    model = build_model(config_from(last.config, found[-1].path), last.data)
    made = synthesised(found, sigma_rel, [name for name, _ in model.named_parameters()])
    widths = ", ".join(f"{w:g}" for w in sorted({snapshot.sigma_rel for snapshot in found}))
    note = (
        f"{folder}: width {sigma_rel:g} at step {last.step} from {made.files} of {len(found)} "
        f"snapshots of widths {widths}, {made.error:.1%} off in its profile"
    )
    tensors = made.weights.tensors
    return _loaded(found[-1].path, last.config, last.data, last.step, tensors, [note])


def load_run(
    run_or_file: str | PathLike[str],
    *,
    ema: bool = True,
    decay: float | None = None,
    model: ScoreModel | None = None,
) -> LoadedRun:
    """The model of a run folder, a checkpoint (.pt) or exported weights (.safetensors).

    Of a run folder it is the best checkpoint on held-out data where one was kept, else the newest
    that is intact. ``decay`` chooses among the exponential averages, the first by default, and
    ``ema=False`` the raw weights. Evaluation mode, no gradients to the weights. Raises
    CheckpointError for missing or damaged files, a decay that is not stored, and either choice of
    an export, which holds one average.
    """
    path = Path(run_or_file).expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        if not ema:
            raise CheckpointError(f"{path}: holds EMA weights only; name a checkpoint instead")
        if decay is not None:
            raise CheckpointError(f"{path}: holds one average only; name a checkpoint instead")
        found = load_weights(path)
        return _loaded(path, found.config, found.data, found.step, found.tensors, model=model)
    path, checkpoint, notes = load_checkpoint(path)
    weights: Mapping[str, Tensor] = checkpoint.ema if ema else checkpoint.model
    if ema and decay is not None:
        weights = _average(checkpoint, decay, path)
    config, data, step = checkpoint.config, checkpoint.data, checkpoint.step
    return _loaded(path, config, data, step, weights, notes, model)


def stored_decays(checkpoint: Checkpoint, source: Path) -> tuple[float, ...]:
    """The decays of the exponential averages in a checkpoint, the one that is used first."""
    first, *_ = config_from(checkpoint.config, source).train.ema
    return first, *map(float, checkpoint.decays)


def _average(checkpoint: Checkpoint, decay: float, path: Path) -> Mapping[str, Tensor]:
    stored = stored_decays(checkpoint, path)
    if decay == stored[0]:
        return checkpoint.ema
    if decay not in stored:
        listed = ", ".join(f"{d:g}" for d in stored)
        raise CheckpointError(f"{path}: no average of decay {decay:g}; stored are {listed}")
    return checkpoint.decays[str(decay)]


def load_checkpoint(path: Path) -> tuple[Path, Checkpoint, list[str]]:
    """The checkpoint that ``load_run`` reads, its file, and why others were passed over."""
    if not path.is_dir():
        return path, checkpoints.load(path), []
    folder = path if step_files(path) or (path / BEST).exists() else path / "checkpoints"
    if not (folder / BEST).exists():
        return newest(folder)
    try:
        return folder / BEST, checkpoints.load(folder / BEST), []
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
    model: ScoreModel | None = None,
) -> LoadedRun:
    config = config_from(plain, path)
    if model is None:
        if config.own:
            raise CheckpointError(
                f"{path}: holds the weights of a model that a program made, which no "
                "configuration describes; give the model, such as ss.load(path, model=mine)"
            )
        model = build_model(config, description)
    elif config.own and not _close(coefficients(model), config.own):
        raise CheckpointError(
            f"{path}: trained with another process or parameterisation than that of the model "
            "given; give it the same ones"
        )
    load_tensors(model, weights, path)
    model.eval().requires_grad_(False)
    model.data, model.config = description, None if config.own else config
    return LoadedRun(model, config, description, step, path, tuple(notes))


def coefficients(model: ScoreModel) -> tuple[float, ...]:
    """The process and the parameterisation of a model as numbers, at three times."""
    sde = model.sde
    middle = (sde.t_min * sde.t_max) ** 0.5
    t = torch.tensor([sde.t_min, middle, sde.t_max], dtype=torch.float64)
    parts = (sde.log_alpha(t), sde.log_sigma(t), *model.parameterization(sde, t))
    return tuple(torch.stack([part.expand(3) for part in parts]).flatten().tolist())


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in zip(a, b, strict=True))
