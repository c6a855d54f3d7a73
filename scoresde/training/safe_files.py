"""Reading of checkpoint files with a check of their contents, without running code from them."""

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

from scoresde.data.file_kinds import kind_of

FORMAT = 1
REMEDY = "use an earlier checkpoint or an intact copy"

READERS = {
    "scoresde-checkpoint": "ss.load",
    "scoresde-weights": "ss.load",
    "scoresde-autoencoder": "ss.load_codec",
    "scoresde-codec": "ss.load_codec",
    "scoresde-classifier": "ss.load_classifier",
}
"""What reads the files of a kind."""

FOLDER = 0x10
"""The attribute bit of a folder in a zip file."""

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
REALS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
WHOLES = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
NUMBERS = REALS | WHOLES
"""The dtypes of tensors in checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written or used; the message names the file and a remedy."""


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a torch zip file, empty for other contents.

    Unlike torch.load it checks the CRCs and describes damage. Raises CheckpointError.
    """
    try:
        return read_zip(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors, numbers and text "
            f"(nothing was run); use only files written by scoresde"
        ) from error


def read_zip(path: Path) -> dict[str, Any]:
    """``read_archive`` that raises pickle.UnpicklingError for other objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save compresses nothing, and compressed entries could be of any size.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("packed entries")
            bad = archive.testzip()
            folders = [entry.filename for entry in entries if entry.external_attr & FOLDER]
    except Exception as error:  # zipfile raises many types
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            raise CheckpointError(
                f"{path}: truncated or damaged ({brief(error)}); {REMEDY}"
            ) from error
        raise CheckpointError(
            f"{path}: {kind_of(path)}, not a checkpoint; name a run folder, a checkpoint (.pt) or "
            "exported weights (.safetensors)"
        ) from error
    if bad is not None:
        raise CheckpointError(f"{path}: damaged (wrong CRC in {printable(bad)}); {REMEDY}")
    if folders:  # torch would leave the memory of the tensor uninitialised
        raise CheckpointError(
            f"{path}: damaged ({printable(folders[0])} is marked a folder); {REMEDY}"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
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
    """Raise CheckpointError unless ``path`` is a file that is not empty."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise CheckpointError(f"{path}: a folder, not a checkpoint; name a file in it")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: not a checkpoint (empty); {REMEDY}")


def require_kind(path: Path, found: object, expected: str) -> None:
    """Raise CheckpointError unless the file is of the expected kind."""
    if found != expected:
        reader = READERS.get(str(found))
        remedy = "use one written by scoresde" if reader is None else f"{reader} reads it"
        raise CheckpointError(f"{path}: not a {expected} file; {remedy}")


def require_version(path: Path, version: object) -> None:
    """Raise CheckpointError unless the format version is known."""
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path}: damaged (format version {version!r}); {REMEDY}")
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format version {version}, but {FORMAT} is the newest known; upgrade scoresde"
        )


def is_plain(value: object) -> bool:
    """True for a dense tensor of numbers on the host that does not exceed its storage.

    A view can expand a few bytes to terabytes, and other layouts and dtypes cannot be checked.
    """
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and value.dtype in NUMBERS
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def nonfinite(*groups: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinity."""
    return [k for group in groups for k, v in group.items() if not bool(torch.isfinite(v).all())]


def first_few(names: list[str], few: int = 3) -> str:
    """The first few names, for an error message."""
    return ", ".join(map(printable, names[:few])) + (", ..." if len(names) > few else "")


def printable(name: str) -> str:
    """An arbitrary name from a file as one printable line."""
    return (name if name.isprintable() else ascii(name))[:120]


def brief(error: BaseException) -> str:
    """The first line of an error, or its type if it has no message."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
