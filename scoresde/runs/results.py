"""The results of a command in a folder, which come together or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from scoresde.atomic import atomic_write, writing

Make = Callable[[Path], object]
"""Writes a file."""


def require_writable(folder: Path) -> None:
    """Make the folder. Raises OSError, before anything is computed, unless it can be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def replace_all(folder: Path, files: Mapping[str, Make], earlier: Iterable[str]) -> None:
    """Write ``files`` in place of the ``earlier`` ones; the last, a record, vouches for all.

    Everything is written beside the earlier files before any is touched. Raises OSError.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, make in files.items():
            atomic_write(folder / f"{name}.new", make)
        with writing(folder):
            for name in earlier:  # the record comes first
                (folder / name).unlink(missing_ok=True)
            for name in files:
                os.replace(folder / f"{name}.new", folder / name)
    finally:
        for name in files:
            (folder / f"{name}.new").unlink(missing_ok=True)
