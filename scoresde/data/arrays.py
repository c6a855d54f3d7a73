"""Arrays in `.npz` and `.npy` files, read without unpickling anything."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import DataError, Dataset, Split, numbered_classes, reading
from scoresde.data.dataset import holdout as hold_out
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
) -> Dataset:
    """The data set in an `.npz`, its arrays named as in `KEYS`, or an `.npy` of examples alone.

    A folder of `.npz` files with the same arrays is their rows in the order of the file names.

    Integers are pixel levels: uint8 has 256 of them and bool 2 unless `levels` says otherwise,
    wider ones need `levels`. Real numbers are continuous data, left as they are. (N, D) are
    vectors, uint8 (N, 3072) rows of CIFAR; for images see `channels_first`. Labels are 0, 1,
    ..., as (N,) or (N, 1). Without `x_test`, `holdout` (count or fraction) examples are held out
    by a permutation fixed by `seed`. Raises DataError for missing, damaged or pickled arrays,
    and for values, shapes or labels that do not fit.
    """
    with reading(path):
        found = _shards(Path(path)) if Path(path).is_dir() else read_arrays(Path(path))
        if levels is None:
            levels = _levels(found["x"].dtype)
        train = _split(found, "x", "y", levels, layout)
        if "x_test" in found:
            _require_both_labels(found)
            test = _split(found, "x_test", "y_test", levels, layout)
        else:
            with reading("no x_test, so holdout"):
                train, test = hold_out(train, holdout, seed)
        classes = numbered_classes(train, test)
        return Dataset(Path(path).stem, train, test, Scaling(levels), classes)


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
    if not path.is_file():
        raise DataError("no such file; check the path")
    try:
        # Opened here: numpy leaves the file open when it is a damaged archive.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            _require_ordinary(loaded.zip)
            return {name: _array(loaded[key]) for name, key in _names(loaded.files).items()}
    except DataError:
        raise
    except Exception as error:  # numpy raises whatever its parsers stumble over
        reason = ascii(str(error).partition("\n")[0] or type(error).__name__)[1:-1][:120]
        advice = "save plain numeric arrays with numpy.savez"
        raise DataError(f"damaged or pickled ({reason}); {advice}") from error


def _shards(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the `.npz` files in a folder, one after another. Raises DataError."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError("no .npz files in this folder; check the path")
    parts = []
    for file in files:
        with reading(file.name):
            parts.append(read_arrays(file))
            _require_alike(parts[0], parts[-1], files[0].name)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _require_alike(
    first: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], of: str
) -> None:
    """Raise DataError unless two shards have the same arrays, of one type and shape of a row."""

    def kind(part: Mapping[str, np.ndarray]) -> dict[str, str]:
        return {name: f"{x.dtype} (N, {x.shape[1:]})" for name, x in sorted(part.items())}

    if kind(first) != kind(other):
        raise DataError(f"holds {kind(other)}, but {of} holds {kind(first)}; make them alike")


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


def _require_both_labels(found: Mapping[str, np.ndarray]) -> None:
    if ("y" in found) != ("y_test" in found):
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
    if x.ndim not in (2, 3, 4) or x.size == 0:
        raise DataError(f"shape {x.shape}; expected examples as (N, D), NHW, NHWC or NCHW")
    if x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3072:
        x, layout = x.reshape(-1, 3, 32, 32), "NCHW"
    if x.ndim > 2:
        x = channels_first(x, layout)
    elif x.dtype.kind != "f":
        raise DataError(f"shape {x.shape} of {x.dtype}; give images as NHW, vectors as floats")
    return np.ascontiguousarray(_stored(x, levels))


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
