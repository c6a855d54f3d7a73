"""Error bars: exact for a mean, honest for distances, and the limit of many items."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.evaluation import by_halves, directions, frechet_distance, moments, share
from scoresde.evaluation import sliced_wasserstein as sliced


def normal(n, d, generator):
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def frechet(x, y):
    return frechet_distance(moments(x), moments(y))


def test_the_error_of_a_mean_is_its_standard_error():
    generator = torch.Generator().manual_seed(0)
    x = normal(100, 1, generator)
    found = by_halves(lambda a, b: float(a.mean()), x, x, 4000, generator)
    assert found.value == pytest.approx(float(x.mean()))
    assert found.error == pytest.approx(float(x.std()) / 10, rel=0.05)
    assert found.half == pytest.approx(found.value, abs=0.01)


def test_the_error_covers_a_sliced_distance():
    """Shifted Gaussians: the truth is |u . shift|, and a fixed number of errors holds it."""
    generator, lines = torch.Generator().manual_seed(1), torch.eye(2, dtype=torch.float64)[:1]
    off = []
    for _ in range(100):
        x, y = normal(200, 2, generator) + 2, normal(200, 2, generator)
        found = by_halves(lambda a, b: sliced(a, b, lines), x, y, 40, generator)
        off.append(abs(found.value - 2) / found.error)
    assert 0.88 <= sum(z < 1.96 for z in off) / 100 <= 0.99


def test_the_error_of_a_frechet_distance_is_its_spread():
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(60):
        x, y = normal(300, 3, generator) + 1, normal(300, 3, generator)
        found.append(by_halves(frechet, x, y, 20, generator))
    spread = float(torch.tensor([each.value for each in found]).std())
    error = sum(each.error for each in found) / 60
    assert error == pytest.approx(spread, rel=0.3)


def test_extrapolation_removes_what_few_items_add():
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(20):
        x, y = normal(200, 8, generator), normal(200, 8, generator)
        found.append(by_halves(frechet, x, y, 20, generator))
    plain = sum(each.value for each in found) / 20
    limit = sum(each.extrapolated for each in found) / 20
    assert plain > 0.1
    assert abs(limit) < plain / 5


def test_a_share_has_its_binomial_error():
    hits = torch.tensor([True] * 30 + [False] * 70)
    assert share(hits).value == pytest.approx(0.3)
    assert share(hits).error == pytest.approx(math.sqrt(0.3 * 0.7 / 100))


def test_halves_may_be_left_out_but_not_be_too_few():
    x, generator = torch.arange(6.0)[:, None], torch.Generator()
    assert math.isnan(by_halves(lambda a, b: 1.0, x, x, 0, generator).error)
    for resamples, items in ((1, 6), (5, 1)):
        with pytest.raises(ValueError, match="two of each"):
            by_halves(lambda a, b: 1.0, x[:items], x, resamples, generator)


def test_directions_stay_those_of_the_generator():
    u, v = (directions(3, 4, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(u, v)
