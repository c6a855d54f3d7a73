"""Training and test examples with their scaling, as every loader returns them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.data.file_kinds import kind_of
from scoresde.data.scaling import Scaling
from scoresde.data.shuffle import LARGEST_TABLE, scattered

# Numbers looked at at a time: a set in a memory map is never whole in memory.
CHUNK = 2**24


class DataError(ValueError):
    """Data that cannot be used; the message is one line that names the file and the remedy."""


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Prefix every `DataError` raised inside with the file or folder it is about."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{source}: {error}") from error


def require_there(path: Path) -> None:
    """Raise DataError where nothing is at a path, saying what a relative one is relative to."""
    if path.exists():
        return
    if path.is_absolute():
        raise DataError("no such file or folder; check the path")
    raise DataError(
        f"no such file or folder in the current folder, {Path.cwd()}; check the path, or give an "
        f"absolute one"
    )


def require_folder(path: Path) -> None:
    """Raise DataError unless there is a folder at a path, saying what there is instead."""
    require_there(path)
    if not path.is_dir():
        raise DataError(f"is {kind_of(path)}; give a folder")


class Examples(Protocol):
    """The source of training batches: a ``Split``, or a ``View`` of one."""

    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Split: ...


@dataclass(frozen=True)
class Split:
    """Examples `x` and their classes `label`, int64 (N,), or None.

    `x` holds integer levels (N, C, H, W), uint8 or int32 above 256 levels, or finite float32
    numbers (N, ...). `bounds` are numbers that all of `x` lies between; None looks for the least
    and the largest, in pieces. `mapped` says that `x` is a file, to be read in its order. Raises
    DataError if it is empty, holds NaN or infinity, or if the number of labels differs from the
    number of examples.
    """

    x: Tensor
    label: Tensor | None = None
    bounds: tuple[float, float] | None = None
    mapped: bool = False

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.numel() == 0:
            raise DataError(f"no examples in an array of shape {tuple(self.x.shape)}; check it")
        if self.bounds is None:
            object.__setattr__(self, "bounds", bounds_of(self.x))
        if not all(map(math.isfinite, self.bounds or ())):
            bad = sum(int((~torch.isfinite(piece)).sum()) for piece in _pieces(self.x))
            raise DataError(f"{bad} values are NaN, infinite or too large; remove or repair them")
        if self.label is not None and self.label.shape != (len(self),):
            raise DataError(
                f"{len(self)} examples but labels of shape {tuple(self.label.shape)}; "
                f"give one label for each example"
            )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Split:
        """The examples at `index`, in that order, in memory."""
        label = None if self.label is None else self.label[index]
        x = _in_file_order(self.x, index) if self.mapped else self.x[index]
        return Split(x, label, self.bounds if len(index) else None)


@dataclass(frozen=True)
class View:
    """The examples of a split at `rows(0), ..., rows(size - 1)`, not copied."""

    split: Split
    rows: Callable[[Tensor], Tensor]
    size: int

    def __len__(self) -> int:
        return self.size

    def take(self, index: Tensor) -> Split:
        """The examples at `index` of the view, in that order, in memory."""
        return self.split.take(self.rows(index))


def bounds_of(x: Tensor) -> tuple[float, float]:
    """The least and the largest value, NaN where there is one, found piece by piece."""
    ends = torch.stack([torch.stack(torch.aminmax(piece)) for piece in _pieces(x)])
    return float(ends[:, 0].amin()), float(ends[:, 1].amax())


def _pieces(x: Tensor) -> Iterator[Tensor]:
    yield from x.split(max(1, CHUNK // max(1, x[0].numel())))


def _in_file_order(x: Tensor, index: Tensor) -> Tensor:
    """x[index], read from the first row to the last."""
    ordered, place = index.sort()
    return x[ordered][place.argsort()]


@dataclass(frozen=True)
class Dataset:
    """Training and test examples with their scaling; `classes` names the labels 0, 1, ...

    `notes` are lines for the user: where the examples lie, and what was left out; `skipped` counts
    the pictures that were. Raises DataError where the two splits, the levels or the labels do not
    fit together.
    """

    name: str
    train: Split
    test: Split
    scaling: Scaling
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            train, test = tuple(self.shape), tuple(self.test.x.shape[1:])
            raise DataError(
                f"training examples are {train}, test examples {test}; make them alike"
            )
        for part, split in (("training", self.train), ("test", self.test)):
            _check_levels(split, self.scaling.levels, part)
            _check_labels(split.label, self.classes, part)

    @property
    def shape(self) -> torch.Size:
        """Shape of one example, (C, H, W) or (D,)."""
        return self.train.x.shape[1:]

    @property
    def counts(self) -> dict[str, int]:
        """Number of training examples of every class, by its name; empty without classes."""
        if self.classes is None or self.train.label is None:
            return {}
        found = self.train.label.bincount(minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist(), strict=True))


def _check_levels(split: Split, levels: int | None, part: str) -> None:
    if split.x.is_floating_point() != (levels is None):
        raise DataError(
            f"{part} values are {split.x.dtype} but levels is {levels}; levels need integers"
        )
    least, largest = split.bounds or bounds_of(split.x)
    if levels is not None and (least < 0 or largest >= levels):
        raise DataError(
            f"{part} levels run over {least:.0f}..{largest:.0f}, expected 0..{levels - 1}; "
            f"correct levels"
        )


def _check_labels(label: Tensor | None, classes: tuple[str, ...] | None, part: str) -> None:
    if (label is None) != (classes is None):
        raise DataError(f"{part} labels and class names must both be given, or neither")
    if label is None or classes is None:
        return
    if len(set(classes)) < len(classes):
        twice = next(name for k, name in enumerate(classes) if name in classes[:k])
        raise DataError(f"two classes are called {twice!r}; give each a name of its own")
    if int(label.min()) < 0 or int(label.max()) >= len(classes):
        found = f"{int(label.min())}..{int(label.max())}"
        raise DataError(
            f"{part} labels run over {found}, expected 0..{len(classes) - 1}; renumber"
        )


def listed_classes(folder: Path) -> tuple[str, ...] | None:
    """Names in the lines of `classes.txt` in the folder; None without that file."""
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"classes.txt is not UTF-8 text ({error}); write one name a line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def holdout(split: Split, size: int | float, seed: int = 0) -> tuple[Split, Split]:
    """(rest, held out): `size` examples, a count or fraction, split off by a fixed permutation.

    Both parts keep the order of `split`. Raises DataError unless both keep at least one example.
    """
    rest, held = held_rows(len(split), size, seed)
    return split.take(rest), split.take(held)


def held_rows(n: int, size: int | float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of ``holdout``: (rest, held out), each ascending. Raises DataError as it does."""
    count = held_count(n, size)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[count:].sort().values, order[:count].sort().values


