"""Data sets from tensors, arrays, a torch ``Dataset``, a path, or a ``Dataset``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.arguments import Natural, NonNegative, Range, check
from scoresde.data.arrays import arrays, holds_arrays
from scoresde.data.columns import Captions, Column
from scoresde.data.convert import Layout, examples_of, fitted, known_levels
from scoresde.data.dataset import DataError, Dataset, Split, held_rows, reading, require_there
from scoresde.data.idx import idx_folder
from scoresde.data.images import cifar_subset, image_folder
from scoresde.data.labels import label_values, numbered, placed


def dataset_of(
    source: Any,
    label: Any = None,
    *,
    levels: Annotated[int, Range(ge=2)] | None = None,
    layout: Layout | None = None,
    holdout: NonNegative = 0.1,
    seed: Natural = 0,
    standardise: bool = True,
    classes: Sequence[str] | None = None,
    conditions: Mapping[str, Any] | None = None,
    name: str = "data",
) -> Dataset:
    """A data set from data in memory or at a path; a ``Dataset`` is returned unchanged.

    Integers are pixel levels, (N, H, W), (N, H, W, C) or (N, C, H, W); floats are real numbers of
    any shape (N, ...), which is preserved; (N,) are N examples of one number. Raises DataError for
    data that cannot be read, ValueError for other arguments out of range.

    Args:
        source: examples as a tensor, an array or nested lists; a pair (x, label) of them; a pair
            of x and a mapping with the label and conditions by name; a torch ``Dataset`` of x or
            (x, label); or a path, whose kind is detected.
        label: the class of every example: numbers, names or one-hot rows.
        levels: number of pixel levels of integers; None: 256 for uint8, 2 for bool.
        layout: order of the axes of images; None: the one that fits.
        holdout: examples held out for testing: a fraction below 1, or a number; 0 uses the
            training examples for testing too.
        seed: random seed of the held-out examples.
        standardise: scale real numbers to mean 0 and deviation 1.
        classes: names of the labels 0, 1, ...; None: the labels themselves.
        conditions: further columns by name, a row for each example: sentences or lists of them;
            floats (N,) or (N, d); integers (N,); or pictures (N, C, H, W).
        name: name of the data in messages and records.
    """
    check(dataset_of, locals())
    source, own, told = columns_apart(source)
    if told or own is not None:
        label, conditions = own if label is None else label, {**told, **(conditions or {})}
    if isinstance(source, Dataset):
        if label is not None or classes is not None or conditions is not None:
            raise DataError("label, classes and conditions come with a Dataset; leave them out")
        return source
    if isinstance(source, str | Path):
        if not str(source):
            raise DataError("the path is empty; give one")
        if label is not None or classes is not None or conditions is not None:
            raise DataError("label, classes and conditions are read from the path; leave them out")
        return _at(Path(source), levels, layout, holdout, seed, standardise)
    x, label, found = pair_of(source, label)
    classes = found if classes is None else classes
    with reading("x"):
        array = array_of(x)
        every = Split(torch.from_numpy(examples_of(array, levels, layout, as_given=True)))
        whole = torch.arange(len(every))
        rest, held = held_rows(len(every), holdout, seed) if holdout else (whole, whole)
    split = every
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    if label is not None:
        with reading("label"):
            if classes is None:
                (codes,), names, notes = numbered(label_values(label))
            else:
                codes, names = placed(label, classes), tuple(classes)
            split = Split(every.x, codes, every.bounds)
    elif classes is not None:
        raise DataError("classes name the labels, and there are none; give label")
    split = replace(split, columns={k: column_of(k, v) for k, v in (conditions or {}).items()})
    train, test = split.take(rest), split.take(held)
    known = levels if array.dtype.kind == "f" else levels or known_levels(array)
    scaling, more = fitted(train, known, standardise)
    return Dataset(name, train, test, scaling, names, (*notes, *more))


def columns_apart(source: Any) -> tuple[Any, Any, dict[str, Any]]:
    """x, label and further columns of a pair (x, mapping of columns); others as they are."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        told = dict(source[1])
        return source[0], told.pop("label", None), told
    return source, None, {}


