"""Emoji of three styles with their names, tags and groups."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import numpy as np
import torch

from scoresde.arguments import Natural, Range, check
from scoresde.data.columns import Captions, Column
from scoresde.data.dataset import DataError, Dataset, Split, reading, require_folder
from scoresde.data.images import tiles
from scoresde.data.labels import numbered
from scoresde.data.scaling import Scaling

SIDE, WHITE = 32, 255
TEST = 0.05
"""Fraction of the concepts that are for testing."""
TRAINING, TESTING, HELD_OUT = range(3)
Styles = tuple[Literal["noto", "twemoji", "fluent"], ...]


class Row(TypedDict):
    """What is said of a tile; ``hex`` is the concept, in Unicode."""

    hex: str
    text: str
    tags: list[str]
    group: str
    skin: str
    style: str


def emoji(
    path: Path | str,
    size: Literal[32, 64] = 32,
    styles: Annotated[Styles, Range(length=1)] = ("noto", "twemoji", "fluent"),
    skin: bool = False,
    held_out: Natural = 20,
    seed: Natural = 0,
) -> Dataset:
    """Emoji (3, size, size) on white, 256 levels, with sentences, "style" and "group".

    An emoji has three sentences (column "text"): its name and style, "hot pepper, noto style";
    its name, "hot pepper"; and its tags and style, "hot, pepper, noto style". A twentieth of the
    concepts is for testing, in all styles. The part "held_out" has pictures of other concepts,
    each in a style in which training does not show the concept, and does show it in another one.
    Training has no copy of a picture of another part. Pictures of side 64 are those of side 32
    enlarged, every pixel copied to 2 x 2.

    Sources: Noto Emoji, Apache-2.0; Twemoji, CC BY 4.0, Twitter and contributors; Fluent Emoji,
    MIT, Microsoft; the names, tags and groups of emojibase, MIT.

    Args:
        path: folder with emoji32-*.webp, sheets of tiles in row-major order, and
            captions.jsonl.gz, an object a tile with hex, text, tags, group, skin and style.
        size: side of the pictures.
        styles: the styles that are read.
        skin: also read the variants with a tone of the skin, half of all; each is a concept.
        held_out: number of pictures of the part "held_out".
        seed: random seed of the concepts for testing, and of the held-out pictures.

    Raises DataError for files that are missing, damaged or do not belong together, or for fewer
    concepts of two styles than are held out.
    """
    check(emoji, locals())
    folder = Path(path).expanduser()
    with reading(folder):
        require_folder(folder)
        sheets = sorted(folder.glob("emoji32-*.webp"))
        if not sheets:
            raise DataError("no emoji32-*.webp; check the path")
    x = np.concatenate([tiles(sheet, SIDE) for sheet in sheets])
    rows = _captions(folder / "captions.jsonl.gz")
    with reading(folder):
        filled = np.flatnonzero((x != WHITE).any((1, 2, 3)))  # white ones fill up the last sheet
        if not np.array_equal(filled, np.arange(len(rows))):
            raise DataError(f"{len(filled)} tiles but {len(rows)} captions; get both anew")
        kept = [k for k, row in enumerate(rows) if row["style"] in styles]
        kept = [k for k in kept if skin or not rows[k]["skin"]]
        x, rows = x[kept], [rows[k] for k in kept]
        part = _parts(rows, x, held_out, seed)
    columns: dict[str, Column] = {"text": Captions.of(_sentences(row) for row in rows)}
    words = {}
    for name in ("style", "group"):
        values = np.array([row[name] for row in rows])
        (columns[name],), words[name], _ = numbered(values)
    enlarged = x.repeat(size // SIDE, 2).repeat(size // SIDE, 3)
    every = Split(torch.from_numpy(enlarged), columns=columns)
    train, test, *apart = (
        every.take(torch.from_numpy(np.flatnonzero(part == k)))
        for k in (TRAINING, TESTING, *[HELD_OUT] * bool(held_out))
    )
    parts = {"held_out": apart[0]} if apart else {}
    return Dataset("emoji", train, test, Scaling(256), words=words, parts=parts)


def _captions(file: Path) -> list[Row]:
    """The rows of the captions. Raises DataError for a missing or damaged file."""
    with reading(file):
        try:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                rows: list[Row] = [json.loads(line) for line in lines]
        except FileNotFoundError as error:
            raise DataError("no such file; check the path") from error
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"damaged or unreadable ({error}); get the file anew") from error
        for k, row in enumerate(rows):
            if not isinstance(row, dict) or not Row.__required_keys__ <= row.keys():
                keys = ", ".join(sorted(Row.__required_keys__))
                raise DataError(f"line {k + 1} is no object with {keys}; get the file anew")
    return rows


def _sentences(row: Row) -> tuple[str, ...]:
    style = f"{row['style']} style"
    return (f"{row['text']}, {style}", row["text"], f"{', '.join(row['tags'])}, {style}")


def _parts(rows: Sequence[Row], x: np.ndarray, held_out: int, seed: int) -> np.ndarray:
    """The part of every picture (N,); -1 for copies of pictures of another part."""
    rng = np.random.default_rng([seed, 0])
    concept = np.unique([row["hex"] for row in rows], return_inverse=True)[1]
    picture = np.unique(x.reshape(len(x), -1), axis=0, return_inverse=True)[1].reshape(-1)
    tested = rng.permutation(concept.max() + 1) < TEST * (concept.max() + 1)
    part = np.where(tested[concept], TESTING, TRAINING)
    part[(part == TRAINING) & np.isin(picture, picture[part == TESTING])] = -1
    training = part == TRAINING
    styles = np.bincount(concept[training], minlength=len(tested))
    once = np.bincount(picture)[picture] == 1
    candidates = rng.permutation(np.flatnonzero(training & once & (styles[concept] > 1)))
    first = np.sort(np.unique(concept[candidates], return_index=True)[1])[:held_out]
    if len(first) < held_out:
        raise DataError(
            f"{len(first)} concepts have a second style, and held_out is {held_out}; "
            f"give more styles, or hold out fewer"
        )
    part[candidates[first]] = HELD_OUT
    return part
