"""Maximum mean discrepancies: the double loop, and what unbiased means."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.evaluation import gaussian_mmd2, kid, kid_blocks, mmd2
from scoresde.evaluation.kernels import median_distance


def normal(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def double_loop(x, y, kernel):
    """The unbiased estimate, pair by pair."""
    inner = [
        sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(inner) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_is_the_double_loop():
    x, y = normal(7, 3), normal(5, 3, 1) + 1
    expected = double_loop(x, y, lambda a, b: (a @ b / 3 + 1) ** 3)
    assert kid(x, y) == pytest.approx(float(expected), abs=1e-12)


def test_mmd_is_the_double_loop():
    x, y = normal(6, 2), normal(8, 2, 1) + 1
    pairs = [float((a - b).norm()) for i, a in enumerate(y) for b in y[:i]]
    width = float(torch.tensor(pairs, dtype=torch.float64).median())
    assert median_distance(y) == pytest.approx(width)
    expected = double_loop(x, y, lambda a, b: math.exp(-float((a - b) @ (a - b)) / 2 / width**2))
    assert gaussian_mmd2(x, y) == pytest.approx(expected, abs=1e-12)
    assert gaussian_mmd2(x, y, width) == pytest.approx(expected, abs=1e-12)


def test_kid_of_one_law_is_zero_within_its_error():
    blocks = kid_blocks(normal(6000, 4), normal(6000, 4, 1), block=60)
    assert len(blocks) == 100
    assert abs(float(blocks.mean())) < 3 * float(blocks.std()) / 10
    assert float(blocks.min()) < 0  # unbiased about 0 means negative values


def test_small_blocks_are_no_more_biased_than_large_ones():
    """E[(a.b/D + 1)^3] of shifted normals in one dimension: 1 + 3 ab + 3 a^2 b^2 + a^3 b^3."""
    moment = {0.0: (0, 1, 0), 0.5: (0.5, 1.25, 1.625)}  # E a, E a^2, E a^3

    def kernel(p, q):
        return sum(c * a * b for c, a, b in zip((3, 3, 1), moment[p], moment[q], strict=True))

    expected = kernel(0.0, 0.0) + kernel(0.5, 0.5) - 2 * kernel(0.5, 0.0)
    x, y = normal(40_000, 1) + 0.5, normal(40_000, 1, 1)
    for block in (20, 1000):
        values = kid_blocks(x, y, block)
        error = float(values.std()) / math.sqrt(len(values))
        assert float(values.mean()) == pytest.approx(expected, abs=3 * error)


def test_a_linear_kernel_gives_the_distance_of_the_means():
    x, y = normal(3000, 2) + 1, normal(3000, 2, 1)
    assert mmd2(x, y, lambda a, b: a @ b.T) == pytest.approx(2, abs=0.25)


def test_points_that_coincide():
    assert median_distance(torch.zeros(5, 2)) == 1.0


@pytest.mark.parametrize(("x", "y"), [((1, 2), (5, 2)), ((5, 2), (5, 3)), ((5,), (5,))])
def test_features_that_do_not_fit(x, y):
    with pytest.raises(ValueError, match="features are"):
        kid(torch.zeros(x), torch.zeros(y))
