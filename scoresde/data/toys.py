"""Two-dimensional toy densities; training and test points have separate random streams."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from scoresde.arguments import Count, Natural, check
from scoresde.data.dataset import Dataset, Split
from scoresde.data.scaling import Scaling

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray | None]]


def moons(train: Count = 20_000, test: Count = 2_000, seed: Natural = 0) -> Dataset:
    """Two interleaved half circles of radius 1, centred, plus noise of deviation 0.1.

    Args:
        train: number of training points.
        test: number of test points.
        seed: seed of the points.
    """
    check(moons, locals())
    return _toy("moons", _moons, train, test, seed, ("upper", "lower"))


def checkerboard(train: Count = 20_000, test: Count = 2_000, seed: Natural = 0) -> Dataset:
    """Uniform on the unit squares of [-2, 2]^2 whose lower left corner has an even sum.

    Args:
        train: number of training points.
        test: number of test points.
        seed: seed of the points.
    """
    check(checkerboard, locals())
    return _toy("checkerboard", _checkerboard, train, test, seed)


def swiss_roll(train: Count = 20_000, test: Count = 2_000, seed: Natural = 0) -> Dataset:
    """(r cos 5r, r sin 5r), r uniform on [0.3 pi, 0.9 pi], plus noise of deviation 0.05.

    Args:
        train: number of training points.
        test: number of test points.
        seed: seed of the points.
    """
    check(swiss_roll, locals())
    return _toy("swiss_roll", _swiss_roll, train, test, seed)


def gaussians25(train: Count = 20_000, test: Count = 2_000, seed: Natural = 0) -> Dataset:
    """25 equal Gaussians of deviation 0.05 on the grid {-2, -1, 0, 1, 2}^2; 25 classes.

    Args:
        train: number of training points.
        test: number of test points.
        seed: seed of the points.
    """
    check(gaussians25, locals())
    names = tuple(f"({a},{b})" for a in range(-2, 3) for b in range(-2, 3))
    return _toy("gaussians25", _gaussians25, train, test, seed, names)


def _toy(
    name: str,
    draw: Draw,
    train: int,
    test: int,
    seed: int,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    # Not standardised: the densities are known in these units, and their deviation is about 1.
    parts = _points(draw, train, [seed, 0]), _points(draw, test, [seed, 1])
    return Dataset(name, *parts, Scaling(), classes)


def _points(draw: Draw, n: int, seed: list[int]) -> Split:
    x, label = draw(n, np.random.default_rng(seed))
    return Split(torch.from_numpy(x).float(), None if label is None else torch.from_numpy(label))


def _moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    a, lower = rng.uniform(0, math.pi, n), rng.integers(0, 2, n)
    upper_moon = np.stack([np.cos(a), np.sin(a)], 1)
    lower_moon = np.stack([1 - np.cos(a), 0.5 - np.sin(a)], 1)
    x = np.where(lower[:, None] == 1, lower_moon, upper_moon) - np.array([0.5, 0.25])
    return x + 0.1 * rng.standard_normal((n, 2)), lower


def _checkerboard(n: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    column = rng.integers(-2, 2, n)
    row = 2 * rng.integers(-1, 1, n) + column % 2
    return np.stack([column, row], 1) + rng.uniform(0, 1, (n, 2)), None


def _swiss_roll(n: int, rng: np.random.Generator) -> tuple[np.ndarray, None]:
    r = rng.uniform(0.3 * math.pi, 0.9 * math.pi, n)
    x = r[:, None] * np.stack([np.cos(5 * r), np.sin(5 * r)], 1)
    return x + 0.05 * rng.standard_normal((n, 2)), None


def _gaussians25(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = rng.integers(0, 25, n)
    mean = np.stack([label // 5 - 2, label % 5 - 2], 1)
    return mean + 0.05 * rng.standard_normal((n, 2)), label
