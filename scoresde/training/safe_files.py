"""Files that are whole or absent, whose damage is named, and that run no code when read."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
REMEDY = "use an earlier checkpoint or an intact copy"

OTHERS = {
    **dict.fromkeys((".yaml", ".yml"), "a configuration"),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".json", ".jsonl"), "text"),
    **dict.fromkeys((".npy", ".npz"), "arrays"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp"), "a picture"),
}
"""Files that are taken for checkpoints, by their suffix."""

FOLDER = 0x10
"""The mark of a folder among the attributes of an entry of a zip file."""

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


REALS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
WHOLES = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
NUMBERS = REALS | WHOLES
"""The types of tensors in checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; one line that names the file and the remedy."""


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a torch zip file whose every CRC is right; empty for other contents.

    torch.load alone neither checks the CRCs nor names the damage. Raises CheckpointError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_stored(archive)
            bad = archive.testzip()
            folders = [info.filename for info in archive.infolist() if info.external_attr & FOLDER]
    except Exception as error:  # zipfile raises whatever it stumbles over
        kind = "truncated or damaged" if _looks_like_zip(path) else "not a checkpoint"
        raise CheckpointError(f"{path}: {kind} ({brief(error)}); {REMEDY}") from error
    if bad is not None:
        raise CheckpointError(f"{path}: damaged (wrong CRC in {printable(bad)}); {REMEDY}")
    if folders:  # torch would leave the tensor as the memory it found
        raise CheckpointError(
            f"{path}: damaged ({printable(folders[0])} is marked a folder); {REMEDY}"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors, numbers and text "
            f"(nothing was run); use only files written by scoresde"
        ) from error
    except Exception as error:  # and so does torch
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({brief(error)}); {REMEDY}"
        ) from error
    return found if isinstance(found, dict) else {}


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises CheckpointError if it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except Exception as error:  # and so does its parser
        raise CheckpointError(
            f"{path}: damaged or not safetensors ({brief(error)}); {REMEDY}"
        ) from error


def require_file(path: Path) -> None:
    """Raise CheckpointError unless ``path`` is a file with something in it."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise CheckpointError(f"{path}: a folder, not a checkpoint; name a file in it")
    if kind := OTHERS.get(path.suffix.lower()):
        raise CheckpointError(
            f"{path}: {kind}, not a checkpoint; give a run folder, or a .pt or .safetensors of one"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: not a checkpoint (empty); {REMEDY}")


def require_kind(path: Path, found: object, expected: str) -> None:
    """Raise CheckpointError unless the file says it is what is expected."""
    if found != expected:
        raise CheckpointError(f"{path}: not a {expected} file; use one written by scoresde")


def require_version(path: Path, version: object) -> None:
    """Raise CheckpointError unless the format is one that is known here."""
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path}: damaged (format version {version!r}); {REMEDY}")
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format version {version}, but {FORMAT} is the newest known; upgrade scoresde"
        )


def is_plain(value: object) -> bool:
    """Whether this is a tensor of numbers on the host, each in memory of its own.

    A few bytes can be viewed as terabytes of them, and other layouts and types cannot be checked.
    """
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and value.dtype in NUMBERS
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def nonfinite(*groups: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [k for group in groups for k, v in group.items() if not bool(torch.isfinite(v).all())]


def first_few(names: list[str], few: int = 3) -> str:
    """The first names, for an error message."""
    return ", ".join(map(printable, names[:few])) + (", ..." if len(names) > few else "")


def printable(name: str) -> str:
    """A name from a file, which may hold anything, in one line."""
    return (name if name.isprintable() else ascii(name))[:120]


def brief(error: BaseException) -> str:
    """The first line of an error, or its type when it says nothing."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])


def _require_stored(archive: zipfile.ZipFile) -> None:
    """torch.save packs nothing, so that a file never grows when it is read."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError("packed entries")


def _looks_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
