"""Folders of results, written atomically, with a record that lists the other files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.atomic import atomic_write, writing

Make = Callable[[Path], object]
"""Function that writes a file to the given path."""


@dataclass(frozen=True)
class ResultFolder:
    """A folder with a record, such as ``sample.json``, which lists the other files written.

    Files whose names match ``names`` but are not in the record belong to somebody else; they are
    never replaced or removed.
    """

    folder: Path
    record: str
    names: re.Pattern[str]

    def require_free(self, overwrite: bool) -> None:
        """Raise ValueError unless results may be written to the folder."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is a file; give a folder")
        taken = {path.name for path in self.folder.glob("*") if self._ours(path.name)}
        if strange := sorted(taken - self._earlier()):
            raise ValueError(
                f"out: {self.folder} holds {strange[0]}, which no {self.record} there lists; "
                "give another folder"
            )
        if taken and not overwrite:
            raise ValueError(
                f"out: {self.folder} holds {min(taken)}; give another folder, or overwrite=True"
            )

    def write(
        self, files: Mapping[str, Make], record: Mapping[str, Any], keep: Collection[str] = ()
    ) -> None:
        """Replace the results in the folder by ``files`` and a record, except those in ``keep``.

        All new files are written under temporary names before any earlier file is replaced, and
        the record is replaced last. Raises OSError if a write fails, with the earlier results
        unchanged.
        """
        earlier = self._earlier()
        listed = [*files, *sorted(earlier & set(keep) - {*files, self.record})]
        text = json.dumps(dict(record) | {"files": listed}, indent=2) + "\n"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The temporary record comes first, so that every new file is always in some record.
            self._write_beside({self.record: lambda file: file.write_text(text), **files})
            for name in files:
                os.replace(self._beside(name), self.folder / name)
            for name in earlier - {*listed, self.record, f"{self.record}.tmp"}:
                (self.folder / name).unlink(missing_ok=True)
            os.replace(self._beside(self.record), self.folder / self.record)

    def _write_beside(self, files: Mapping[str, Make]) -> None:
        """Write all files under temporary names; delete them all if one fails."""
        try:
            for name, make in files.items():
                make(self._beside(name))
        except BaseException:
            for name in reversed(list(files)):
                self._beside(name).unlink(missing_ok=True)
            raise

    def _beside(self, name: str) -> Path:
        return self.folder / f"{name}.tmp"

    def _ours(self, name: str) -> bool:
        found = name.removesuffix(".tmp")
        return found == self.record or self.names.fullmatch(found) is not None

    def _earlier(self) -> set[str]:
        """Names that ``write`` has used in the folder, including interrupted calls."""
        names = self._listed(self.folder / self.record) | self._listed(self._beside(self.record))
        return names | {f"{name}.tmp" for name in names}

    def _listed(self, record: Path) -> set[str]:
        """Names in a record and its own name; empty if ``write`` did not make the record."""
        try:
            names = json.loads(record.read_text(encoding="utf-8"))["files"]
            ours = all(self._ours(name) for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return set()
        return {*names, self.record} if ours else set()


def require_writable(folder: Path) -> None:
    """Make the folder. Raises OSError if it cannot be written, before any computation."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def save_arrays(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> None:
    """Write a .npz without the suffix that numpy would add to the name."""
    with path.open("wb") as file:
        np.savez(file, *arrays, allow_pickle=False, **named)


def replace_all(folder: Path, files: Mapping[str, Make], earlier: Iterable[str]) -> None:
    """Replace the ``earlier`` files by ``files``; the last is a record that the set is complete.

    All new files are written under temporary names before any earlier file changes. Raises
    OSError.
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
