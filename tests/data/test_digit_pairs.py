"""Pairs of digits: the sentence says which digit is where, and held-out pairs stay out."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.data import DataError, digit_pairs, idx_folder
from scoresde.data.digit_pairs import DIGITS, TEMPLATES
from scoresde.data.digit_pairs import _resized as resized

# A sentence read with a grammar of its own: the words between the digits say which is on the left.
FIRST_ON_THE_LEFT = {"then", "before", "left of", "followed by"}
SECOND_ON_THE_LEFT = {"after", "right of", "preceded by"}
SENTENCE = re.compile(r"(\w+) (then|before|left of|followed by|after|right of|preceded by) (\w+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits whose shade tells digit and part: 20 d + 1 for training, 20 d + 2 for testing."""
    root = tmp_path_factory.mktemp("mnist")
    for part, shade in (("train", 1), ("t10k", 2)):
        label = np.random.default_rng(shade).permutation(np.arange(50) % 10).astype(np.uint8)
        x = np.broadcast_to((20 * label + shade)[:, None, None], (50, 28, 28))
        for kind, array in (("images-idx3", x), ("labels-idx1", label)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (root / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return root


def splits(data):
    return {"train": data.train, "test": data.test, **data.parts}


def pairs(split):
    return torch.stack([split.columns["left"], split.columns["right"]], 1)


def test_the_digits_are_where_the_columns_and_the_sentence_say(folder):
    data = digit_pairs(folder, train=400, test=100)
    assert data.shape == (1, 16, 32)
    for name, split in splits(data).items():
        shade = 1 if name == "train" else 2
        halves = torch.stack([half.flatten(1)[:, 0] for half in split.x.chunk(2, -1)], 1)
        assert torch.equal(halves.long(), 20 * pairs(split) + shade)
        seen = set()
        for text, pair in zip(split.columns["text"], pairs(split).tolist(), strict=True):
            first, words, second = SENTENCE.fullmatch(text).groups()
            both = [DIGITS.index(first), DIGITS.index(second)]
            assert pair == (both if words in FIRST_ON_THE_LEFT else both[::-1])
            seen.add(words)
        assert seen == FIRST_ON_THE_LEFT | SECOND_ON_THE_LEFT
        assert len(seen) == len(TEMPLATES)


@pytest.mark.parametrize("held_out", [1, 10, 25, 90])
def test_held_out_pairs_never_meet_in_training(folder, held_out):
    data = digit_pairs(folder, train=2000, test=500, held_out=held_out)
    seen, tested, apart = ({tuple(p) for p in pairs(s).tolist()} for s in splits(data).values())
    assert not apart & (seen | tested)
    assert len(apart) == held_out
    assert len(seen) == 100 - held_out
    if held_out >= 10:  # no digit is missing on a side, in training or apart
        for found in (seen, apart):
            assert {a for a, _ in found} == {b for _, b in found} == set(range(10))


def test_the_seed_decides_the_canvases_and_not_the_pairs(folder):
    one, same, other = (digit_pairs(folder, train=100, test=50, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.train.x, same.train.x)
    assert list(one.train.columns["text"]) == list(same.train.columns["text"])
    assert list(one.train.columns["text"]) != list(other.train.columns["text"])
    found = [{tuple(p) for p in pairs(d.parts["held_out"]).tolist()} for d in (one, other)]
    assert found[0] == found[1]
    assert not digit_pairs(folder, train=10, test=10, held_out=0).parts


@pytest.mark.parametrize("height", [8, 14, 16, 20])
def test_areas_are_averaged(height):
    digits = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8)
    # Every pixel as height x height equal ones, of which 28 x 28 make one of the result.
    fine = digits.repeat(height, 2).repeat(height, 3)
    mean = fine.reshape(3, 1, height, 28, height, 28).mean((3, 5))
    assert np.abs(resized(digits, height) - mean).max() <= 0.5 + 1e-4


def test_a_margin_above_the_size_of_a_digit():
    digits = np.full((2, 1, 28, 28), 7, np.uint8)
    assert np.array_equal(resized(digits, 28), digits)
    found = resized(digits, 32)
    assert np.array_equal(found[:, :, 2:-2, 2:-2], digits)
    assert found.sum() == digits.sum()


def test_other_sets_are_refused(tmp_path, folder):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "classes.txt").write_text("\n".join(f"item {k}" for k in range(10)))
    with pytest.raises(DataError, match="expected the labels 0 to 9"):
        digit_pairs(tmp_path)


def test_the_real_digits():
    folder = Path(os.environ.get("SCORESDE_DATA", "")) / "mnist"
    if "SCORESDE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("SCORESDE_DATA names no folder that holds mnist/")
    data = digit_pairs(folder, height=28, train=200, test=50)
    source = idx_folder(folder)
    digits = zip(source.train.x, source.train.label.tolist(), strict=True)
    known = {x.numpy().tobytes(): label for x, label in digits}
    for side, half in zip(("left", "right"), data.train.x.chunk(2, -1), strict=True):
        found = [known[x.contiguous().numpy().tobytes()] for x in half]
        assert found == data.train.columns[side].tolist()
