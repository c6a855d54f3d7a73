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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write, sync, writing
from scoresde.data.dataset import DataError, Split, reading

FORMAT = 1
MANIFEST, LOCK = "manifest.json", ".lock"
ARRAYS = ("x.npy", "label.npy", "x_test.npy", "label_test.npy")
OURS = {LOCK, *(f"{name}{end}" for name in (MANIFEST, *ARRAYS) for end in ("", ".tmp"))}

# Long enough for the header of any array, which is written when its length is known.
HEADER = 256

Watch = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Told how many of what there are, it gives a function to be told how many more are done."""

Decode = Callable[[list[str]], Iterator[tuple[bool, Split]]]
"""Pieces of a data set, each with whether it is of the test split; what is left out is appended
to the list."""


@contextmanager
def unwatched(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Nobody is told."""
    yield lambda n: None


@dataclass(frozen=True)
class Source:
    """What a cache is of: the options of decoding, and (name, size, mark) of every file.

    The mark is a CRC or a time of change: a file with the same three has the same contents.
    """

    options: Mapping[str, Any]
    files: Sequence[tuple[str, int, int]]

    def summary(self) -> dict[str, Any]:
        """The options, and the number and a digest of the files."""
        listing = json.dumps(list(self.files)).encode()
        digest = hashlib.sha256(listing).hexdigest()
        return {"options": dict(self.options), "files": len(self.files), "digest": digest}


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
    key, reason = source.summary(), ""
    try:
        manifest = _usable(folder, key)
    except Stale:
        with _alone(folder):
            try:
                manifest = _usable(folder, key)
            except Stale as stale:
                reason = str(stale)
                manifest = _made(folder, key, decode)
    return _opened(folder, manifest, reason)


def _joined(pieces: Sequence[Split]) -> Split:
    labels = [piece.label for piece in pieces if piece.label is not None]
    return Split(torch.cat([piece.x for piece in pieces]), torch.cat(labels) if labels else None)


def _require_both(found: set[bool], skipped: Sequence[str]) -> None:
    for test, name in ((False, "training"), (True, "test")):
        if test not in found:
            reason = f"; {len(skipped)} damaged ones were left out" if skipped else ""
            raise DataError(f"no {name} examples{reason}; give more")


# Reading ------------------------------------------------------------------------------------


def _usable(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a whole cache of this source; raises Stale for any other."""
    manifest = _manifest(folder)
    if manifest.get("key", {}).get("options") != key["options"]:
        raise Stale("made with other options")
    if manifest["key"] != key:
        raise Stale(f"the files have changed ({manifest['key']['files']} were {key['files']})")
    touched = [name for name in manifest["arrays"] if _is_touched(folder, name, manifest)]
    for name in touched:
        with (folder / name).open("rb") as file:
            file.seek(HEADER)
            if hashlib.file_digest(file, "sha256").hexdigest() != _entry(manifest, name)["sha256"]:
                raise Stale(f"{name} is damaged")
    if touched:
        with suppress(OSError):  # a cache that may only be read is compared every time
            _write_manifest(folder, manifest)
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        raise Stale("")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found == {"format": FORMAT, "unfinished": True}:
            raise Stale("")
        if found.pop("sha256") != _digest_of(found) or found["format"] != FORMAT:
            raise Stale(f"{MANIFEST} is damaged or of another version")
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise Stale(f"{MANIFEST} is damaged") from error
    return dict(found)


def _is_touched(folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """Whether an array has been written since; raises Stale where it is another one."""
    entry, path = _entry(manifest, name), folder / name
    try:
        status, header = path.stat(), np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Stale(f"{name} is damaged or missing") from error
    found = [status.st_size, list(header.shape), header.dtype.str]
    if found != [entry["bytes"], entry["shape"], entry["dtype"]]:
        raise Stale(f"{name} is damaged")
    return bool(status.st_mtime_ns != entry["mtime_ns"])


def _entry(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(manifest["arrays"][name])


def _opened(folder: Path, manifest: Mapping[str, Any], reason: str) -> Parts:
    def split(x: str, label: str) -> Split:
        labelled = label in manifest["arrays"]
        least, largest = _entry(manifest, x)["bounds"]
        labels = mapped(folder / label) if labelled else None
        return Split(mapped(folder / x), labels, (least, largest), mapped=True)

    with reading(folder):
        train, test = split(*ARRAYS[:2]), split(*ARRAYS[2:])
    size = sum(_entry(manifest, name)["bytes"] for name in manifest["arrays"])
    notes = [f"cache {folder}: {reason}, decoded again"] if reason else []
    notes += [f"cache {folder}: {len(train)} + {len(test)} examples, {size / 1e6:.3g} MB, mapped"]
    return Parts(train, test, tuple(manifest["skipped"]), tuple(notes))


def mapped(path: Path) -> Tensor:
    """The array of an ``.npy`` as a tensor whose memory is the file: it may only be read."""
    with warnings.catch_warnings():
        # torch warns of arrays that may not be written; a map that may would count as memory.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False))


# Writing ------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process decodes into the folder, which is made if it is not there."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _require_ours(folder)
    with writing(folder):
        lock = (folder / LOCK).open("w")
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows: the last one to finish is taken
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_ours(folder: Path) -> None:
    """Raise DataError if the folder holds files that no cache has: nothing of them is replaced."""
    names = {path.name for path in folder.iterdir()}
    strangers = names - OURS if MANIFEST in names else names - {LOCK, f"{MANIFEST}.tmp"}
    if strangers:
        raise DataError(
            f"{folder}: holds {min(strangers)}, which is of no cache; name a new or empty folder "
            f"for data.cache"
        )


def _made(folder: Path, key: Mapping[str, Any], decode: Decode) -> dict[str, Any]:
    """Decode into the folder, and return the manifest that was written last."""
    if not (folder / MANIFEST).exists():  # from here on the folder is known as a cache
        text = json.dumps({"format": FORMAT, "unfinished": True})
        atomic_write(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    skipped: list[str] = []
    writers: dict[str, _Writer] = {}
    try:
        for test, piece in decode(skipped):
            _add(writers, folder, piece, test)
        _require_both({name == ARRAYS[2] for name in writers if "x" in name}, skipped)
        arrays = {name: writer.finish() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    for name in set(ARRAYS) - set(writers):
        (folder / name).unlink(missing_ok=True)
    return _write_manifest(
        folder, {"format": FORMAT, "key": key, "arrays": arrays, "skipped": skipped}
    )


def _add(writers: dict[str, _Writer], folder: Path, piece: Split, test: bool) -> None:
    x, label = ARRAYS[2:] if test else ARRAYS[:2]
    for name, tensor in ((x, piece.x), (label, piece.label)):
        if tensor is not None:
            if name not in writers:
                writers[name] = _Writer(folder / name)
            writers[name].add(tensor, piece.bounds if name == x else None)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write it with the times of the arrays as they are, and a checksum of its own."""
    for name, entry in manifest["arrays"].items():
        entry["mtime_ns"] = (folder / name).stat().st_mtime_ns
    text = json.dumps(manifest | {"sha256": _digest_of(manifest)}, indent=1)
    atomic_write(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    return manifest


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
        return {
            "shape": list(shape),
            "dtype": self.dtype.str,
            "bytes": self.path.stat().st_size,
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
