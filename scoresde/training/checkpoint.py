"""Checkpoints that describe themselves, are whole or absent, and run no code when loaded.

A checkpoint is a torch zip file of tensors, numbers and text; its configuration and the
description of its data are JSON. Exported weights are safetensors with the same description.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.atomic import atomic_write, digest
from scoresde.data import Dataset, Scaling
from scoresde.training.fsdp import scattered
from scoresde.training.precision import LossScale
from scoresde.training.safe_files import (
    DAMAGE,
    FORMAT,
    REMEDY,
    CheckpointError,
    brief,
    first_few,
    is_plain,
    nonfinite,
    read_archive,
    read_safetensors,
    require_file,
    require_kind,
    require_version,
)

__all__ = [
    "BEST",
    "Best",
    "Checkpoint",
    "CheckpointError",
    "DataDescription",
    "Weights",
    "describe",
    "export_weights",
    "load",
    "load_tensors",
    "load_weights",
    "newest",
    "save",
    "save_step",
    "step_files",
    "step_name",
]

KIND = "scoresde-checkpoint"
WEIGHTS = "scoresde-weights"
LATEST = "latest.json"
BEST = "best.pt"


@dataclass(frozen=True)
class DataDescription:
    """What a model must know of its data: shape of one example, scaling and class names."""

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    classes: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """The description as JSON text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> DataDescription:
        """The inverse of ``to_json``; raises ValueError, KeyError or TypeError for other text."""
        found = json.loads(text)
        classes = None if found["classes"] is None else tuple(map(str, found["classes"]))
        shape = tuple(int(n) for n in found["shape"])
        return DataDescription(str(found["name"]), shape, Scaling(**found["scaling"]), classes)


def describe(dataset: Dataset) -> DataDescription:
    """The description of a data set that its checkpoints carry."""
    return DataDescription(dataset.name, tuple(dataset.shape), dataset.scaling, dataset.classes)


