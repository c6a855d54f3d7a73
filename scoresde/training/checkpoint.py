"""Self-describing checkpoints, written atomically and loaded without running code.

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
from scoresde.training.safe_files import CheckpointError as CheckpointError  # for importers

KIND = "scoresde-checkpoint"
WEIGHTS = "scoresde-weights"
KINDS = {"model": KIND, "autoencoder": "scoresde-autoencoder"}
"""The kind of a checkpoint by what is trained."""
LATEST = "latest.json"
BEST = "best.pt"
CODEC = "codec."
"""How the names of the tensors of a codec begin in an export."""


@dataclass(frozen=True)
class DataDescription:
    """The properties of the data that a model needs; ``shape`` is that of one example.

    ``std`` is the standard deviation of the training data in model units, None where unknown, and
    ``told`` holds for each condition what the data decide of it (``Condition.measured``). Of a
    model of latents all but ``std`` describes the pictures.
    """

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    classes: tuple[str, ...] | None = None
    std: float | None = None
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        """The description as JSON text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> DataDescription:
        """The inverse of ``to_json``; raises ValueError, KeyError or TypeError for other text."""
        found = json.loads(text)
        classes = None if found["classes"] is None else tuple(map(str, found["classes"]))
        shape = tuple(int(n) for n in found["shape"])
        scaling = Scaling(**found["scaling"])
        std = None if found.get("std") is None else float(found["std"])
        told = {str(name): dict(each) for name, each in found.get("told", {}).items()}
        return DataDescription(str(found["name"]), shape, scaling, classes, std, told)


def describe(
    dataset: Dataset,
    told: Mapping[str, Mapping[str, Any]] | None = None,
    std: float | None = None,
) -> DataDescription:
    """The description of a data set for its checkpoints, and what it decides of conditions.

    ``std`` is that of the latents of a model of latents, by default that of the data.
    """
    shape, scaling = tuple(dataset.shape), dataset.scaling
    std = dataset.std if std is None else std
    return DataDescription(dataset.name, shape, scaling, dataset.classes, std, dict(told or {}))


@dataclass(frozen=True)
class Embedded:
    """The codec of a model of latents: its tensors, and its description as text by name."""

    tensors: dict[str, Tensor]
    about: dict[str, str]


@dataclass(frozen=True)
class Best:
    """The lowest held-out loss so far and its step."""

    step: int
    loss: float


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue. Tensors are not copied.

    Args:
        config: JSON-able configuration.
        data: description of the data.
        step: number of updates made.
        model: state dict of the ScoreModel.
        ema: state dict of its averaged copy.
        optimizer: state dict of the optimiser.
        best: lowest held-out loss.
        averages: state dicts of power-function averages, by width.
        scale: loss scale of fp16.
        decays: state dicts of further exponential averages, by decay.
        contents: digest of the training examples; empty in checkpoints of older versions.
        learned: state dicts, with that of an ``optimizer``, of what is learned beside the model:
            a learned weight, or the discriminator of an autoencoder once it has acted; else empty.
        history: state dict of the losses of loss-aware times; empty for other times.
        kind: what kind of training it is of.
        codec: codec of a model of latents.
        adversarial: whether a discriminator has acted on this autoencoder, in this run or before.
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
    history: dict[str, Tensor] = field(default_factory=dict)
    kind: str = KIND
    codec: Embedded | None = None
    adversarial: bool = False


