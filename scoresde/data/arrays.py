"""Arrays in ``.npz``, ``.npy`` and CSV files, read without unpickling."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from scoresde.arguments import Natural, Positive, Range, check
from scoresde.data.cache import Source, gathered, stored
from scoresde.data.convert import KNOWN_LEVELS, Layout, examples_of, fitted, known_levels
from scoresde.data.dataset import (
    DataError,
    Dataset,
    Split,
    held_rows,
    reading,
    require_there,
)
from scoresde.data.file_kinds import kind_of
from scoresde.data.labels import Numbered, label_values, listing, numbered
from scoresde.data.table import SUFFIXES as TABLES
from scoresde.data.table import read_table
from scoresde.progress import Progress, silent

# Names of an array in an .npz, in order of preference: ours, numpy's, those of Keras, of MedMNIST.
KEYS = {
    "x": ("x", "images", "arr_0", "x_train", "train_images"),
    "y": ("y", "label", "labels", "arr_1", "y_train", "train_labels"),
    "x_test": ("x_test", "test_images"),
    "y_test": ("y_test", "test_labels"),
}
# Names of the test part if those of KEYS are missing.
VALIDATION = {
    "x_test": ("x_val", "x_valid", "val_images"),
    "y_test": ("y_val", "y_valid", "val_labels"),
}
LABELS, TEST = ("y", "y_test"), "_test"

PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def arrays(
    path: Path | str,
    *,
    levels: Annotated[int, Range(ge=2)] | None = None,
    layout: Layout | None = None,
    holdout: Positive = 0.1,
    seed: Natural = 0,
    standardise: bool = True,
    cache: Path | str | None = None,
    vector: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Examples, with optional labels, from arrays in .npz, .npy or CSV files.

    An ``.npz`` has arrays named as in ``KEYS``; an ``.npy`` has examples only. A folder may have
    ``.npz`` files with the same arrays, read in the order of the file names, or ``.npy`` files
    named as their arrays. Integers are pixel levels, real numbers continuous data. (N, D) are
    vectors, uint8 (N, 3072) rows of CIFAR; see ``channels_first`` for images and ``label_values``
    for labels.

    Args:
        path: file of arrays (.npz, .npy, .csv), or folder of .npz or .npy files.
        levels: number of pixel levels of integers; null: 256 for uint8, 2 for bool.
        layout: order of the axes of images; null: the one that fits.
        holdout: examples held out for testing if the file has no test part: a fraction below 1,
            or a number.
        seed: random seed of the held-out examples.
        standardise: scale real numbers to mean 0 and deviation 1, feature by feature.
        cache: folder for the decoded examples, which are then mapped into memory; null keeps
            them in memory only.
        vector: arrays of numbers (N,) or (N, K) in the file, or columns of a table, that are read
            as the condition vector and are no part of the examples; arrays of a test part are
            named with _test at the end.
        progress: callback that shows the number of files read.

    Raises DataError for missing, damaged or pickled arrays, and for values, shapes or labels that
    do not fit, ValueError for ``levels`` out of range.
    """
    check(arrays, locals())
    path = Path(path).expanduser()
    with reading(path):
        require_there(path)
        wanted = tuple(vector or ())
        shards = _shards(path, wanted)
        if levels is None:
            levels = _levels(shards[0])
        held = _held(shards, holdout, seed)
        numbers = _numbered(shards)

    def decode(skipped: list[str]) -> Iterator[tuple[bool, Split]]:
        with reading(path):
            yield from _decoded(shards, held, numbers, levels, layout, wanted, progress)

    if cache is None:
        found = gathered(decode)
    else:
        options: dict[str, Any] = {"levels": levels, "layout": layout, "holdout": holdout}
        options |= {"seed": seed, "classes": numbers and numbers.classes}
        options["vector"] = vector
        marks = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for shard in shards
            for file in shard.files
        ]
        found = stored(Path(cache).expanduser(), Source(options, marks), decode)
    with reading(path):
        scaling, notes = fitted(found.train, levels, standardise)
        notes = (*shards[0].notes, *(numbers.notes if numbers else ()), *notes, *found.notes)
        classes = numbers.classes if numbers else None
        return Dataset(path.stem, found.train, found.test, scaling, classes, notes)


