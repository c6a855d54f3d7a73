"""A digest of the examples of a split, to compare data sets."""

from __future__ import annotations

import hashlib

import torch

from scoresde.data.columns import flat
from scoresde.data.dataset import Split, spread

WHOLE = 2**28
"""Bytes up to which all examples are hashed."""
SAMPLED = 4096
"""Evenly spread examples that are hashed of a larger set."""
CHUNK = 2**24


def digest(split: Split) -> str:
    """sha256 of dtype, shape and values of the examples, labels and columns, in hexadecimal.

    Above 256 MiB, 4096 evenly spread examples are hashed, which takes about a second.
    """
    total = hashlib.sha256()
    columns = sorted(flat(split.columns).items())
    for name, part in (("", split.x), ("", split.label), *columns):
        described = "none" if part is None else f"{part.dtype} {tuple(part.shape)}"
        total.update(f"{name}{described}".encode())
        if part is not None:
            most = len(part) if part.numel() * part.element_size() <= WHOLE else SAMPLED
            each = max(1, part[:1].numel() * part.element_size())
            for rows in spread(len(part), most).split(max(1, CHUNK // each)):
                total.update(part[rows].contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