@dataclass(frozen=True)
class Best:
    """The least held-out loss so far and the step it was reached at."""

    step: int
    loss: float


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to continue, and a model to be used: tensors are not copied.

    ``config`` is a JSON-able dict, ``step`` the number of updates made; ``model`` and ``ema`` are
    state dicts of a ScoreModel, ``optimizer`` that of its optimiser; ``averages`` are state dicts
    too, by the width of their profile, and ``decays`` those beside ``ema`` by their decay;
    ``scale`` is the factor on the loss of fp16; ``contents`` tells its examples from others, and
    is empty in checkpoints of older versions; ``learned`` is the state dict of a learned weight,
    empty without one.
    """

    config: dict[str, Any]
    data: DataDescription
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: Best | None = None
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    scale: LossScale = field(default_factory=LossScale)
    decays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    contents: str = ""
    learned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Exported EMA weights with the description they carry."""

    config: dict[str, Any]
    data: DataDescription
    step: int
    tensors: dict[str, Tensor]


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all: a temporary file beside it, synced, then renamed.

    Raises CheckpointError if a tensor holds NaN or infinity, and OSError as the disk does; the
    file that was there is then untouched.
    """
    path = Path(path)
    _refuse_nonfinite(path, *_groups(checkpoint))
    entries = {
        "kind": KIND,
        "version": FORMAT,
        "config": json.dumps(checkpoint.config),
        "data": checkpoint.data.to_json(),
        "step": checkpoint.step,
        "model": dict(checkpoint.model),
        "ema": dict(checkpoint.ema),
        "optimizer": checkpoint.optimizer,
        "best": None if checkpoint.best is None else asdict(checkpoint.best),
        "averages": {name: dict(average) for name, average in checkpoint.averages.items()},
        "scale": asdict(checkpoint.scale),
        "contents": checkpoint.contents,
        "decays": {name: dict(average) for name, average in checkpoint.decays.items()},
        "learned": checkpoint.learned,
    }
    atomic_write(path, lambda temporary: torch.save(entries, temporary))


def load(path: str | Path, *, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint onto the host; every byte is checked, nothing in it is run.

    Raises CheckpointError when the file is missing, empty, damaged, of another kind, of a newer
    format, holds anything but tensors, numbers and text, or NaN; or differs from ``sha256``.
    """
    path = Path(path)
    require_file(path)
    entries = read_archive(path)
    if sha256 is not None and digest(path) != sha256:
        raise CheckpointError(f"{path}: damaged (its sha256 is not the recorded one); {REMEDY}")
    require_kind(path, entries.get("kind"), KIND)
    require_version(path, entries.get("version"))
    try:
        checkpoint = _checkpoint(entries)
        groups = _groups(checkpoint)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {REMEDY}") from error
    _require_finite(path, *groups)
    return checkpoint


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a state dict into a module, all of it or nothing.

    Raises CheckpointError naming ``source`` and the first missing, extra or misshaped tensors.
    """
    own = module.state_dict()
    if problems := _mismatches(own, tensors):
        raise CheckpointError(
            f"{source}: weights of another network ({'; '.join(problems)}); use its own config"
        )
    module.load_state_dict(scattered(tensors, own))


def step_name(step: int) -> str:
    """File name of the checkpoint of a step."""
    return f"step-{step:08d}.pt"


def step_of(file: Path) -> int:
    """The step of a file of ``step_name``."""
    return int(file.stem[5:])


def step_files(folder: Path) -> list[Path]:
    """The step checkpoints in a folder, newest first."""
    return sorted(
        (p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8,}\.pt", p.name)),
        key=step_of,
        reverse=True,
    )


def save_step(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Save the checkpoint of its step, point ``latest.json`` to it, then prune to ``keep`` files.

    Older files go only once the new one is in place. Raises as ``save`` does, and ValueError
    unless keep >= 1.
    """
    if keep < 1:
        raise ValueError(f"need keep >= 1 checkpoints, got keep={keep}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / step_name(checkpoint.step)
    save(path, checkpoint)
    record = {"name": path.name, "sha256": digest(path), "step": checkpoint.step}
    atomic_write(folder / LATEST, lambda file: file.write_text(json.dumps(record) + "\n"))
    # A file of a later step is what a damaged checkpoint left behind when the run went back.
    others = [p for p in step_files(folder) if p != path]
    stale = [p for p in others if step_of(p) > checkpoint.step]
    for old in stale + [p for p in others if p not in stale][keep - 1 :]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path) -> tuple[Path, Checkpoint, list[str]]:
    """The newest checkpoint that loads, and why each newer one was passed over, a line each.

    Raises CheckpointError when there is none.
    """
    recorded = _latest(folder)
    refused: list[str] = []
    for path in step_files(folder):
        try:
            sha256 = recorded.get("sha256") if recorded.get("name") == path.name else None
            return path, load(path, sha256=sha256), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            f"{folder}: none of {len(refused)} checkpoints is usable; first: {refused[0]}"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a run folder or a checkpoint")
    raise CheckpointError(f"{folder}: no checkpoint yet; train it first")