def column_of(name: str, values: Any) -> Column:
    """A column of conditions from sentences, numbers or pictures. Raises DataError for others."""
    if isinstance(values, Captions):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        values = values.tolist()
    first = values[0] if isinstance(values, Sequence) and len(values) else None
    with reading(f"conditions, {name!r}"):
        if isinstance(first, str) or (
            isinstance(first, list | tuple) and all(isinstance(text, str) for text in first)
        ):
            try:
                return Captions.of(values)
            except ValueError as error:
                raise DataError(str(error)) from error
        array = array_of(values)
        if array.dtype.kind not in "buif":
            raise DataError(f"values are {array.dtype}; give sentences or numbers")
        if array.dtype.kind == "f":
            return torch.from_numpy(array.astype(np.float32))
        if array.ndim == 1 or array.dtype in (np.uint16, np.uint32, np.uint64):
            array = array.astype(np.int64)  # torch lacks operations of the wide unsigned ones
        return torch.from_numpy(array)


def pair_of(source: Any, label: Any = None) -> tuple[Any, Any, Sequence[str] | None]:
    """Examples, and optional labels and class names, of a source in memory."""
    if isinstance(source, torch.utils.data.TensorDataset):
        source = source.tensors
    if isinstance(source, tuple) and len(source) in (1, 2):
        if len(source) == 2 and label is not None:
            raise DataError("label is in the pair (x, label) too; give it once")
        return source[0], source[1] if len(source) == 2 else label, None
    if isinstance(source, Tensor | np.ndarray | list | tuple):
        return source, label, None
    kind = type(source).__name__
    if isinstance(source, Dataset):
        raise DataError("a Dataset of ours has two parts; give its train or its test")
    if isinstance(source, torch.utils.data.IterableDataset | torch.utils.data.DataLoader):
        raise DataError(f"{kind} has no order that a run could resume; give a map-style Dataset")
    readable = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if not readable or isinstance(source, Mapping):
        raise DataError(f"{kind} is no data; give a tensor, (x, label), a Dataset or a path")
    items = [source[k] for k in range(len(source))]
    if not items:
        raise DataError("the Dataset is empty; give examples")
    if isinstance(items[0], Mapping):
        keys = ", ".join(map(str, items[0]))
        raise DataError(f"items have the keys {keys}; give x or (x, label)")
    if not isinstance(items[0], tuple | list):
        return stacked(items), label, None
    if len(items[0]) > 2:
        raise DataError(f"items are tuples of {len(items[0])}; give x or (x, label)")
    found = [item[1] for item in items] if len(items[0]) == 2 else label
    # Data sets of torchvision name their labels 0, 1, ...
    classes = getattr(source, "classes", None) if len(items[0]) == 2 else None
    named = isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)
    return stacked([item[0] for item in items]), found, classes if named else None


def stacked(items: Sequence[Any]) -> np.ndarray:
    """Stack examples of one shape. Raises DataError at the first of another shape."""
    arrays = [array_of(item) for item in items]
    for k, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise DataError(f"x: example {k} is {array.shape}, the first is {arrays[0].shape}")
    return np.stack(arrays)


def array_of(x: Any) -> np.ndarray:
    """Convert a tensor, a picture or nested lists to an array. Raises DataError for others."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        array: np.ndarray = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        return array
    try:
        found = np.asarray(x)
    except ValueError as error:  # lists of different lengths
        raise DataError("lists of different lengths; give one shape for every example") from error
    if found.dtype.kind == "O":
        raise DataError(f"{type(x).__name__} is no array of numbers; give a tensor or an array")
    return found


def _at(
    path: Path,
    levels: int | None,
    layout: Layout | None,
    holdout: float,
    seed: int,
    standardise: bool,
) -> Dataset:
    """The data set at a path."""
    path, kind = path.expanduser(), kind_at(path)
    if kind == "arrays":
        return arrays(
            path, levels=levels, layout=layout, holdout=holdout, seed=seed, standardise=standardise
        )
    if levels is not None or layout is not None:
        raise DataError(f"{path}: levels and layout are of arrays, not pictures; leave them out")
    if kind == "folder":
        return image_folder(path, holdout=holdout, seed=seed)
    return idx_folder(path) if kind == "idx" else cifar_subset(path)


def kind_at(path: Path) -> str:
    """The loader that fits the files at a path: arrays, folder (of pictures), idx, cifar_subset.

    Raises DataError where nothing is there.
    """
    path = path.expanduser()
    with reading(path):
        require_there(path)
    if not path.is_dir():
        return "folder" if path.suffix.lower() in (".zip", ".tar") else "arrays"
    if any(path.glob("train-*.webp")) and (path / "train-labels.npy").is_file():
        return "cifar_subset"
    if holds_arrays(path):
        return "arrays"
    return "idx" if any(path.glob("*idx3*ubyte*")) else "folder"
