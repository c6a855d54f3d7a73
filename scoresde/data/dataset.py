"""Training and test examples with their scaling: the result of every loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from scoresde.data.columns import Column
from scoresde.data.file_kinds import kind_of
from scoresde.data.scaling import Scaling
from scoresde.data.shuffle import LARGEST_TABLE, scattered

# Numbers per piece, so that a memory-mapped set is never whole in memory.
CHUNK = 2**24
MEASURED = 2**22  # most numbers that a standard deviation is measured on


class DataError(ValueError):
    """Data cannot be used; the message is one line that names the file and a remedy."""


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Prefix every ``DataError`` raised inside with its file or folder."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{source}: {error}") from error


def require_there(path: Path) -> None:
    """Raise DataError if a path does not exist, with the folder that it is relative to."""
    if path.exists():
        return
    if path.is_absolute():
        raise DataError("no such file or folder; check the path")
    raise DataError(
        f"no such file or folder in the current folder, {Path.cwd()}; check the path, or give an "
        f"absolute one"
    )


def require_folder(path: Path) -> None:
    """Raise DataError, stating the kind of file, unless a path is a folder."""
    require_there(path)
    if not path.is_dir():
        raise DataError(f"is {kind_of(path)}; give a folder")


class Examples(Protocol):
    """The source of training batches: a ``Split``, or a ``View`` of one."""

    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Split: ...


@dataclass(frozen=True)
class Split:
    """Examples ``x`` and their classes ``label``, int64 (N,), or None.

    ``x`` holds integer levels (N, C, H, W), uint8 or int32 above 256 levels, or finite float32
    numbers (N, ...). All of ``x`` lies within ``bounds``; None computes them. ``mapped`` marks a
    memory-mapped ``x``, which is read in file order. ``columns`` hold further conditions by name,
    a row for each example. With ``std``, of the shape of ``x``, an example is a draw of
    N(x, std^2). Raises DataError for an empty ``x``, NaN or infinity, or if the number
    of labels or rows differs from the number of examples.
    """

    x: Tensor
    label: Tensor | None = None
    bounds: tuple[float, float] | None = None
    mapped: bool = False
    columns: Mapping[str, Column] = field(default_factory=dict, hash=False)
    std: Tensor | None = None

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
        for name, column in self.columns.items():
            _check_column(name, column, len(self))
        if self.std is not None and self.std.shape != self.x.shape:
            raise DataError(
                f"examples {tuple(self.x.shape)} but deviations {tuple(self.std.shape)}; give one "
                "for each number"
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def conditions(self) -> dict[str, Column]:
        """Every column by name, "label" among them."""
        return ({} if self.label is None else {"label": self.label}) | dict(self.columns)

    def take(self, index: Tensor) -> Split:
        """The examples at ``index``, in that order, in memory."""
        label = None if self.label is None else self.label[index]
        ordered, place = index.sort() if self.mapped else (index, None)

        def rows(part: Tensor) -> Tensor:  # mapped ones are read from the first to the last
            return part[index] if place is None else part[ordered][place.argsort()]

        columns = {
            name: column[index] if isinstance(column, Tensor) else column.take(index)
            for name, column in self.columns.items()
        }
        return Split(
            rows(self.x),
            label,
            self.bounds if len(index) else None,
            columns=columns,
            std=None if self.std is None else rows(self.std),
        )

    def drawn(self, generator: torch.Generator) -> Tensor:
        """The examples: ``x``, or with ``std`` a draw of N(x, std^2)."""
        if self.std is None:
            return self.x
        return self.x + self.std * torch.randn(self.x.shape, generator=generator)


@dataclass(frozen=True)
class View:
    """The examples ``rows(0), ..., rows(size - 1)`` of a split, without a copy."""

    split: Split
    rows: Callable[[Tensor], Tensor]
    size: int

    def __len__(self) -> int:
        return self.size

    def take(self, index: Tensor) -> Split:
        """The examples at ``index`` of the view, in that order, in memory."""
        return self.split.take(self.rows(index))


def _check_column(name: str, column: Column, n: int) -> None:
    if name in ("", "x", "label") or "." in name:
        raise DataError(f"column {name!r}: give it another name, without a dot")
    if len(column) != n:
        raise DataError(f"{n} examples but {len(column)} rows of {name!r}; give one for each")
    if isinstance(column, Tensor) and column.is_floating_point():
        bad = (~torch.isfinite(column)).flatten(1 if column.ndim > 1 else 0)
        if bool(bad.any()):
            k = int(bad.reshape(n, -1).any(1).nonzero()[0, 0])
            raise DataError(f"{name!r}: row {k} is not finite; remove or repair it")


def bounds_of(x: Tensor) -> tuple[float, float]:
    """The least and the largest value, or NaN, computed piece by piece."""
    ends = torch.stack([torch.stack(torch.aminmax(piece)) for piece in _pieces(x)])
    return float(ends[:, 0].amin()), float(ends[:, 1].amax())


def _pieces(x: Tensor) -> Iterator[Tensor]:
    yield from x.split(max(1, CHUNK // max(1, x[0].numel())))


@dataclass(frozen=True)
class Dataset:
    """Training and test examples with their scaling.

    Args:
        name: name of the data set.
        train: training examples.
        test: test examples.
        scaling: map from data to model units.
        classes: names of the labels 0, 1, ...
        notes: lines for the user, such as the place of a cache.
        skipped: number of pictures left out.
        words: names of the values 0, 1, ... of columns of labels, by column.
        parts: further examples for testing, by name.

    Raises DataError if splits, levels, labels and columns do not fit together.
    """

    name: str
    train: Split
    test: Split
    scaling: Scaling
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    skipped: int = 0
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    parts: Mapping[str, Split] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for part, split in {"training": self.train, "test": self.test, **self.parts}.items():
            if split.x.shape[1:] != self.shape:
                train, other = tuple(self.shape), tuple(split.x.shape[1:])
                raise DataError(
                    f"training examples are {train}, {part} examples {other}; make them alike"
                )
            if _kinds(split) != _kinds(self.train):
                raise DataError(
                    f"training examples have the columns {_kinds(self.train)}, {part} examples "
                    f"{_kinds(split)}; make them alike"
                )
            _check_levels(split, self.scaling.levels, part)
            _check_labels(split.label, self.classes, part)
            for name, words in self.words.items():
                column = split.columns.get(name)
                _check_labels(column if isinstance(column, Tensor) else None, words, part, name)

    @property
    def shape(self) -> torch.Size:
        """Shape of one example, (C, H, W) or (D,)."""
        return self.train.x.shape[1:]

    @cached_property
    def std(self) -> float:
        """Standard deviation of the training examples in model units, about one common mean.

        Of large sets, evenly spread examples are measured.
        """
        most = max(2, MEASURED // self.shape.numel())
        some = self.train.take(spread(len(self.train), most))
        x = self.scaling.encode(some.x).double()
        if some.std is None:
            return float(x.std(correction=0))
        noise = self.scaling.encode(some.x + some.std).double() - x
        return float((x.var(correction=0) + noise.square().mean()).sqrt())

    @property
    def conditions(self) -> dict[str, Column]:
        """Every column of the training examples by name, "label" among them."""
        return self.train.conditions

    @property
    def counts(self) -> dict[str, int]:
        """Number of training examples by class name; empty without classes."""
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


def _kinds(split: Split) -> dict[str, str]:
    """The kind of each column in words."""
    return {
        name: f"{str(column.dtype).removeprefix('torch.')} {tuple(column.shape[1:])}"
        if isinstance(column, Tensor)
        else type(column).__name__
        for name, column in sorted(split.columns.items())
    }


def _check_labels(
    label: Tensor | None, classes: tuple[str, ...] | None, part: str, name: str = "labels"
) -> None:
    if (label is None) != (classes is None):
        raise DataError(f"{part} {name} and class names must both be given, or neither")
    if label is None or classes is None:
        return
    if len(set(classes)) < len(classes):
        twice = next(name for k, name in enumerate(classes) if name in classes[:k])
        raise DataError(f"two classes are called {twice!r}; give each a name of its own")
    if int(label.min()) < 0 or int(label.max()) >= len(classes):
        found = f"{int(label.min())}..{int(label.max())}"
        raise DataError(
            f"{part} {name} run over {found}, expected 0..{len(classes) - 1}; renumber"
        )


def listed_classes(folder: Path) -> tuple[str, ...] | None:
    """The lines of ``classes.txt`` in the folder; None without that file."""
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
    """(rest, held out): hold out ``size`` examples, a count or a fraction, at random.

    Both parts preserve the order of ``split``. Raises DataError if one of them would be empty.
    """
    rest, held = held_rows(len(split), size, seed)
    return split.take(rest), split.take(held)


def held_rows(n: int, size: int | float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of ``holdout``, each ascending. Raises DataError as it does."""
    count = held_count(n, size)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[count:].sort().values, order[:count].sort().values


def views(split: Split, size: int | float, seed: int = 0) -> tuple[View, View]:
    """``holdout`` without a copy, for memory-mapped sets.

    Above ``LARGEST_TABLE`` examples a bijection computes the rows index by index.
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
    """At most ``most`` of the indices 0 .. n-1, evenly spread from the first to the last."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def held_count(n: int, size: int | float) -> int:
    """The number of held-out examples of ``n`` for a fraction below 1, or a count.

    Raises DataError if one part would be empty.
    """
    count = 0
    if 0 < size < math.inf:
        count = int(size) if size >= 1 and size == int(size) else max(1, round(size * n))
    if not 0 < count < n:
        remedy = f"a fraction, or a count below {n}" if n > 1 else "more examples"
        raise DataError(f"cannot hold out {size} of {n} examples; give {remedy}")
    return count
