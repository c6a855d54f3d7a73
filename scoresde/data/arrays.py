"""Arrays in `.npz` and `.npy` files, read without unpickling anything."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from scoresde.data.cache import Source, Watch, gathered, stored, unwatched
from scoresde.data.dataset import (
    DataError,
    Dataset,
    Split,
    held_rows,
    numbered_classes,
    reading,
)
from scoresde.data.scaling import Scaling

Layout = Literal["NHW", "NHWC", "NCHW"]

# Names of an array in an .npz, first found first taken: ours, numpy's own, Keras', MedMNIST's.
KEYS = {
    "x": ("x", "images", "arr_0", "x_train", "train_images"),
    "y": ("y", "labels", "arr_1", "y_train", "train_labels"),
    "x_test": ("x_test", "test_images"),
    "y_test": ("y_test", "test_labels"),
}

PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def arrays(
    path: Path | str,
    *,
    levels: int | None = None,
    layout: Layout | None = None,
    holdout: int | float = 0.1,
    seed: int = 0,
    cache: Path | str | None = None,
    watch: Watch = unwatched,
) -> Dataset:
    """The data set in an `.npz`, its arrays named as in `KEYS`, or an `.npy` of examples alone.

    A folder of `.npz` files with the same arrays is their rows in the order of the file names.

    Integers are pixel levels: uint8 has 256 of them and bool 2 unless `levels` says otherwise,
    wider ones need `levels`. Real numbers are continuous data, left as they are. (N, D) are
    vectors, uint8 (N, 3072) rows of CIFAR; for images see `channels_first`. Labels are 0, 1,
    ..., as (N,) or (N, 1). Without `x_test`, `holdout` (count or fraction) examples are held out
    by a permutation fixed by `seed`. In the folder `cache` the examples are kept as training
    takes them and mapped into memory; to make it, one file after another is read. `watch` is told
    of the progress. Raises DataError for missing, damaged or pickled arrays, and for values,
    shapes or labels that do not fit, ValueError for `levels` out of range.
    """
    path = Path(path)
    options: dict[str, Any] = {"levels": levels, "layout": layout, "holdout": holdout}
    with reading(path):
        shards = _shards(path)
        if levels is None:
            levels = _levels(shards[0].headers["x"].dtype)
        scaling = Scaling(levels)
        held = _held(shards, holdout, seed)

    def decode(skipped: list[str]) -> Iterator[tuple[bool, Split]]:
        with reading(path):
            yield from _decoded(shards, held, levels, layout, watch)

    if cache is None:
        found = gathered(decode)
    else:
        marks = [_mark(shard.file) for shard in shards]
        found = stored(Path(cache), Source(options | {"seed": seed}, marks), decode)
    with reading(path):
        classes = numbered_classes(found.train, found.test)
        return Dataset(path.stem, found.train, found.test, scaling, classes, found.notes)


def channels_first(x: np.ndarray, layout: Layout | None) -> np.ndarray:
    """Images as (N, C, H, W) from `layout`; None stands for the one layout that fits.

    (N, H, W) is NHW; (N, a, b, c) is NHWC if only c is 1 or 3, NCHW if only a is. Raises
    DataError otherwise.
    """
    last, first = x.shape[-1] in (1, 3), x.shape[1] in (1, 3)
    if layout is None and x.ndim == 4 and last == first:
        raise DataError(f"shape {x.shape} may be NHWC or NCHW; give layout")
    layout = layout or ("NHW" if x.ndim == 3 else "NHWC" if last else "NCHW")
    if x.ndim != len(layout):
        raise DataError(f"expected {layout}, found shape {x.shape}; correct the array or layout")
    return {"NHW": x[:, None], "NHWC": np.moveaxis(x, -1, 1), "NCHW": x}[layout]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` that `KEYS` knows, or the one of an `.npy` as "x"; or DataError."""
    with _parsed(path) as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        _require_ordinary(loaded.zip)
        return {name: _array(loaded[key]) for name, key in _names(loaded.files).items()}


