"""Emoji: sentences, and parts that share neither a concept nor a picture."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, emoji

STYLES = ("noto", "twemoji", "fluent")
ACROSS, PER_SHEET = 5, 100
CONCEPTS = 40


def write(folder, rows):
    """Sheets of tiles of one colour, filled up with white, and their captions."""
    tiles = np.full((-(-len(rows) // PER_SHEET) * PER_SHEET, 32, 32, 3), 255, np.uint8)
    for tile, row in zip(tiles, rows, strict=False):
        tile[:] = row["colour"]
        tile[:, 16:] //= 2
    for k, sheet in enumerate(np.split(tiles, len(tiles) // PER_SHEET)):
        grid = sheet.reshape(-1, ACROSS, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        picture = Image.fromarray(grid.reshape(-1, 32 * ACROSS, 3))
        picture.save(folder / f"emoji32-{k:02d}.webp", lossless=True)
    with gzip.open(folder / "captions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def rows():
    """Concepts in three styles and of two skins; the colour tells concept, style and skin.

    Concepts 0 and 1 look alike in the first style.
    """
    return [
        {
            "hex": f"{k:X}" + "-1F3FB" * skin,
            "text": f"thing {k}",
            "tags": ["a", f"tag {k}"],
            "group": f"group {k % 2}",
            "skin": "1F3FB" * skin,
            "style": style,
            "colour": (max(k, 1) if s == 0 else k, 10 * s, 100 * skin),
        }
        for skin in (False, True)
        for s, style in enumerate(STYLES)
        for k in range(CONCEPTS)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    write(root, rows())
    return root


def described(split):
    """(text, style) of every example."""
    return [tuple(text[0].split(", ")) for text in split.columns["text"]]


def concepts(split):
    return {text[1] for text in split.columns["text"]}


def pictures(*splits):
    return {x.numpy().tobytes() for split in splits for x in split.x}


def require_apart(data):
    """The laws of the parts, of any emoji."""
    train, test, held = data.train, data.test, data.parts["held_out"]
    assert not concepts(train) & concepts(test)
    assert not concepts(held) & concepts(test)
    assert not pictures(train) & pictures(test, held)
    assert not set(described(train)) & set(described(held))
    assert concepts(held) <= concepts(train)


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_share_nothing_that_would_give_them_away(folder, seed):
    data = emoji(folder, held_out=10, seed=seed)
    require_apart(data)
    assert len(data.parts["held_out"]) == len(concepts(data.parts["held_out"])) == 10
    assert len(data.test) == 3 * CONCEPTS // 20
    left_out = 3 * CONCEPTS - len(data.train) - len(data.test) - 10
    alike = {"thing 0", "thing 1"}
    assert left_out == (len(alike & concepts(data.test)) == 1)


def test_a_picture_belongs_to_its_sentences_and_labels(folder):
    data = emoji(folder)
    for split in (data.train, data.test, *data.parts.values()):
        for k, texts in enumerate(split.columns["text"]):
            style = data.words["style"][split.columns["style"][k]]
            concept = int(texts[1].removeprefix("thing "))
            assert texts == [
                f"thing {concept}, {style} style",
                f"thing {concept}",
                f"a, tag {concept}, {style} style",
            ]
            assert data.words["group"][split.columns["group"][k]] == f"group {concept % 2}"
            s = STYLES.index(style)
            shown = max(concept, 1) if s == 0 else concept
            assert split.x[k, :, 0, 0].tolist() == [shown, 10 * s, 0]


def test_skins_and_styles_are_left_out_unless_asked_for(folder):
    def size(**options):
        data = emoji(folder, held_out=0, **options)
        assert not data.parts
        return len(data.train) + len(data.test)

    count = 3 * CONCEPTS
    assert count - 1 <= size() <= count
    assert 2 * count - 2 <= size(skin=True) <= 2 * count
    assert size(styles=("twemoji", "fluent")) == 2 * count // 3
    assert emoji(folder, styles=("noto", "fluent")).words["style"] == ("fluent", "noto")


def test_larger_pictures_are_enlarged(folder):
    small, large = emoji(folder), emoji(folder, size=64)
    assert large.shape == (3, 64, 64)
    for down in (0, 1):
        for across in (0, 1):
            assert torch.equal(large.train.x[:, :, down::2, across::2], small.train.x)


def test_the_seed_decides(folder):
    one, same, other = (emoji(folder, seed=seed) for seed in (0, 0, 1))
    for name in ("train", "test"):
        assert described(getattr(one, name)) == described(getattr(same, name))
    assert described(one.parts["held_out"]) == described(same.parts["held_out"])
    assert described(one.parts["held_out"]) != described(other.parts["held_out"])


def test_what_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="no emoji32"):
        emoji(tmp_path)
    with pytest.raises(DataError, match="38 concepts have a second style, and held_out is 39"):
        emoji(folder, held_out=39)
    with pytest.raises(DataError, match="0 concepts"):
        emoji(folder, styles=("noto",))
    with pytest.raises(ValueError, match="at least 1 of styles"):
        emoji(folder, styles=())
    with pytest.raises(ValueError, match="need size one of 32, 64, got 16"):
        emoji(folder, size=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not gzip", "damaged or unreadable"),
        (gzip.compress(b"{}\n", mtime=0), "line 1 is no object with group, hex, "),
        (gzip.compress(b"{\n", mtime=0), "damaged or unreadable"),
    ],
)
def test_damaged_captions_are_refused(folder, tmp_path, content, message):
    for sheet in folder.glob("*.webp"):
        (tmp_path / sheet.name).write_bytes(sheet.read_bytes())
    if content is not None:
        (tmp_path / "captions.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=message) as found:
        emoji(tmp_path)
    assert "captions.jsonl.gz" in str(found.value)


@pytest.mark.parametrize("fewer", [-1, 1])
def test_other_captions_are_refused(tmp_path, fewer):
    """Also one caption less: what fills up the last sheet is white."""
    write(tmp_path, rows())
    changed = rows()[:-1] if fewer > 0 else [*rows(), rows()[0]]
    with gzip.open(tmp_path / "captions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in changed)
    with pytest.raises(DataError, match=f"{len(rows())} tiles but {len(changed)} captions"):
        emoji(tmp_path)


def test_the_emoji_themselves():
    folder = Path(os.environ.get("SCORESDE_DATA", "")) / "emoji"
    if "SCORESDE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("SCORESDE_DATA names no folder that holds emoji/")
    data = emoji(folder)
    require_apart(data)
    assert len(data.parts["held_out"]) == 20
    assert 4700 < len(data.train) < 5090 - 20 - len(data.test)
    assert len(concepts(data.train)) + len(concepts(data.test)) == 1911
    corners = data.train.x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all(1).all(1).double().mean() > 0.7  # on white
