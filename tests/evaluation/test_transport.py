"""Wasserstein distances: permutations by brute force, lines by sorting, Gaussians in the mean."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from scoresde.evaluation import directions, sliced_wasserstein, wasserstein
from scoresde.evaluation.transport import squared_on_a_line


def normal(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def lines(n, d):
    return directions(n, d, torch.Generator().manual_seed(5))


def test_the_exact_distance_is_the_least_over_permutations():
    pytest.importorskip("scipy")
    x, y = normal(6, 3), normal(6, 3, 1)
    least = min(
        float((x - y[list(order)]).square().sum(1).mean()) for order in permutations(range(6))
    )
    assert wasserstein(x, y) == pytest.approx(math.sqrt(least), rel=1e-12)


def test_on_the_line_it_is_that_of_the_sorted_points():
    pytest.importorskip("scipy")
    x, y = normal(50, 1), 3 * normal(50, 1, 1)
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert wasserstein(x, y) == pytest.approx(float(expected), rel=1e-10)
    assert sliced_wasserstein(x, y, lines(3, 1)) == pytest.approx(float(expected), rel=1e-10)


def test_a_shift_is_its_length():
    pytest.importorskip("scipy")
    x = normal(40, 3)
    assert wasserstein(x, x + torch.tensor([1.0, 2, 2])) == pytest.approx(3, rel=1e-12)


def test_unequal_numbers_on_the_line():
    """As if every point were repeated until the numbers agree."""
    x, y = normal(6, 4), normal(10, 4, 1)
    even = x.repeat_interleave(5, 0).sort(0).values - y.repeat_interleave(3, 0).sort(0).values
    assert torch.allclose(squared_on_a_line(x, y), even.square().mean(0), atol=1e-14)


def test_shifted_gaussians_along_lines():
    """|shift|^2 / D in the mean over directions."""
    x, shift = normal(500, 8), torch.arange(8).double()
    found = sliced_wasserstein(x, x + shift, lines(20_000, 8))
    assert found == pytest.approx(math.sqrt(float(shift @ shift) / 8), rel=0.02)


def test_directions_are_unit_and_uniform():
    u = lines(20_000, 3)
    assert torch.allclose(u.square().sum(1), torch.ones(20_000, dtype=torch.float64))
    assert torch.allclose(u.T @ u / 20_000, torch.eye(3, dtype=torch.float64) / 3, atol=0.01)


def test_points_that_do_not_fit():
    for x, y in ((normal(3, 2), normal(4, 2)), (normal(3, 2), normal(3, 1))):
        with pytest.raises(ValueError, match="points are"):
            wasserstein(x, y)
    with pytest.raises(ValueError, match="points and lines"):
        sliced_wasserstein(normal(3, 2), normal(3, 2), lines(2, 3))