@dataclass(frozen=True)
class Header:
    """What a file says of an array without its values being read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(['N', *map(str, self.shape[1:])])})"


def read_headers(path: Path) -> dict[str, Header]:
    """Of the arrays that `read_arrays` reads; a file promises no more than it holds."""
    with _parsed(path) as file:
        packed = file.read(4) in (b"PK\3\4", b"PK\5\6")
        file.seek(0)
        if not packed:
            return {"x": _header(file, path.stat().st_size)}
        with zipfile.ZipFile(file) as archive:
            _require_ordinary(archive)
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            found = {}
            for name, key in _names(list(members)).items():
                with archive.open(members[key]) as member:
                    found[name] = _header(member, members[key].file_size)
            return found


@contextmanager
def _parsed(path: Path) -> Iterator[BinaryIO]:
    """The open file; what numpy says about it becomes a DataError."""
    if not path.is_file():
        raise DataError("no such file; check the path")
    try:
        # Opened here: numpy leaves the file open when it is a damaged archive.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            yield file
    except DataError:
        raise
    except Exception as error:  # numpy raises whatever its parsers stumble over
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
    """A file of a data set, how messages name it, and what it holds."""

    file: Path
    headers: Mapping[str, Header]
    name: str = ""

    def __len__(self) -> int:
        return self.headers["x"].shape[0]

    def named(self) -> AbstractContextManager[None]:
        """Say which file of several an error is about."""
        return reading(self.name) if self.name else nullcontext()


def _shards(path: Path) -> list[Shard]:
    """The file, or the `.npz` files in a folder, which are alike. Raises DataError."""
    if not path.is_dir():
        found = [Shard(path, read_headers(path))]
    else:
        files = sorted(file for file in path.glob("*.npz") if not file.name.startswith("."))
        if not files:
            raise DataError("no .npz files in this folder; check the path")
        found = []
        for file in files:
            with reading(file.name):
                found.append(Shard(file, read_headers(file), file.name))
                _require_alike(found[0], found[-1])
    with found[0].named():
        _require_both_labels(found[0].headers)
        rows = sum(shard.headers["x"].shape[0] for shard in found if shard.headers["x"].shape)
        with reading("array 'x'"):
            _require_examples((rows, *found[0].headers["x"].shape[1:]))
    return found


def _require_alike(first: Shard, other: Shard) -> None:
    """Raise DataError unless two shards have the same arrays, of one type and shape of a row."""
    one, two = ({k: str(v) for k, v in sorted(s.headers.items())} for s in (first, other))
    if one != two:
        raise DataError(f"holds {two}, but {first.name} holds {one}; make them alike")


def _held(shards: Sequence[Shard], holdout: int | float, seed: int) -> Tensor | None:
    """The rows that are for testing, ascending; None where there are examples for it."""
    if "x_test" in shards[0].headers:
        return None
    with reading("no x_test, so holdout"):
        return held_rows(sum(map(len, shards)), holdout, seed)[1]


def _decoded(
    shards: Sequence[Shard],
    held: Tensor | None,
    levels: int | None,
    layout: Layout | None,
    watch: Watch,
) -> Iterator[tuple[bool, Split]]:
    """The examples of one file after another."""
    starts = accumulate(map(len, shards), initial=0)
    with watch(len(shards), "reading arrays") as advance:
        for shard, first in zip(shards, starts, strict=False):
            if not len(shard):
                continue
            with shard.named():
                found = read_arrays(shard.file)
                advance(1)
                train = _split(found, "x", "y", levels, layout)
                if held is not None:
                    yield from _divided(train, held - first)
                    continue
                yield False, train
                if found["x_test"].size or not shard.name:
                    yield True, _split(found, "x_test", "y_test", levels, layout)


def _divided(split: Split, held: Tensor) -> Iterator[tuple[bool, Split]]:
    """What is for training and for testing of a split, where there is any."""
    test = torch.zeros(len(split), dtype=torch.bool)
    test[held[(held >= 0) & (held < len(split))]] = True
    for part, chosen in ((False, ~test), (True, test)):
        if chosen.any():
            yield part, split.take(chosen.nonzero()[:, 0])


def _mark(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns


def integer_labels(y: np.ndarray) -> Tensor:
    """Labels (N,) or (N, 1) of any integer type as int64 (N,); DataError for other types."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "bui":
        raise DataError(f"labels are {y.dtype}; give integers 0, 1, ...")
    return torch.from_numpy(y.astype(np.int64))


def _require_ordinary(archive: zipfile.ZipFile) -> None:
    """What numpy writes grows a thousandfold at most; bzip2 makes gigabytes of kilobytes."""
    if any(entry.compress_type not in PACKED for entry in archive.infolist()):
        raise ValueError("packed otherwise than by numpy.savez_compressed")


def _array(found: object) -> np.ndarray:
    if not isinstance(found, np.ndarray):  # the bytes of a member that is none
        raise ValueError("a member that is no array")
    return found


def _names(keys: list[str]) -> dict[str, str]:
    first = {name: next((k for k in known if k in keys), None) for name, known in KEYS.items()}
    if first["x"] is None:
        held = ", ".join(ascii(key)[1:-1] for key in keys[:20]) or "(none)"
        raise DataError(f"holds the keys {held}; call the examples 'x'")
    return {name: key for name, key in first.items() if key is not None}


def _require_both_labels(found: Mapping[str, Header]) -> None:
    if "x_test" in found and ("y" in found) != ("y_test" in found):
        missing, x = ("y", "x") if "y_test" in found else ("y_test", "x_test")
        raise DataError(f"no labels for {x}; call them {missing!r}, or leave out both")


def _split(
    found: Mapping[str, np.ndarray], x: str, y: str, levels: int | None, layout: Layout | None
) -> Split:
    with reading(f"array {x!r}"):
        examples = torch.from_numpy(_examples(found[x], levels, layout))
        return Split(examples, integer_labels(found[y]) if y in found else None)


def _examples(x: np.ndarray, levels: int | None, layout: Layout | None) -> np.ndarray:
    if x.dtype.kind not in "buif":
        raise DataError(f"values are {x.dtype}; expected numbers")
    _require_examples(x.shape)
    if x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3072:
        x, layout = x.reshape(-1, 3, 32, 32), "NCHW"
    if x.ndim > 2:
        x = channels_first(x, layout)
    elif x.dtype.kind != "f":
        raise DataError(f"shape {x.shape} of {x.dtype}; give images as NHW, vectors as floats")
    return np.ascontiguousarray(_stored(x, levels))


def _require_examples(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3, 4) or math.prod(shape) == 0:
        raise DataError(f"shape {shape}; expected examples as (N, D), NHW, NHWC or NCHW")


def _stored(x: np.ndarray, levels: int | None) -> np.ndarray:
    if levels is None or x.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            return x.astype(np.float32)
    if x.min() < 0 or x.max() >= levels:
        raise DataError(
            f"levels run over {x.min()}..{x.max()}, expected 0..{levels - 1}; correct levels"
        )
    return x.astype(np.uint8 if levels <= 256 else np.int32)


def _levels(dtype: np.dtype) -> int | None:
    if dtype.kind == "f":
        return None
    known = {"bool": 2, "uint8": 256}
    if dtype.name not in known:
        raise DataError(f"values are {dtype}, whose number of levels is unknown; give levels")
    return known[dtype.name]
