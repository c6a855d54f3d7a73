"""Precision, recall, density and coverage: sets whose answers are known."""

from __future__ import annotations

import pytest
import torch

from scoresde.evaluation import coverage, density, precision, recall
from scoresde.evaluation.neighbours import inside

ALL = (precision, recall, density, coverage)


def normal(n, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_identical_sets():
    x = normal(200)
    assert precision(x, x) == recall(x, x) == coverage(x, x) == 1
    assert density(x, x) >= 1


def test_disjoint_sets():
    x, y = normal(200), normal(200, seed=1) + 100
    assert [measure(x, y) for measure in ALL] == [0, 0, 0, 0]


def test_a_dropped_mode_costs_recall_and_coverage_only():
    y = torch.cat([normal(300), normal(300, seed=1) + 100])
    x = normal(300, seed=2)
    assert precision(x, y) > 0.8
    assert density(x, y) == pytest.approx(1, abs=0.15)
    assert recall(x, y) < 0.5
    assert coverage(x, y) < 0.5


def test_an_invented_mode_costs_precision_only():
    x = torch.cat([normal(300), normal(300, seed=1) + 100])
    y = normal(300, seed=2)
    assert precision(x, y) < 0.5
    assert density(x, y) < 0.6
    assert recall(x, y) > 0.8
    assert coverage(x, y) > 0.9


def test_coverage_of_the_same_law_is_as_expected():
    """1 - 2^-k for as many points of each."""
    assert coverage(normal(3000), normal(3000, seed=1), k=2) == pytest.approx(0.75, abs=0.03)


def test_definition_on_the_line():
    y = torch.tensor([[0.0], [1.0], [5.0]])  # radii to the nearest: 1, 1, 4
    x = torch.tensor([[-0.5], [1.5], [20.0]])  # in the balls of 0, 1 and 5, and of none
    found = inside(x, y, k=1)
    assert found.balls.tolist() == [1, 2, 0]
    assert found.points.tolist() == [1, 1, 1]


def test_chunks_change_nothing():
    x, y = normal(2300), normal(1700, seed=1)
    radius = torch.cdist(y.double(), y.double()).kthvalue(4, 1).values
    within = torch.cdist(x.double(), y.double()) <= radius
    assert torch.equal(inside(x, y, 3).balls, within.sum(1))
    assert torch.equal(inside(x, y, 3).points, within.sum(0))


def test_units_and_places_change_nothing():
    x, y = normal(100), normal(120, seed=1) + 0.5
    for measure in ALL:
        assert measure(x * 8 - 3, y * 8 - 3) == pytest.approx(measure(x, y))


@pytest.mark.parametrize("measure", ALL)
def test_too_few_or_unlike(measure):
    with pytest.raises(ValueError, match="give more points"):
        measure(normal(3), normal(3))
    with pytest.raises(ValueError, match="expected"):
        measure(normal(9, 2), normal(9, 3))