def export_weights(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the EMA weights as safetensors, with configuration, data and a checksum as metadata.

    Raises CheckpointError if a weight is NaN or infinite, OSError as the disk does.
    """
    from safetensors.torch import save as serialized

    path = Path(path)
    _refuse_nonfinite(path, checkpoint.ema)
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.ema.items()}
    metadata = {
        "kind": WEIGHTS,
        "version": str(FORMAT),
        "config": json.dumps(checkpoint.config),
        "data": checkpoint.data.to_json(),
        "step": str(checkpoint.step),
    }
    metadata["sha256"] = fingerprint(metadata, tensors)
    # Written here and not by save_file, whose files only their owner may read.
    atomic_write(path, lambda temporary: temporary.write_bytes(serialized(tensors, metadata)))


def load_weights(path: str | Path) -> Weights:
    """Read exported weights onto the host.

    Raises CheckpointError when the file is missing, empty, damaged, not ours, newer, or NaN.
    """
    path = Path(path)
    require_file(path)
    metadata, tensors = read_safetensors(path)
    require_kind(path, metadata.get("kind"), WEIGHTS)
    version = metadata.get("version", "")
    require_version(path, int(version) if re.fullmatch("[0-9]{1,9}", version) else version)
    if not all(map(is_plain, tensors.values())):
        raise CheckpointError(f"{path}: damaged (not all are numbers); {REMEDY}")
    if metadata.pop("sha256", None) != fingerprint(metadata, tensors):
        raise CheckpointError(f"{path}: damaged (its checksum does not match); {REMEDY}")
    try:
        weights = _weights(metadata, tensors)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {REMEDY}") from error
    _require_finite(path, tensors)
    return weights


def _checkpoint(entries: Mapping[str, Any]) -> Checkpoint:
    best = entries["best"]
    return Checkpoint(
        config=dict(json.loads(entries["config"])),
        data=DataDescription.from_json(entries["data"]),
        step=int(entries["step"]),
        model=_state_dict(entries["model"]),
        ema=_state_dict(entries["ema"]),
        optimizer=dict(entries["optimizer"]),
        best=None if best is None else Best(int(best["step"]), float(best["loss"])),
        averages={str(k): _state_dict(v) for k, v in entries.get("averages", {}).items()},
        scale=_scale(entries.get("scale", {})),
        contents=str(entries.get("contents", "")),
        decays={str(k): _state_dict(v) for k, v in entries.get("decays", {}).items()},
        learned=_learned(entries.get("learned", {})),
    )


def _scale(found: Mapping[str, Any]) -> LossScale:
    scale = LossScale(**found)
    if not all(isinstance(value, int | float) for value in asdict(scale).values()):
        raise TypeError("a factor on the loss that is not a number")
    return scale


def _learned(found: Mapping[str, Any]) -> dict[str, Any]:
    if not found:
        return {}
    return {"u": _state_dict(found["u"]), "optimizer": dict(found["optimizer"])}


def _state_dict(found: Mapping[str, Any]) -> dict[str, Tensor]:
    if not all(isinstance(name, str) and is_plain(value) for name, value in found.items()):
        raise TypeError("a weight that is not a tensor of numbers")
    return dict(found)


def _weights(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> Weights:
    data = DataDescription.from_json(metadata["data"])
    return Weights(dict(json.loads(metadata["config"])), data, int(metadata["step"]), tensors)


def _refuse_nonfinite(path: Path, *groups: Mapping[str, Tensor]) -> None:
    if bad := nonfinite(*groups):
        raise CheckpointError(
            f"{path}: not written, NaN or infinity in {first_few(bad)}; lower the learning rate"
        )


def _require_finite(path: Path, *groups: Mapping[str, Tensor]) -> None:
    if bad := nonfinite(*groups):
        raise CheckpointError(f"{path}: NaN or infinity in {first_few(bad)}; {REMEDY}")


def fingerprint(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the description and every tensor's name, type, shape and bytes."""
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _latest(folder: Path) -> dict[str, Any]:
    """The record in ``latest.json``; empty when it is missing or unreadable, as files rule."""
    try:
        found = json.loads((folder / LATEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps the given tensors from replacing a module's own, a phrase each."""
    differing = [k for k in own if k in given and given[k].shape != own[k].shape]
    found = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "misshaped": [f"{k} {tuple(given[k].shape)} for {tuple(own[k].shape)}" for k in differing],
    }
    return [f"{len(names)} {what}: {first_few(names)}" for what, names in found.items() if names]


def _groups(checkpoint: Checkpoint) -> list[dict[str, Tensor]]:
    """Every tensor of a checkpoint, by name."""
    optimizer = _tensors(checkpoint.optimizer)
    averages = (*checkpoint.decays.values(), *checkpoint.averages.values())
    groups = [checkpoint.model, checkpoint.ema, *averages, optimizer]
    if checkpoint.learned:
        groups += [checkpoint.learned["u"], _tensors(checkpoint.learned["optimizer"])]
    return groups


def _tensors(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in the state of an optimiser, by parameter number and name."""
    found: dict[str, Tensor] = {}
    for number, state in optimizer.get("state", {}).items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                if not is_plain(value):
                    raise TypeError("a state of the optimiser that is not a tensor of numbers")
                found[f"optimizer {number} {name}"] = value
    return found