def views(split: Split, size: int | float, seed: int = 0) -> tuple[View, View]:
    """(rest, held out) as ``holdout``, but nothing is copied, as suits a memory-mapped set.

    Above ``LARGEST_TABLE`` examples the rows are a bijection that is computed index by index.
    """
    n = len(split)
    if n <= LARGEST_TABLE:
        rest, held = held_rows(n, size, seed)
        return View(split, rest.__getitem__, len(rest)), View(split, held.__getitem__, len(held))
    count = held_count(n, size)

    def rows(start: int) -> Callable[[Tensor], Tensor]:
        return lambda index: scattered(index + start, n, seed)

    return View(split, rows(count), n - count), View(split, rows(0), count)


def spread(n: int, most: int) -> Tensor:
    """All of 0 .. n-1, or ``most`` of them, evenly spread with the first and the last, ascending.

    Of a set that is sorted by class they have the classes that it has.
    """
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def held_count(n: int, size: int | float) -> int:
    """The number of examples that are held out of ``n``: a fraction below 1, else a count.

    Raises DataError unless both parts keep at least one.
    """
    count = 0
    if 0 < size < math.inf:
        count = int(size) if size >= 1 and size == int(size) else max(1, round(size * n))
    if not 0 < count < n:
        remedy = f"a fraction, or a count below {n}" if n > 1 else "more examples"
        raise DataError(f"cannot hold out {size} of {n} examples; give {remedy}")
    return count
