"""A digest of the examples of a split, to tell whether two of them are the same."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from scoresde.data.dataset import Split, spread

WHOLE = 2**28
"""Bytes up to which every example counts."""
SAMPLED = 4096
"""Examples, evenly spread, that count of a larger set."""
CHUNK = 2**24


def digest(split: Split) -> str:
    """sha256 over type, shape and values of the examples and their labels, in hexadecimal.

    Of more than 256 MiB it is over 4096 examples, the first and the last among them, so that a
    set of any size takes about a second; all labels count.
    """
    total = hashlib.sha256()
    for part in (split.x, split.label):
        described = "none" if part is None else f"{part.dtype} {tuple(part.shape)}"
        total.update(described.encode())
        if part is not None:
            _add(total, part, _chosen(len(part), part.numel() * part.element_size()))
    return total.hexdigest()


def _chosen(n: int, size: int) -> Tensor:
    if size <= WHOLE:
        return torch.arange(n)
    return spread(n, SAMPLED)


def _add(total: Any, x: Tensor, rows: Tensor) -> None:
    """Hash some rows, a few at a time: of memory-mapped ones no more is read."""
    each = max(1, x[0].numel() * x.element_size())
    for some in rows.split(max(1, CHUNK // each)):
        total.update(x[some].contiguous().view(torch.uint8).numpy().tobytes())
