"""Examples decoded once into arrays on disk, which are then mapped into memory.

A cache is a folder with ``manifest.json`` and the folder of arrays that it names. The manifest is
written last and atomically, so an incomplete cache is never used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write, sync, writing
from scoresde.data.columns import flat, from_flat, joined
from scoresde.data.dataset import DataError, Split
from scoresde.data.digest import digest

FORMAT = 4
MANIFEST, LOCK, FOLDER = "manifest.json", ".lock", "arrays-"
PARTS = ("train", "test")

Decode = Callable[[list[str]], Iterator[tuple[bool, Split]]]
"""Yields pieces of a data set, each with True if it is for testing, and appends the names of
skipped files to the list."""


@dataclass(frozen=True)
class Source:
    """The source of a cache: the options of decoding, and (name, size, mark) of every file.

    The mark is a CRC or a modification time; a file with the same three values is unchanged.
    """

    options: Mapping[str, Any]
    files: Sequence[tuple[str, int, int]]

    def summary(self) -> dict[str, Any]:
        """The options, the number of files and their digest, for the manifest."""
        listing = json.dumps(list(self.files)).encode()
        options = json.loads(json.dumps(dict(self.options)))
        digest = hashlib.sha256(listing).hexdigest()
        return {"options": options, "files": len(self.files), "digest": digest}


@dataclass(frozen=True)
class Parts:
    """The two splits of a data set, the names of skipped files, and notes for the user."""

    train: Split
    test: Split
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Stale(Exception):
    """A cache cannot be used; the message is the reason."""


def gathered(decode: Decode) -> Parts:
    """Decode a data set into memory. Raises DataError if one of its splits has no examples."""
    skipped: list[str] = []
    pieces: dict[bool, list[Split]] = {False: [], True: []}
    for test, piece in decode(skipped):
        pieces[test].append(piece)
    _require_both({test for test, found in pieces.items() if found}, skipped)
    return Parts(_joined(pieces[False]), _joined(pieces[True]), tuple(skipped))


def stored(folder: Path, source: Source, decode: Decode) -> Parts:
    """Map a data set from its cache; decode it first if the cache is missing or stale.

    A note tells the user if the cache is stale: damaged, or of other files or options. One process
    decodes while others wait. Raises DataError for a folder with other files in it, OSError if it
    cannot be written.
    """
    key = source.summary()
    try:
        return _opened(folder, key)
    except Stale:
        with _alone(folder):
            return _opened_or_made(folder, key, decode)


def _opened_or_made(folder: Path, key: Mapping[str, Any], decode: Decode) -> Parts:
    try:
        return _opened(folder, key)
    except Stale as stale:
        _make(folder, key, decode)
        reason = f"{stale}, decoded again" if str(stale) else ""
    try:
        found = _opened(folder, key)
    except Stale as stale:
        raise DataError(f"{folder}: {stale}, though just written; check the disk") from stale
    notes = (f"cache {folder}: {reason}", *found.notes) if reason else found.notes
    return replace(found, notes=notes)


def _joined(pieces: Sequence[Split]) -> Split:
    if len(pieces) == 1:
        return pieces[0]
    labels = [piece.label for piece in pieces if piece.label is not None]
    return Split(
        torch.cat([piece.x for piece in pieces]),
        torch.cat(labels) if labels else None,
        columns=joined([piece.columns for piece in pieces]),
    )


def _require_both(found: set[bool], skipped: Sequence[str]) -> None:
    for test, name in ((False, "training"), (True, "test")):
        if test not in found:
            reason = f"; {len(skipped)} damaged ones were left out" if skipped else ""
            raise DataError(f"no {name} examples{reason}; give more")


# Reading ------------------------------------------------------------------------------------


def _opened(folder: Path, key: Mapping[str, Any]) -> Parts:
    """Open the cache of a source. Raises Stale if it is incomplete, damaged or of another."""
    if not (folder / MANIFEST).exists():
        raise Stale("")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise Stale("of another version")
        if manifest["key"]["options"] != key["options"]:
            raise Stale("made with other options")
        if manifest["key"] != key:
            raise Stale(f"the files have changed ({manifest['key']['files']} were {key['files']})")
        train, test = (_split(folder / manifest["folder"], manifest[part]) for part in PARTS)
        whole = manifest["contents"] == [digest(train), digest(test)]
        skipped = tuple(map(str, manifest["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Stale("damaged") from error
    if not whole:
        raise Stale("damaged")
    size = sum(t.nbytes for s in (train, test) for t in (s.x, *flat(s.conditions).values()))
    note = f"cache {folder}: {len(train)} + {len(test)} examples, {size / 1e6:.3g} MB, mapped"
    return Parts(train, test, skipped, (note,))


def _split(folder: Path, entry: Mapping[str, Any]) -> Split:
    least, largest = entry["bounds"]
    x = _mapped(folder, entry["x"])
    label = None if entry["label"] is None else _mapped(folder, entry["label"])
    columns = {name: _mapped(folder, described) for name, described in entry["columns"].items()}
    return Split(x, label, (least, largest), True, from_flat(columns))


def _mapped(folder: Path, entry: Mapping[str, Any]) -> Tensor:
    """An array as a read-only tensor in the memory of the file."""
    if 0 in entry["shape"]:  # an empty file cannot be mapped
        return torch.from_numpy(np.zeros(entry["shape"], entry["dtype"]))
    array = np.memmap(folder / entry["file"], entry["dtype"], "r", shape=tuple(entry["shape"]))
    with warnings.catch_warnings():
        # torch warns of read-only arrays; writable pages would count as memory of the process.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


# Writing ------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Create the folder if needed, and lock it against other processes."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: no folder; name a new or empty one for data.cache")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(path.name for path in folder.iterdir()):  # never replace other files
        if name not in (MANIFEST, f"{MANIFEST}.tmp", LOCK) and not name.startswith(FOLDER):
            raise DataError(
                f"{folder}: holds {name}, which is of no cache; name a new or empty folder for "
                f"data.cache"
            )
    with writing(folder):
        lock = (folder / LOCK).open("w")
    with lock:
        with writing(folder), suppress(ImportError):  # Windows: the last process to finish wins
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, key: Mapping[str, Any], decode: Decode) -> None:
    """Decode into a new folder of arrays, name it in the manifest, and remove all others."""
    arrays = folder / f"{FOLDER}{uuid.uuid4().hex}"
    skipped: list[str] = []
    try:
        with writing(arrays):
            arrays.mkdir()
        entries = _written(arrays, decode(skipped), skipped)
        contents = [digest(_split(arrays, entries[part])) for part in PARTS]
        manifest = {"format": FORMAT, "key": key, "folder": arrays.name, **entries}
        text = json.dumps({**manifest, "contents": contents, "skipped": skipped}, indent=1)
        atomic_write(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    except BaseException:
        shutil.rmtree(arrays, ignore_errors=True)
        raise
    for other in folder.glob(f"{FOLDER}*"):  # existing maps of them stay valid
        if other != arrays:
            shutil.rmtree(other, ignore_errors=True)


def _written(
    folder: Path, pieces: Iterator[tuple[bool, Split]], skipped: Sequence[str]
) -> dict[str, Any]:
    """Write the pieces in order, and return the description of the arrays of each part."""
    files: dict[str, BinaryIO] = {}
    entries: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for test, piece in pieces:
            part = PARTS[test]
            blank: dict[str, Any] = {"bounds": piece.bounds, "label": None, "columns": {}}
            entry = entries.setdefault(part, blank)
            ends = [end for bounds in (entry["bounds"], piece.bounds) for end in bounds or ()]
            entry["bounds"] = min(ends), max(ends)
            own = {"x": piece.x} | ({} if piece.label is None else {"label": piece.label})
            columns = flat(piece.columns)
            for name, tensor in {**own, **columns}.items():
                array, file = np.ascontiguousarray(tensor.numpy()), f"{part}-{name}.bin"
                with writing(folder / file):
                    if file not in files:
                        files[file] = stack.enter_context((folder / file).open("wb"))
                    files[file].write(array.data)
                home = entry["columns"] if name in columns else entry
                rows = len(array) + (home[name]["shape"][0] if home.get(name) else 0)
                shape = [rows, *array.shape[1:]]
                home[name] = {"file": file, "dtype": array.dtype.str, "shape": shape}
        for file in files:
            with writing(folder / file):
                files[file].close()
                sync(folder / file)
    _require_both({part == "test" for part in entries}, skipped)
    return entries
