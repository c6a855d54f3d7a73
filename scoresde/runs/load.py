"""Loads trained models from run folders, checkpoints and exported weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.config import Config, build_model, config_from, override
from scoresde.interop.folder import Folder, is_folder
from scoresde.interop.pipelines import read_folder
from scoresde.latent import Codec
from scoresde.latent.files import read_about
from scoresde.parameterization import ScoreModel
from scoresde.runs.folder import RunFolder
from scoresde.runs.load_codec import codec_of
from scoresde.runs.space import described_state
from scoresde.runs.train_setup import takes_labels
from scoresde.training import checkpoint as checkpoints
from scoresde.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    DataDescription,
    Embedded,
    fingerprint,
    load_tensors,
    load_weights,
    newest,
    step_files,
)
from scoresde.training.safe_files import DAMAGE, brief
from scoresde.training.snapshots import AVERAGES, snapshots, synthesised


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with the contents of its file.

    ``notes`` are lines for the user, for example about a damaged checkpoint that was skipped.
    """

    model: ScoreModel
    config: Config
    data: DataDescription
    step: int
    source: Path
    notes: tuple[str, ...] = ()

    @property
    def classed(self) -> bool:
        """Whether the model is told the classes of its data."""
        return self.config.conditional or "label" in self.model.conditions

    @cached_property
    def digest(self) -> str:
        """The fingerprint of the weights, which pictures carry as their model hash."""
        return fingerprint({}, {k: v.cpu() for k, v in self.model.state_dict().items()})


DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
"""The dtypes that the weights of a folder of diffusers can be read in."""


def load(
    path: str | PathLike[str],
    model: ScoreModel | None = None,
    codec: Codec | None = None,
    *,
    variant: str | None = None,
    dtype: str | torch.dtype | None = None,
    nearest: bool = False,
) -> ScoreModel:
    """Load a trained model with averaged weights, in evaluation mode and without gradients.

    The attribute ``data`` of the model describes its training data, and ``codec`` is that of a
    model of latents, None for pixels. Nothing is unpickled.

    Args:
        path: run folder, checkpoint, export, or folder of a pipeline of diffusers
            (model_index.json).
        model: model that the weights are copied into, and that is returned; by default one is
            built from the configuration in the file.
        codec: codec of the file where a program made it.
        variant: variant of the weights of a folder of diffusers, such as fp16, where it has them.
        dtype: numbers that these weights are held in; float32 by default.
        nearest: tell the network of such a folder whole indices of its table only, for one that
            knows no others.

    Raises ValueError, naming the file, if it is missing, damaged, of another kind, or does not fit
    ``model``.
    """
    if model is not None and not isinstance(model, ScoreModel):
        raise ValueError(f"model: need a ScoreModel, got {type(model).__name__}")
    return load_run(
        path, model=model, codec=codec, variant=variant, dtype=dtype, nearest=nearest
    ).model


def load_width(run_folder: str | PathLike[str], sigma_rel: float) -> LoadedRun:
    """Load the model of a run folder with an average of any width, synthesised from snapshots.

    The average is taken at the step of the last snapshot; ``notes`` give the error of its profile.
    Raises ValueError for a width out of range, CheckpointError for missing or damaged snapshots.
    """
    run = Path(run_folder).expanduser()
    if is_foreign(run):
        raise CheckpointError(f"{run}: {_ONE}")
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: a file; widths are made of the snapshots of a run folder")
    folder = run / AVERAGES
    if not (found := snapshots(folder)):
        raise CheckpointError(f"{folder}: no averages stored; train with train.posthoc set")
    last = load_weights(found[-1].path)
    source, stored = found[-1].path, last.codec
    codec = codec_in(stored, source)
    model = build_model(config_from(last.config, source), described_state(last.data, codec))
    made = synthesised(found, sigma_rel, [name for name, _ in model.named_parameters()])
    widths = ", ".join(f"{w:g}" for w in sorted({snapshot.sigma_rel for snapshot in found}))
    note = (
        f"{folder}: width {sigma_rel:g} at step {last.step} from {made.files} of {len(found)} "
        f"snapshots of widths {widths}, {made.error:.1%} off in its profile"
    )
    tensors = made.weights.tensors
    return _loaded(source, last.config, last.data, last.step, tensors, stored, [note], codec=codec)