@dataclass(frozen=True)
class Weights:
    """Exported EMA weights with their description, and the codec of a model of latents."""

    config: dict[str, Any]
    data: DataDescription
    step: int
    tensors: dict[str, Tensor]
    codec: Embedded | None = None


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises CheckpointError if a tensor has NaN or infinity, and OSError; an existing file is then
    unchanged.
    """
    path = Path(path)
    _refuse_nonfinite(path, *_groups(checkpoint))
    entries = {
        "kind": checkpoint.kind,
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
        "history": checkpoint.history,
        "adversarial": checkpoint.adversarial,
    }
    if (codec := checkpoint.codec) is not None:
        entries["codec"] = {"tensors": codec.tensors, "about": codec.about}
    atomic_write(path, lambda temporary: torch.save(entries, temporary))


def load(path: str | Path, *, sha256: str | None = None, kind: str = KIND) -> Checkpoint:
    """Read a checkpoint onto the host and verify its checksums, without running code from it.

    Raises CheckpointError if the file is missing, empty, damaged, of another kind or a newer
    format, has other contents than finite tensors, numbers and text, or differs from ``sha256``.
    """
    path = Path(path)
    require_file(path)
    entries = read_archive(path)
    if sha256 is not None and digest(path) != sha256:
        raise CheckpointError(f"{path}: damaged (its sha256 is not the recorded one); {REMEDY}")
    require_kind(path, entries.get("kind"), kind)
    require_version(path, entries.get("version"))
    try:
        checkpoint = _checkpoint(entries)
        groups = _groups(checkpoint)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {REMEDY}") from error
    _require_finite(path, *groups)
    return checkpoint


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a state dict into a module.

    Raises CheckpointError, naming ``source`` and the first missing, unexpected or misshaped
    tensors; the module is then unchanged.
    """
    own = module.state_dict()
    misshaped = [k for k in own if k in tensors and tensors[k].shape != own[k].shape]
    found = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "misshaped": [
            f"{k} {tuple(tensors[k].shape)} for {tuple(own[k].shape)}" for k in misshaped
        ],
    }
    problems = [
        f"{len(names)} {what}: {first_few(names)}" for what, names in found.items() if names
    ]
    if problems:
        raise CheckpointError(
            f"{source}: weights of another network ({'; '.join(problems)}); "
            "give the model it was trained with"
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
    """Save a checkpoint, record it in ``latest.json``, then delete all but ``keep`` checkpoints.

    Raises as ``save`` does, and ValueError unless keep >= 1.
    """
    if keep < 1:
        raise ValueError(f"need keep >= 1 checkpoints, got keep={keep}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / step_name(checkpoint.step)
    save(path, checkpoint)
    record = {"name": path.name, "sha256": digest(path), "step": checkpoint.step}
    atomic_write(folder / LATEST, lambda file: file.write_text(json.dumps(record) + "\n"))
    # Files of later steps remain if a run resumes from an earlier checkpoint after damage.
    others = [p for p in step_files(folder) if p != path]
    stale = [p for p in others if step_of(p) > checkpoint.step]
    for old in stale + [p for p in others if p not in stale][keep - 1 :]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path, kind: str = KIND) -> tuple[Path, Checkpoint, list[str]]:
    """The newest checkpoint that loads, and one error message for each newer one.

    Raises CheckpointError if there is none.
    """
    try:
        found = json.loads((folder / LATEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # then the checkpoints alone decide
        found = {}
    recorded = found if isinstance(found, dict) else {}
    refused: list[str] = []
    for path in step_files(folder):
        try:
            sha256 = recorded.get("sha256") if recorded.get("name") == path.name else None
            return path, load(path, sha256=sha256, kind=kind), refused
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

    Raises CheckpointError if a weight is NaN or infinite, and OSError.
    """
    metadata = {
        "config": json.dumps(checkpoint.config),
        "data": checkpoint.data.to_json(),
        "step": str(checkpoint.step),
    }
    tensors = dict(checkpoint.ema)
    if (codec := checkpoint.codec) is not None:
        metadata["codec"] = json.dumps(codec.about)
        tensors |= {f"{CODEC}{name}": value for name, value in codec.tensors.items()}
    write_tensors(path, WEIGHTS, metadata, tensors)


def write_tensors(
    path: str | Path, kind: str, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors as safetensors with metadata and a checksum of everything, atomically.

    Raises CheckpointError if a tensor has NaN or infinity, and OSError.
    """
    from safetensors.torch import save as serialized

    path = Path(path)
    _refuse_nonfinite(path, tensors)
    found = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = {"kind": kind, "version": str(FORMAT), **metadata}
    about["sha256"] = fingerprint(about, found)
    # save_file would write a file that only its owner may read.
    atomic_write(path, lambda temporary: temporary.write_bytes(serialized(found, about)))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors that ``write_tensors`` wrote. Raises CheckpointError as ``load``."""
    require_file(path)
    metadata, tensors = read_safetensors(path)
    require_kind(path, metadata.get("kind"), kind)
    version = metadata.get("version", "")
    require_version(path, int(version) if re.fullmatch("[0-9]{1,9}", version) else version)
    if not all(map(is_plain, tensors.values())):
        raise CheckpointError(f"{path}: damaged (not all are numbers); {REMEDY}")
    if metadata.pop("sha256", None) != fingerprint(metadata, tensors):
        raise CheckpointError(f"{path}: damaged (its checksum does not match); {REMEDY}")
    _require_finite(path, tensors)
    return metadata, tensors


def load_weights(path: str | Path) -> Weights:
    """Read exported weights onto the host. Raises CheckpointError as ``load`` does."""
    path = Path(path)
    metadata, tensors = read_tensors(path, WEIGHTS)
    try:
        config, data = json.loads(metadata["config"]), DataDescription.from_json(metadata["data"])
        step, codec = int(metadata["step"]), None
        if "codec" in metadata:
            theirs = [name for name in tensors if name.startswith(CODEC)]
            parts = {name.removeprefix(CODEC): tensors.pop(name) for name in theirs}
            codec = Embedded(parts, dict(json.loads(metadata["codec"])))
        weights = Weights(dict(config), data, step, tensors, codec)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {REMEDY}") from error
    return weights


def _checkpoint(entries: Mapping[str, Any]) -> Checkpoint:
    best, learned, codec = entries["best"], entries.get("learned", {}), entries.get("codec")
    scale = LossScale(**entries.get("scale", {}))
    if not all(isinstance(value, int | float) for value in asdict(scale).values()):
        raise TypeError("a factor on the loss that is not a number")
    if learned:
        optimizer = dict(learned["optimizer"])
        learned = {k: _state_dict(v) for k, v in learned.items() if k != "optimizer"}
        learned["optimizer"] = optimizer
    return Checkpoint(
        config=dict(json.loads(entries["config"])),
        data=DataDescription.from_json(entries["data"]),
        step=int(entries["step"]),
        model=_state_dict(entries["model"]),
        ema=_state_dict(entries["ema"]),
        optimizer=dict(entries["optimizer"]),
        best=None if best is None else Best(int(best["step"]), float(best["loss"])),
        averages={str(k): _state_dict(v) for k, v in entries.get("averages", {}).items()},
        scale=scale,
        contents=str(entries.get("contents", "")),
        decays={str(k): _state_dict(v) for k, v in entries.get("decays", {}).items()},
        learned=learned,
        history=_state_dict(entries.get("history", {})),
        kind=str(entries["kind"]),
        codec=codec and Embedded(_state_dict(codec["tensors"]), dict(codec["about"])),
        adversarial=entries.get("adversarial", bool(learned)) is True,
    )


def _state_dict(found: Mapping[str, Any]) -> dict[str, Tensor]:
    if not all(isinstance(name, str) and is_plain(value) for name, value in found.items()):
        raise TypeError("a weight that is not a tensor of numbers")
    return dict(found)


def _refuse_nonfinite(path: Path, *groups: Mapping[str, Tensor]) -> None:
    if bad := nonfinite(*groups):
        raise CheckpointError(
            f"{path}: not written, NaN or infinity in {first_few(bad)}; lower the learning rate"
        )


def _require_finite(path: Path, *groups: Mapping[str, Tensor]) -> None:
    if bad := nonfinite(*groups):
        raise CheckpointError(f"{path}: NaN or infinity in {first_few(bad)}; {REMEDY}")


def fingerprint(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the metadata and of the name, dtype, shape and bytes of every tensor."""
    total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _groups(checkpoint: Checkpoint) -> list[dict[str, Tensor]]:
    """All tensors of a checkpoint by name, in groups."""
    optimizer = _tensors(checkpoint.optimizer)
    averages = (*checkpoint.decays.values(), *checkpoint.averages.values())
    groups = [checkpoint.model, checkpoint.ema, *averages, optimizer, checkpoint.history]
    if checkpoint.codec is not None:
        groups.append(checkpoint.codec.tensors)
    for name, found in checkpoint.learned.items():
        groups.append(_tensors(found) if name == "optimizer" else found)
    return groups


def _tensors(optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in the state of an optimiser, named by parameter number and state."""
    found: dict[str, Tensor] = {}
    for number, state in optimizer.get("state", {}).items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                if not is_plain(value):
                    raise TypeError("a state of the optimiser that is not a tensor of numbers")
                found[f"optimizer {number} {name}"] = value
    return found
