"""What every loader returns: training and test examples with their scaling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.data.scaling import Scaling

MOST_CLASSES = 100_000
"""Numbered by labels alone, which may be anything in a damaged file."""


class DataError(ValueError):
    """Data that cannot be used; the message is one line that names the file and the remedy."""


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Prefix every `DataError` raised inside with the file or folder it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


@dataclass(frozen=True)
class Split:
    """Examples `x` and their classes `label`, int64 (N,), or None.

    `x` holds integer levels (N, C, H, W), uint8 or int32 above 256 levels, or finite float32
    numbers (N, ...). Raises DataError if it is empty, holds NaN or infinity, or has as many
    labels as it has not examples.
    """

    x: Tensor
    label: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.numel() == 0:
            raise DataError(f"no examples in an array of shape {tuple(self.x.shape)}; check it")
        if self.x.is_floating_point() and not bool(torch.isfinite(self.x).all()):
            bad = int((~torch.isfinite(self.x)).sum())
            raise DataError(f"{bad} values are NaN, infinite or too large; remove or repair them")
        if self.label is not None and self.label.shape != (len(self),):
            raise DataError(
                f"{len(self)} examples but labels of shape {tuple(self.label.shape)}; "
                f"give one label for each example"
            )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Split:
        """The examples at `index`, in that order."""
        return Split(self.x[index], None if self.label is None else self.label[index])


@dataclass(frozen=True)
class Dataset:
    """Training and test examples with their scaling; `classes` names the labels 0, 1, ...

    Raises DataError where the two splits, the levels or the labels do not fit together.
    """

    name: str
    train: Split
    test: Split
    scaling: Scaling
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            train, test = tuple(self.shape), tuple(self.test.x.shape[1:])
            raise DataError(
                f"training examples are {train}, test examples {test}; make them alike"
            )
        for part, split in (("training", self.train), ("test", self.test)):
            _check_levels(split.x, self.scaling.levels, part)
            _check_labels(split.label, self.classes, part)

    @property
    def shape(self) -> torch.Size:
        """Shape of one example, (C, H, W) or (D,)."""
        return self.train.x.shape[1:]


def _check_levels(x: Tensor, levels: int | None, part: str) -> None:
    if x.is_floating_point() != (levels is None):
        raise DataError(
            f"{part} values are {x.dtype} but levels is {levels}; levels need integers"
        )
    if levels is not None and (int(x.min()) < 0 or int(x.max()) >= levels):
        found = f"{int(x.min())}..{int(x.max())}"
        raise DataError(
            f"{part} levels run over {found}, expected 0..{levels - 1}; correct levels"
        )


def _check_labels(label: Tensor | None, classes: tuple[str, ...] | None, part: str) -> None:
    if (label is None) != (classes is None):
        raise DataError(f"{part} labels and class names must both be given, or neither")
    if label is None or classes is None:
        return
    if int(label.min()) < 0 or int(label.max()) >= len(classes):
        found = f"{int(label.min())}..{int(label.max())}"
        raise DataError(
            f"{part} labels run over {found}, expected 0..{len(classes) - 1}; renumber"
        )


def numbered_classes(*splits: Split) -> tuple[str, ...] | None:
    """Names "0", "1", ... up to the largest label of the splits; None where none has labels."""
    labels = [split.label for split in splits if split.label is not None]
    if not labels:
        return None
    largest = max(int(label.max()) for label in labels)
    if largest >= MOST_CLASSES:
        raise DataError(f"labels run up to {largest}; number the classes 0, 1, ...")
    return tuple(str(k) for k in range(1 + largest))


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
    n = len(split)
    count = size if isinstance(size, int) else max(1, round(size * n))
    if not size > 0 or not 0 < count < n:
        remedy = f"a share, or a count below {n}" if n > 1 else "more examples"
        raise DataError(f"cannot hold out {size} of {n} examples; give {remedy}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return split.take(order[count:].sort().values), split.take(order[:count].sort().values)


def batch_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """The `batch` indices into `n` examples that training step `step` = 0, 1, ... visits, int64.

    A function of (seed, step) alone, so a resumed run continues exactly. Steps read one endless
    stream of permutations of 0 .. n-1, one an epoch: every example comes once an epoch, a batch
    may straddle epochs, and one larger than `n` wraps around. Raises ValueError for sizes below
    1.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ValueError(f"n {n}, batch {batch}, step {step}: sizes start at 1, steps at 0")
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // n, (last - 1) // n + 1)
    return torch.cat(
        [_permutation(n, seed, e)[max(first - e * n, 0) : last - e * n] for e in epochs]
    )


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