def load_run(
    run_or_file: str | PathLike[str],
    *,
    ema: bool = True,
    decay: float | None = None,
    model: ScoreModel | None = None,
    codec: Codec | None = None,
    variant: str | None = None,
    dtype: str | torch.dtype | None = None,
    nearest: bool = False,
) -> LoadedRun:
    """Load a run folder, a checkpoint (.pt), exported weights (.safetensors) or other folder.

    A run folder provides its best checkpoint on held-out data, or without one its newest intact
    checkpoint. ``decay`` selects an exponential average, by default the first one; ``ema=False``
    selects the raw weights. The model is in evaluation mode, and its weights have no gradients.
    Raises CheckpointError for missing or damaged files, for a decay that is not stored, and for
    ``decay`` or ``ema=False`` with an export or a folder of diffusers, which hold one average.
    ``variant``, ``dtype`` and ``nearest`` are those of ``load``.
    """
    path = Path(run_or_file).expanduser()
    if is_foreign(path):
        if not ema or decay is not None:
            raise CheckpointError(f"{path}: {_ONE}")
        if model is not None or codec is not None:
            raise CheckpointError(f"{path}: a folder of diffusers has its own model; leave it out")
        return _of_folder(path, variant, dtype, nearest)
    for name, value in {"variant": variant, "dtype": dtype, "nearest": nearest or None}.items():
        if value is not None:
            raise CheckpointError(f"{name}: is for a folder of diffusers, and {path} is none")
    if path.suffix == ".safetensors" and not path.is_dir():
        if not ema:
            raise CheckpointError(f"{path}: holds EMA weights only; name a checkpoint instead")
        if decay is not None:
            raise CheckpointError(f"{path}: holds one average only; name a checkpoint instead")
        found = load_weights(path)
        return _loaded(
            path,
            found.config,
            found.data,
            found.step,
            found.tensors,
            found.codec,
            [],
            model,
            codec,
        )
    path, checkpoint, notes = load_checkpoint(path)
    weights: Mapping[str, Tensor] = checkpoint.ema if ema else checkpoint.model
    if ema and decay is not None:
        weights = _average(checkpoint, decay, path)
    config, data, step = checkpoint.config, checkpoint.data, checkpoint.step
    return _loaded(path, config, data, step, weights, checkpoint.codec, notes, model, codec)


_ONE = "a folder of diffusers holds one set of weights; leave the choice of an average out"


def is_foreign(path: Path) -> bool:
    """Whether a path is a folder of diffusers."""
    return path.is_dir() and not RunFolder(path).is_run() and is_folder(path)


def _of_folder(
    path: Path, variant: str | None, dtype: str | torch.dtype | None, nearest: bool
) -> LoadedRun:
    """The model of a folder of diffusers, of which no configuration but ``sample`` is known."""
    chosen = torch.float32 if dtype is None else DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise ValueError(f"dtype: need one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = Folder(path, variant)
    model = read_folder(folder, chosen, nearest)
    changes: dict[str, Any] = {"data.kind": "arrays", "own": list(coefficients(model))}
    if takes_labels(model.net):
        changes |= {"conditional": True}
        if model.classes is None:  # it knows nothing for no class
            changes |= {"train.label_dropout": 0}
    config = override(Config(), changes)
    return LoadedRun(model, config, model.data, 0, path, tuple(folder.notes))


def stored_decays(checkpoint: Checkpoint, source: Path) -> tuple[float, ...]:
    """Decays of the exponential averages in a checkpoint; the first is the default."""
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
    """Find the checkpoint for ``load_run``: its file, contents, and notes on skipped files."""
    if not path.is_dir():
        return path, checkpoints.load(path), []
    RunFolder(path).require("model")
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
    stored: Embedded | None,
    notes: Iterable[str] = (),
    model: ScoreModel | None = None,
    codec: Codec | None = None,
) -> LoadedRun:
    config = config_from(plain, path)
    codec = codec or getattr(model, "codec", None)
    if stored is None and codec is not None:
        raise CheckpointError(f"{path}: a model of pixels, which has no codec; leave it out")
    codec = codec_in(stored, path, codec)
    if model is None:
        if config.own:
            raise CheckpointError(
                f"{path}: holds the weights of a model that a program made, which no "
                "configuration describes; give the model, such as ss.load(path, model=mine)"
            )
        model = build_model(config, described_state(description, codec))
    elif config.own and not _close(coefficients(model), config.own):
        raise CheckpointError(
            f"{path}: trained with another process or parameterisation than the given model "
            "has; give the model it was trained with"
        )
    if model.self_conditioning != config.self_conditioning:
        raise CheckpointError(
            f"{path}: trained with self_conditioning={str(config.self_conditioning).lower()}; "
            "give the model it was trained with"
        )
    load_tensors(model, weights, path)
    model.eval().requires_grad_(False)
    model.data, model.config = description, None if config.own else config
    model.codec = codec
    return LoadedRun(model, config, description, step, path, tuple(notes))


def codec_in(stored: Embedded | None, source: Path, codec: Codec | None = None) -> Codec | None:
    """The codec in a checkpoint or an export; None without. Raises CheckpointError."""
    if stored is None:
        return None
    try:
        found = read_about(stored.about, stored.tensors)
    except DAMAGE as error:
        raise CheckpointError(f"{source}: damaged ({brief(error)})") from error
    return codec_of(found, source, codec)


def coefficients(model: ScoreModel) -> tuple[float, ...]:
    """Coefficients of the process and the parameterisation of a model at three times."""
    sde = model.sde
    middle = (sde.t_min * sde.t_max) ** 0.5
    t = torch.tensor([sde.t_min, middle, sde.t_max], dtype=torch.float64)
    parts = (sde.log_alpha(t), sde.log_sigma(t), *model.parameterization(sde, t))
    return tuple(torch.stack([part.expand(3) for part in parts]).flatten().tolist())


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in zip(a, b, strict=True))
