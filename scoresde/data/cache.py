"""Examples decoded once into arrays on disk, which are mapped into memory and never read whole.

A cache is a folder with ``x.npy``, ``label.npy``, ``x_test.npy``, ``label_test.npy`` and
``manifest.json``, which says what they were made of. Arrays are written beside their places,
synced and renamed, and the manifest comes last, so that no half-written cache is ever taken for a
whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write, sync, writing
from scoresde.data.dataset import DataError, Split, reading
from scoresde.data.digest import digest

FORMAT = 2
UNFINISHED = {"format": FORMAT, "unfinished": True}
MANIFEST, LOCK = "manifest.json", ".lock"
ARRAYS = ("x.npy", "label.npy", "x_test.npy", "label_test.npy")
OURS = {LOCK, *(f"{name}{end}" for name in (MANIFEST, *ARRAYS) for end in ("", ".tmp"))}

# Long enough for the header of any array, which is written when its length is known.
HEADER = 256

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Called with a total and a label, it gives ``advance(n)``, which counts n more as done."""

Decode = Callable[[list[str]], Iterator[tuple[bool, Split]]]
"""Pieces of a data set, each with whether it is of the test split; what is left out is appended
to the list."""


@contextmanager
def silent(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A progress that shows nothing."""
    yield lambda n: None


@dataclass(frozen=True)
class Source:
    """What a cache is of: the options of decoding, and (name, size, mark) of every file.

    The mark is a CRC or a time of change: a file with the same three is taken for the same.
    """

    options: Mapping[str, Any]
    files: Sequence[tuple[str, int, int]]

    def summary(self) -> dict[str, Any]:
        """The options, and the number and a digest of the files."""
        listing = json.dumps(list(self.files)).encode()
        digest = hashlib.sha256(listing).hexdigest()
        options = json.loads(json.dumps(dict(self.options)))  # as a manifest gives them back
        return {"options": options, "files": len(self.files), "digest": digest}


@dataclass(frozen=True)
class Parts:
    """The two splits of a data set, the names of what was left out, and lines for the user."""

    train: Split
    test: Split
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Stale(Exception):
    """A cache that cannot be used, and why."""


def gathered(decode: Decode) -> Parts:
    """A data set decoded into memory. Raises DataError when one of its splits has no examples."""
    skipped: list[str] = []
    pieces: dict[bool, list[Split]] = {False: [], True: []}
    for test, piece in decode(skipped):
        pieces[test].append(piece)
    _require_both({test for test, found in pieces.items() if found}, skipped)
    return Parts(_joined(pieces[False]), _joined(pieces[True]), tuple(skipped))


def stored(folder: Path, source: Source, decode: Decode) -> Parts:
    """A data set in its cache, decoded first unless the folder has it; its examples are mapped.

    Processes that ask at once wait for the first. A cache of other files or options, or a damaged
    one, is made anew, which a note says. Raises DataError for a folder with other files in it,
    OSError where it cannot be written.
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
    return Split(torch.cat([piece.x for piece in pieces]), torch.cat(labels) if labels else None)


def _require_both(found: set[bool], skipped: Sequence[str]) -> None:
    for test, name in ((False, "training"), (True, "test")):
        if test not in found:
            reason = f"; {len(skipped)} damaged ones were left out" if skipped else ""
            raise DataError(f"no {name} examples{reason}; give more")


# Reading ------------------------------------------------------------------------------------


def _opened(folder: Path, key: Mapping[str, Any]) -> Parts:
    """A whole cache of this source; raises Stale for any other."""
    manifest = _manifest(folder)
    if manifest["key"]["options"] != key["options"]:
        raise Stale("made with other options")
    if manifest["key"] != key:
        raise Stale(f"the files have changed ({manifest['key']['files']} were {key['files']})")
    entries = {name: dict(entry) for name, entry in manifest["arrays"].items()}
    train, test = _splits(folder, entries)
    if [digest(train), digest(test)] != manifest["contents"]:
        raise Stale("damaged")
    if entries != manifest["arrays"]:
        _remember(folder, manifest, entries)
    size = sum(entry["bytes"] for entry in entries.values())
    note = f"cache {folder}: {len(train)} + {len(test)} examples, {size / 1e6:.3g} MB, mapped"
    return Parts(train, test, tuple(manifest["skipped"]), (note,))


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise Stale("")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found == UNFINISHED:
            raise Stale("")
        if found.pop("sha256") != _digest_of(found) or found["format"] != FORMAT:
            raise Stale(f"{MANIFEST} is damaged or of another version")
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise Stale(f"{MANIFEST} is damaged") from error
    return dict(found)


def _splits(folder: Path, entries: Mapping[str, dict[str, Any]]) -> tuple[Split, Split]:
    def split(x: str, label: str) -> Split:
        examples, labels = (
            _mapped(folder / name, entries[name]) if name in entries else None
            for name in (x, label)
        )
        if examples is None:
            raise Stale(f"{x} is missing")
        least, largest = entries[x]["bounds"]
        return Split(examples, labels, (least, largest), mapped=True)

    with reading(folder):
        return split(*ARRAYS[:2]), split(*ARRAYS[2:])


def _mapped(path: Path, entry: dict[str, Any]) -> Tensor:
    """An array as a tensor whose memory is the file: it may only be read.

    One written since is compared whole, and its time noted in the entry. Raises Stale for another
    array. All is asked of one open file: what takes its name meanwhile changes nothing.
    """
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    try:
        with path.open("rb") as file:
            whole = file.read(HEADER) == _header(shape, dtype)
            status = os.fstat(file.fileno())
            if status.st_mtime_ns != entry["mtime_ns"]:
                whole = (
                    whole and hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
                )
            if not whole or status.st_size != entry["bytes"]:
                raise Stale(f"{path.name} is damaged")
            array = np.memmap(file, dtype, "r", HEADER, shape)
    except (OSError, ValueError) as error:
        raise Stale(f"{path.name} is damaged or missing") from error
    entry["mtime_ns"] = status.st_mtime_ns
    with warnings.catch_warnings():
        # torch warns of arrays that may not be written; a map that may would count as memory.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _remember(folder: Path, manifest: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Note the times of arrays that were compared, so that they need not be again."""
    # One that may only be read, that another process writes or that has other files beside it is
    # compared every time.
    with suppress(OSError, Stale, DataError), _alone(folder, wait=False):
        if _manifest(folder) == manifest:
            _write_manifest(folder, {**manifest, "arrays": entries})


# Writing ------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes from decoding into the folder, which is made if it is not there.

    Waits for one that does, or else raises BlockingIOError.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: no folder; name a new or empty one for data.cache")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _require_ours(folder)
    with writing(folder):
        lock = (folder / LOCK).open("w")
    with lock:
        with writing(folder):
            _lock(lock, wait)
        yield


def _lock(file: IO[str], wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the last one to finish is taken
        return
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _require_ours(folder: Path) -> None:
    """Raise DataError if the folder holds files that no cache has: nothing of them is replaced."""
    names = {path.name for path in folder.iterdir()}
    strangers = names - OURS if MANIFEST in names else names - {LOCK, f"{MANIFEST}.tmp"}
    if strangers:
        raise DataError(
            f"{folder}: holds {min(strangers)}, which is of no cache; name a new or empty folder "
            f"for data.cache"
        )


def _make(folder: Path, key: Mapping[str, Any], decode: Decode) -> None:
    """Decode into the folder, and write the manifest last."""
    if not (folder / MANIFEST).exists():  # from here on the folder is known as a cache
        _write(folder, UNFINISHED)
    skipped: list[str] = []
    writers: dict[str, _Writer] = {}
    try:
        for test, piece in decode(skipped):
            _add(writers, folder, piece, test)
        _require_both({name == ARRAYS[2] for name in writers if "x" in name}, skipped)
        entries = {name: writer.finish() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    for name in ARRAYS:  # what a killed process left, and labels that there are no more
        (folder / f"{name}.tmp").unlink(missing_ok=True)
        if name not in writers:
            (folder / name).unlink(missing_ok=True)
    contents = [digest(split) for split in _splits(folder, entries)]
    made = {"key": key, "arrays": entries, "contents": contents, "skipped": skipped}
    _write_manifest(folder, {"format": FORMAT} | made)


def _add(writers: dict[str, _Writer], folder: Path, piece: Split, test: bool) -> None:
    x, label = ARRAYS[2:] if test else ARRAYS[:2]
    for name, tensor in ((x, piece.x), (label, piece.label)):
        if tensor is not None:
            if name not in writers:
                writers[name] = _Writer(folder / name)
            writers[name].add(tensor, piece.bounds if name == x else None)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write it with a checksum of its own."""
    _write(folder, {**manifest, "sha256": _digest_of(manifest)})


def _write(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1)
    atomic_write(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


class _Writer:
    """An ``.npy`` that grows: rows go to a temporary file, whose header is written at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(path.name + ".tmp")
        with writing(self.temporary):
            self.file: BinaryIO = self.temporary.open("wb")
            self.file.write(bytes(HEADER))
        self.hash, self.rows = hashlib.sha256(), 0
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.uint8)
        self.bounds: tuple[float, float] | None = None

    def add(self, tensor: Tensor, bounds: tuple[float, float] | None) -> None:
        """Append rows, all of one shape and type, that lie between the bounds."""
        array = np.ascontiguousarray(tensor.numpy())
        self.shape, self.dtype = array.shape[1:], array.dtype
        content = array.reshape(-1).view(np.uint8).data
        with writing(self.temporary):
            self.file.write(content)
        self.hash.update(content)
        self.rows += len(array)
        if bounds is not None:
            least, largest = self.bounds or bounds
            self.bounds = min(least, bounds[0]), max(largest, bounds[1])

    def finish(self) -> dict[str, Any]:
        """Put the array in its place, and say what it is."""
        shape = (self.rows, *self.shape)
        with writing(self.temporary):
            self.file.seek(0)
            self.file.write(_header(shape, self.dtype))
            self.file.close()
            sync(self.temporary)
            os.replace(self.temporary, self.path)
            sync(self.path.parent)
        status = self.path.stat()
        return {
            "shape": list(shape),
            "dtype": self.dtype.str,
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": self.hash.hexdigest(),
            "bounds": self.bounds,
        }

    def close(self) -> None:
        """Leave nothing unfinished behind."""
        with suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """That of the ``.npy`` format, version 1.0, in HEADER bytes."""
    told = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    text = repr(told).encode().ljust(HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
