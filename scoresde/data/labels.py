"""Conversion of labels of any kind (numbers with gaps, names, one-hot rows) to classes 0, 1, ...

The label is the name of its class: labels 1, 2, 3 become the classes "1", "2", "3", stored as 0,
1, 2. A number is an index of a class only if no class is named by a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import DataError

MOST_CLASSES = 100_000


class Numbered(NamedTuple):
    """Labels of each array as int64 (N,), their class names, and notes for the user."""

    labels: tuple[Tensor, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def label_values(labels: Any) -> np.ndarray:
    """The label of every example (N,): int64, or strings.

    Accepts integers and whole floats of any width, bool and strings, as (N,) or (N, 1), and
    one-hot rows (N, K). Raises DataError for anything else.
    """
    try:
        y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError as error:  # lists of different lengths
        raise DataError("labels are lists of different lengths; give one for each") from error
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.ndim == 2 and _is_one_hot(y):
        y = y.argmax(1)
    if y.ndim != 1:
        raise DataError(
            f"labels have shape {y.shape}; give one number or name for each example, as (N,), or "
            f"one-hot rows"
        )
    if y.dtype.kind == "O" and all(isinstance(value, str) for value in y):
        y = y.astype(str)
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError("labels are bytes, not UTF-8; give integers or names") from error
    if y.dtype.kind == "U":
        return y
    if y.dtype.kind == "f":
        wide = y.astype(np.float64)
        whole = np.isfinite(wide) & (np.floor(wide) == wide) & (np.abs(wide) < 2**53)
        if not whole.all():
            raise DataError(
                f"labels are {y.dtype} such as {y[~whole][0]:g}, not whole numbers; give integers "
                f"or names, and no labels for a regression target"
            )
    elif y.dtype.kind not in "bui":
        raise DataError(f"labels are {y.dtype}; give integers or names")
    if y.dtype == np.uint64 and y.size and y.max() >= 2**63:
        raise DataError(f"labels run up to {y.max()}; number the classes 0, 1, ...")
    return y.astype(np.int64)


def numbered(*values: np.ndarray) -> Numbered:
    """Number the classes of all arrays, in the order of ``in_order``.

    Raises DataError for numbers mixed with names, or more than MOST_CLASSES classes.
    """
    if len({y.dtype.kind for y in values if y.size}) > 1:
        raise DataError("some labels are numbers and some are names; give one kind")
    distinct = np.unique(np.concatenate([y for y in values if y.size] or [np.zeros(0, np.int64)]))
    if len(distinct) > MOST_CLASSES:
        raise DataError(
            f"labels have {len(distinct)} different values, more than the {MOST_CLASSES} classes "
            f"allowed; leave the labels out"
        )
    spelled = [str(value) for value in distinct]
    classes = in_order(spelled)
    place = {name: k for k, name in enumerate(classes)}
    places = torch.tensor([place[name] for name in spelled], dtype=torch.int64)
    found = tuple(places[torch.from_numpy(np.searchsorted(distinct, y))] for y in values)
    return Numbered(found, classes, gaps(classes))


def placed(labels: Any, classes: Sequence[str]) -> Tensor:
    """The indices of labels among known classes, int64 (N,).

    A label is the name of its class, or an index if no class is named by a number. Raises
    DataError for other labels.
    """
    distinct, inverse = np.unique(label_values(labels), return_inverse=True)
    names = [str(value) for value in distinct]
    place = {name: k for k, name in enumerate(classes)}
    if not any(map(_is_number, classes)):
        place |= {str(k): k for k in range(len(classes))}
    strange = [name for name in names if name not in place]
    if strange:
        raise DataError(
            f"label {strange[0]} is none of the classes {listing(classes)}; correct the labels"
        )
    places = torch.tensor([place[name] for name in names], dtype=torch.int64)
    return places[torch.from_numpy(inverse.reshape(-1))]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names, sorted by value if all are integers, otherwise alphabetically."""
    unique = sorted(set(names))
    if all(map(_is_number, unique)):
        unique.sort(key=int)
    return tuple(unique)


def gaps(classes: Sequence[str]) -> tuple[str, ...]:
    """A note if the classes are numbers other than 0, 1, ..."""
    if not all(map(_is_number, classes)) or list(classes) == list(map(str, range(len(classes)))):
        return ()
    return (
        f"the labels are {listing(classes)}: a class is named by its label, and stored as its "
        f"place 0 to {len(classes) - 1}",
    )


def listing(names: Iterable[str], most: int = 10) -> str:
    """At most ``most`` names in a line: the first ones, and the last."""
    found = list(names)
    few = found if len(found) <= most else [*found[: most - 1], "...", found[-1]]
    return ", ".join(few)


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _is_one_hot(y: np.ndarray) -> bool:
    if y.dtype.kind not in "buif" or not y.size:
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())
