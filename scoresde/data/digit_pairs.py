"""Two digits side by side and a sentence that says which is where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from scoresde.arguments import Count, Natural, Range, check
from scoresde.data.columns import Captions
from scoresde.data.dataset import DataError, Dataset, Split, reading
from scoresde.data.idx import idx_folder
from scoresde.data.scaling import Scaling

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "{a} then {b}",
    "{a} before {b}",
    "{a} left of {b}",
    "{b} after {a}",
    "{b} right of {a}",
    "{b} preceded by {a}",
    "{a} followed by {b}",
)
"""Sentences about the digits a on the left and b on the right."""
FIRST_OFFSET, CHUNK = 3, 5000


def digit_pairs(
    path: Path | str,
    height: Annotated[int, Range(ge=8, multiple_of=2)] = 16,
    train: Count = 20_000,
    test: Count = 2_000,
    held_out: Annotated[int, Range(ge=0, le=90)] = 10,
    seed: Natural = 0,
) -> Dataset:
    """Canvases (1, height, 2 height) of two digits of MNIST, 256 levels, with sentences.

    The columns are "text", and the labels "left", "right" and "template". Training canvases are
    composed of the training digits only, test canvases of the test digits. The ``held_out`` pairs
    are in neither: they make up the part "held_out", of test digits. Every digit is on the left
    in one of ten held-out pairs and on the right in one: the k-th pair is
    (k mod 10, (k mod 10 + 3 + k div 10) mod 10).

    Args:
        path: folder with the four idx files of MNIST.
        height: side of a digit; below 28 digits are averaged over areas, above there is a margin.
        train: number of training canvases.
        test: number of test canvases, and of canvases of held-out pairs.
        held_out: number of pairs of digits that are not in training.
        seed: random seed of the pairs, the digits and the sentences.

    Raises DataError for files that are missing or damaged, or digits other than 0 to 9.
    """
    check(digit_pairs, locals())
    source = idx_folder(path)
    with reading(Path(path).expanduser()):
        if source.classes != tuple("0123456789"):
            raise DataError("expected the labels 0 to 9; give the folder of MNIST")
        k = np.arange(held_out)
        held = np.zeros((10, 10), bool)
        held[k % 10, (k % 10 + FIRST_OFFSET + k // 10) % 10] = True
        found = _canvases(source.train, ~held, height, train, [seed, 0])
        tested = _canvases(source.test, ~held, height, test, [seed, 1])
        parts = {}
        if held_out:
            parts["held_out"] = _canvases(source.test, held, height, test, [seed, 2])
    words = {"left": DIGITS, "right": DIGITS, "template": TEMPLATES}
    return Dataset("digit_pairs", found, tested, Scaling(256), words=words, parts=parts)


def _canvases(source: Split, allowed: np.ndarray, height: int, n: int, seed: list[int]) -> Split:
    """Canvases of pairs drawn uniformly from the allowed ones (10, 10), of random digits each."""
    rng = np.random.default_rng(seed)
    pairs = np.argwhere(allowed)[rng.integers(allowed.sum(), size=n)]  # (n, 2)
    assert source.label is not None
    label = source.label.numpy()
    by_digit = [np.flatnonzero(label == digit) for digit in range(len(DIGITS))]
    sizes = np.array([len(rows) for rows in by_digit])
    if not sizes.all():
        raise DataError(f"a part has no digit {sizes.argmin()}; give the whole of MNIST")
    place = (rng.random((n, 2)) * sizes[pairs]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    rows = np.concatenate(by_digit)[starts[pairs] + place]
    halves = [_resized(source.x[torch.from_numpy(side)].numpy(), height) for side in rows.T]
    template = rng.integers(len(TEMPLATES), size=n)
    texts = [
        TEMPLATES[t].format(a=DIGITS[a], b=DIGITS[b])
        for t, (a, b) in zip(template.tolist(), pairs.tolist(), strict=True)
    ]
    labels = {"left": pairs[:, 0], "right": pairs[:, 1], "template": template}
    columns = {name: torch.from_numpy(label.copy()) for name, label in labels.items()}
    x = torch.from_numpy(np.concatenate(halves, -1))
    return Split(x, columns={"text": Captions.of(texts), **columns})


def _resized(digits: np.ndarray, height: int) -> np.ndarray:
    """Digits (N, 1, H, W) as (N, 1, height, height): averaged over areas, or with a margin."""
    margins = [((height - side + 1) // 2, (height - side) // 2) for side in digits.shape[2:]]
    if all(low >= 0 for low, _ in margins):
        return np.pad(digits, [(0, 0), (0, 0), *margins])
    down, across = (_averaging(side, height) for side in digits.shape[2:])
    pieces = [
        np.rint(down @ digits[first : first + CHUNK].astype(np.float32) @ across.T)
        for first in range(0, len(digits), CHUNK)
    ]
    return np.concatenate(pieces).astype(np.uint8)


def _averaging(inputs: int, outputs: int) -> np.ndarray:
    """The matrix (outputs, inputs) whose rows average over equal parts of the inputs."""
    edges = np.arange(outputs + 1) * inputs / outputs
    pixel = np.arange(inputs)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    matrix: np.ndarray = np.clip(covered, 0, None) * (outputs / inputs)
    return matrix.astype(np.float32)
