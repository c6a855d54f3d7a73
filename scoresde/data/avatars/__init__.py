"""Portraits in pixel art with exact sentences and attributes, which come with the package."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from scoresde.arguments import check
from scoresde.data.columns import Captions, Column
from scoresde.data.dataset import Dataset, Split
from scoresde.data.images import tiles
from scoresde.data.labels import numbered
from scoresde.data.scaling import Scaling

SIDE, TRAIN = 16, 7000
# Our names of the attributes, and those of the file.
ATTRIBUTES = {
    "hair_length": "hairLen",
    "hair": "hair",
    "shirt": "shirt",
    "skin": "skin",
    "background": "bg",
    "mood": "mood",
    "glasses": "glasses",
    "beard": "beard",
    "hat": "hat",
}


def avatars(size: Literal[16, 32, 64] = 16) -> Dataset:
    """8000 portraits (3, size, size), 256 levels, with a sentence and nine attributes each.

    The sentence (column "text") states all attributes, which are columns of labels. The first
    7000 are for training. Larger portraits repeat the pixels of those of side 16, which is what
    the artist's vector graphics show at that size. Source: DiceBear "Pixel Art", CC0 1.0.

    Args:
        size: side of the portraits.
    """
    check(avatars, locals())
    folder = Path(__file__).parent
    x = torch.from_numpy(tiles(folder / "avatars16.webp", SIDE))
    for axis in (2, 3):
        x = x.repeat_interleave(size // SIDE, axis)
    with gzip.open(folder / "captions.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    columns: dict[str, Column] = {"text": Captions.of(row["text"] for row in rows)}
    words = {}
    for name, key in ATTRIBUTES.items():
        values = [name if row[key] is True else row[key] or "none" for row in rows]
        (columns[name],), words[name], _ = numbered(np.array(values))
    every = Split(x, columns=columns)
    order = torch.arange(len(every))
    train, test = every.take(order[:TRAIN]), every.take(order[TRAIN:])
    return Dataset("avatars", train, test, Scaling(256), words=words)
