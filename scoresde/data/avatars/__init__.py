"""Portraits in pixel art with exact sentences and attributes, which come with the package."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scoresde.arguments import Fraction, check
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


def avatars(size: Literal[16, 32, 64] = 16, partial: Fraction = 0.0) -> Dataset:
    """8000 portraits (3, size, size), 256 levels, with a sentence and nine attributes each.

    The sentence (column "text") states all attributes, which are columns of labels; no word on
    glasses, a beard or a hat says that there is none. The first 7000 are for training. Larger
    portraits repeat the pixels of those of side 16, which is what the artist's vector graphics
    show at that size. Source: DiceBear "Pixel Art", CC0 1.0.

    Args:
        size: side of the portraits.
        partial: fraction of the training portraits with a second sentence, which states some of
            the attributes, so that a model also learns short sentences, and what they leave open.
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
    if partial:
        rng = np.random.default_rng(0)
        both = [
            (row["text"], _partly(row, rng)) if rng.random() < partial else row["text"]
            for row in rows[:TRAIN]
        ]
        train = replace(train, columns={**train.columns, "text": Captions.of(both)})
    return Dataset("avatars", train, test, Scaling(256), words=words)


def _partly(row: Mapping[str, Any], rng: np.random.Generator) -> str:
    """A sentence that states each attribute of a portrait with probability one half."""

    def says() -> bool:
        return bool(rng.random() < 0.5)

    hair = [word for word in (row["hairLen"], row["hair"]) if says()]
    parts = [f"{row['skin']} skin"] if says() else []
    parts += [f"{' '.join(hair)} hair"] if hair else []
    parts += [_with_article(f"{row['shirt']} shirt")] if says() else []
    parts += [row["glasses"]] if row["glasses"] and says() else []
    parts += ["a beard"] if row["beard"] and says() else []
    if row["hat"] and says():
        parts += [_with_article(f"{row['hat']} hat") if says() else "a hat"]
    *first, last = parts or [""]
    listed = f"{', '.join(first)} and {last}" if first else last
    return " ".join(
        [f"a {row['mood']} person" if says() else "a person"]
        + [f"with {listed}"] * bool(parts)
        + [f"on {_with_article(row['bg'] + ' background')}"] * says()
    )


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
