"""Densities in the plane, drawn from a seed; training and test points are separate streams."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from scoresde.data.dataset import DataError, Dataset, Split
from scoresde.data.scaling import Scaling

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray | None]]


def moons(n_train: int = 20_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius 1, centred, plus noise of deviation 0.1."""
    return _toy("moons", _moons, n_train, n_test, seed, ("upper", "lower"))


def checkerboard(n_train: int = 20_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """Uniform on the unit squares of [-2, 2]^2 whose lower left corner has an even sum."""
    return _toy("checkerboard", _checkerboard, n_train, n_test, seed)


def swiss_roll(n_train: int = 20_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """(r cos 5r, r sin 5r), r uniform on [0.3 pi, 0.9 pi], plus noise of deviation 0.05."""
    return _toy("swiss_roll", _swiss_roll, n_train, n_test, seed)


def gaussians25(n_train: int = 20_000, n_test: int = 2_000, seed: int = 0) -> Dataset:
    """25 equal Gaussians of deviation 0.05 on the grid {-2, -1, 0, 1, 2}^2; 25 classes."""
    names = tuple(f"({a},{b})" for a in range(-2, 3) for b in range(-2, 3))
    return _toy("gaussians25", _gaussians25, n_train, n_test, seed, names)


def _toy(
    name: str,
    draw: Draw,
    n_train: int,
    n_test: int,
    seed: int,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    train, test = (_points(name, draw, n, [seed, k]) for k, n in enumerate((n_train, n_test)))
    return Dataset(name, train, test, Scaling(None), classes)


def _points(name: str, draw: Draw, n: int, seed: list[int]) -> Split:
    if n < 1:
        raise DataError(f"{name}: {n} points asked for; give at least 1")
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