def holds_arrays(folder: Path) -> bool:
    """True if a folder has ``.npz`` or ``.npy`` files for ``arrays``."""
    return bool(_visible(folder, "npz") or _visible(folder, "npy"))


def read_arrays(
    path: Path, only: Sequence[str] = tuple(KEYS), vector: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` named in ``KEYS``, or that of an ``.npy`` as "x".

    Those of ``vector`` have the names of ``_vectors``. Raises DataError if the file cannot be
    read.
    """
    with _parsed(path) as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        _require_ordinary(loaded.zip)
        names = _names(loaded.files, vector)
        return {name: _array(loaded[key]) for name, key in names.items() if name in only}


@dataclass(frozen=True)
class Header:
    """Shape and dtype of an array, read from a file without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        kind = "str" if self.dtype.kind in "US" else self.dtype  # strings of any length
        return f"{kind} ({', '.join(['N', *map(str, self.shape[1:])])})"


def read_headers(
    path: Path, vector: Sequence[str] = ()
) -> tuple[dict[str, Header], tuple[str, ...]]:
    """Headers of the arrays that ``read_arrays`` reads, and notes about those that it does not.

    Raises DataError for a file that cannot be read or is shorter than its headers state.
    """
    with _parsed(path) as file:
        packed = file.read(4) in (b"PK\3\4", b"PK\5\6")
        file.seek(0)
        if not packed and vector:
            raise DataError(f"an .npy holds x only, no {vector[0]!r}; give an .npz")
        if not packed:
            return {"x": _header(file, path.stat().st_size)}, ()
        with zipfile.ZipFile(file) as archive:
            _require_ordinary(archive)
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            found = {}
            for name, key in _names(list(members), vector).items():
                with archive.open(members[key]) as member:
                    found[name] = _header(member, members[key].file_size)
            return found, _unread(list(members), vector)


@contextmanager
def _parsed(path: Path) -> Iterator[BinaryIO]:
    """Open a file and turn the errors of numpy into DataError."""
    require_there(path)
    try:
        # Opened here, because numpy does not close a damaged archive.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers written by Python 2
            yield file
    except DataError:
        raise
    except Exception as error:  # numpy's parsers raise many types
        reason = ascii(str(error).partition("\n")[0] or type(error).__name__)[1:-1][:120]
        advice = "save plain numeric arrays with numpy.savez"
        raise DataError(f"damaged or pickled ({reason}); {advice}") from error


def _header(file: IO[bytes], size: int) -> Header:
    versions = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
    shape, _, dtype = versions[read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError("Python objects, which need allow_pickle")
    promised = file.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised > size:
        raise ValueError(f"promises shape {shape}, holds {size} bytes")
    return Header(shape, dtype)


@dataclass(frozen=True)
class Shard:
    """A part of a data set: headers of its arrays, a function that reads them, and its files."""

    headers: Mapping[str, Header]
    read: Callable[[Sequence[str]], Mapping[str, np.ndarray]]
    files: tuple[Path, ...]
    name: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.headers["x"].shape[0]

    def named(self) -> AbstractContextManager[None]:
        """Prefix errors with the file if there are several."""
        return reading(self.name) if self.name else nullcontext()


def _shards(path: Path, vector: Sequence[str] = ()) -> list[Shard]:
    """The parts of a file or folder. Raises DataError if their arrays differ."""
    if not path.is_dir():
        found = [shard_of(path, vector=vector)]
    elif files := _visible(path, "npz"):
        found = []
        for file in files:
            with reading(file.name):
                found.append(shard_of(file, file.name, vector))
                one, two = (
                    {k: str(v) for k, v in sorted(s.headers.items())}
                    for s in (found[0], found[-1])
                )
                if one != two:
                    raise DataError(
                        f"holds {two}, but {found[0].name} holds {one}; make them alike"
                    )
    elif files := _visible(path, "npy"):
        found = [_together(files, vector)]
    else:
        raise DataError("no .npz or .npy files in this folder; check the path")
    with found[0].named():
        _require_both_labels(found[0].headers)
        rows = sum(shard.headers["x"].shape[0] for shard in found if shard.headers["x"].shape)
        with reading("array 'x'"):
            header = found[0].headers["x"]
            _require_examples((rows, *header.shape[1:]), header.dtype)
    return found


def shard_of(file: Path, name: str = "", vector: Sequence[str] = ()) -> Shard:
    """The shard of one file. Raises DataError for a file without a known suffix."""
    suffix = file.suffix.lower()
    if suffix in TABLES:
        table = read_table(file, vector)
        found = {"x": table.x} | ({} if table.y is None else {"y": table.y})
        found |= dict(zip(_vectors(vector), table.apart.values(), strict=True))
        headers = {key: Header(array.shape, array.dtype) for key, array in found.items()}
        return Shard(headers, lambda only: found, (file,), name, table.notes)
    if suffix not in (".npz", ".npy"):
        raise DataError(f"is {kind_of(file)}; give arrays as .npz, .npy or .csv")
    headers, notes = read_headers(file, vector)
    return Shard(headers, partial(read_arrays, file, vector=vector), (file,), name, notes)


def _together(files: Sequence[Path], vector: Sequence[str]) -> Shard:
    """The shard of a folder of ``.npy`` files, named as their arrays."""
    by_stem = {file.stem: file for file in files}
    chosen = {name: by_stem[stem] for name, stem in _names(list(by_stem), vector).items()}
    headers = {}
    for name, file in chosen.items():
        with reading(file.name):
            headers[name] = read_headers(file)[0]["x"]

    def read(only: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: read_arrays(file)["x"] for name, file in chosen.items() if name in only}

    return Shard(headers, read, tuple(chosen.values()), notes=_unread(list(by_stem), vector))


def _visible(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*.{suffix}") if not file.name.startswith("."))


def _levels(shard: Shard) -> int | None:
    """The number of pixel levels implied by the dtype of the examples."""
    dtype = shard.headers["x"].dtype
    if dtype.kind == "f" or dtype.name in KNOWN_LEVELS:
        return KNOWN_LEVELS.get(dtype.name)
    with shard.named(), reading("array 'x'"):
        return known_levels(shard.read(("x",))["x"])


def _held(shards: Sequence[Shard], holdout: float, seed: int) -> Tensor | None:
    """The rows held out for testing, ascending; None if there is a test part."""
    if "x_test" in shards[0].headers:
        return None
    with reading("no x_test, so holdout"):
        return held_rows(sum(map(len, shards)), holdout, seed)[1]


def _numbered(shards: Sequence[Shard]) -> Numbered | None:
    """The labels of all arrays of all shards in order; None without labels.

    They are read before the examples, because the classes depend on all labels.
    """
    names = [name for name in LABELS if name in shards[0].headers]
    if not names:
        return None
    values = []
    for shard in shards:
        found = shard.read(names)
        for name in names:
            with shard.named(), reading(f"array {name!r}"):
                values.append(label_values(found[name]))
    with reading("array 'y'"):
        return numbered(*values)


def _decoded(
    shards: Sequence[Shard],
    held: Tensor | None,
    numbers: Numbered | None,
    levels: int | None,
    layout: Layout | None,
    vector: Sequence[str],
    progress: Progress,
) -> Iterator[tuple[bool, Split]]:
    """Yield the examples of each file in turn, each with whether they are for testing."""
    starts = accumulate(map(len, shards), initial=0)
    labels = iter(numbers.labels if numbers else ())
    with progress(len(shards), "reading arrays") as advance:
        for shard, first in zip(shards, starts, strict=False):
            own = {name: next(labels) for name in LABELS if name in shard.headers}
            if not len(shard):
                continue
            with shard.named():
                found = shard.read(("x", "x_test", *_vectors(vector), *_vectors(vector, TEST)))
                advance(1)
                columns = _columns(found, vector)
                train = _split(found["x"], own.get("y"), "x", levels, layout, columns)
                if held is not None:
                    yield from _divided(train, held - first)
                    continue
                yield False, train
                if found["x_test"].size or not shard.name:
                    label, columns = own.get("y_test"), _columns(found, vector, TEST)
                    yield True, _split(found["x_test"], label, "x_test", levels, layout, columns)


def _split(
    x: np.ndarray,
    label: Tensor | None,
    name: str,
    levels: int | None,
    layout: Layout | None,
    columns: Mapping[str, Tensor],
) -> Split:
    with reading(f"array {name!r}"):
        return Split(torch.from_numpy(examples_of(x, levels, layout)), label, columns=columns)


def _vectors(vector: Sequence[str], part: str = "") -> list[str]:
    """The names within a shard of the arrays of the condition vector."""
    return [f"vector {name}{part}" for name in vector]


def _columns(
    found: Mapping[str, np.ndarray], vector: Sequence[str], part: str = ""
) -> dict[str, Tensor]:
    """The condition vector, float32 (N, d), of the arrays of a shard; empty if there is none."""
    if not vector:
        return {}
    columns = []
    for name, key in zip(vector, _vectors(vector, part), strict=True):
        with reading(f"array {name + part!r}"):
            values = found[key]
            if values.dtype.kind not in "buif" or values.ndim not in (1, 2):
                raise DataError(f"{values.dtype} {values.shape}; give numbers (N,) or (N, K)")
            with np.errstate(over="ignore"):
                column = values.reshape(len(values), -1).astype(np.float32)
            if not (finite := np.isfinite(column).all(1)).all():
                raise DataError(f"row {int(finite.argmin())} is not finite; remove or repair it")
            columns.append(column)
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{listing(vector)} differ in length; give a number for each example")
    return {"vector": torch.from_numpy(np.concatenate(columns, 1))}


def _divided(split: Split, held: Tensor) -> Iterator[tuple[bool, Split]]:
    """Yield the training and the test examples of a split, if there are any."""
    test = torch.zeros(len(split), dtype=torch.bool)
    test[held[(held >= 0) & (held < len(split))]] = True
    for part, chosen in ((False, ~test), (True, test)):
        if chosen.any():
            yield part, split.take(chosen.nonzero()[:, 0])


def _require_ordinary(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for compression that numpy does not write, such as bombs of bzip2."""
    if any(entry.compress_type not in PACKED for entry in archive.infolist()):
        raise ValueError("packed otherwise than by numpy.savez_compressed")


def _array(found: object) -> np.ndarray:
    if not isinstance(found, np.ndarray):  # numpy returns other members as bytes
        raise ValueError("a member that is no array")
    return found


def _names(keys: Sequence[str], vector: Sequence[str] = ()) -> dict[str, str]:
    """The key of each array to read, by its name in ``KEYS``."""
    spelled = {key.lower(): key for key in reversed(keys)}
    first = {name: _first(known, spelled) for name, known in KEYS.items()}
    if first["x"] is None:
        held = ", ".join(ascii(key)[1:-1] for key in keys[:20]) or "(none)"
        raise DataError(f"holds the keys {held}; call the examples 'x'")
    if first["x_test"] is None and first["y_test"] is None:
        first |= {name: _first(known, spelled) for name, known in VALIDATION.items()}
    parts = ("",) if first["x_test"] is None else ("", TEST)
    for name in [f"{name}{part}" for part in parts for name in vector]:
        if name.lower() not in spelled:
            held = listing(sorted(ascii(key)[1:-1] for key in keys))
            raise DataError(f"no array {name!r}, but {held}; add it, or name others in vector")
        first[f"vector {name}"] = spelled[name.lower()]
    return {name: key for name, key in first.items() if key is not None}


def _first(known: Sequence[str], spelled: Mapping[str, str]) -> str | None:
    return next((spelled[key] for key in known if key in spelled), None)


def _unread(keys: Sequence[str], vector: Sequence[str] = ()) -> tuple[str, ...]:
    """Notes about arrays that are not read, and validation examples used for testing."""
    names = _names(keys, vector)
    left = sorted(ascii(key)[1:-1] for key in set(keys) - set(names.values()))
    notes = [f"arrays that are not read: {listing(left)}"] if left else []
    if names.get("x_test", "").lower() in VALIDATION["x_test"]:
        notes.append(f"no test part: {names['x_test']} is held out for testing")
    return tuple(notes)


def _require_both_labels(found: Mapping[str, Header]) -> None:
    if "x_test" in found and ("y" in found) != ("y_test" in found):
        missing, x = ("y", "x") if "y_test" in found else ("y_test", "x_test")
        raise DataError(f"no labels for {x}; call them {missing!r}, or leave out both")


def _require_examples(shape: tuple[int, ...], dtype: np.dtype) -> None:
    axes = (1, 2, 3, 4) if dtype.kind == "f" else (2, 3, 4)
    if len(shape) not in axes or math.prod(shape) == 0:
        raise DataError(f"shape {shape}; expected examples as (N, D), NHW, NHWC or NCHW")
