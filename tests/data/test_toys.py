"""Densities in the plane: exact moments, supports, and seeds."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.data import checkerboard, gaussians25, moons, swiss_roll

TOYS = [moons, checkerboard, swiss_roll, gaussians25]
N = 100_000


def assert_mean(values, expected):
    """The mean of independent values within five standard errors."""
    values = values.double()
    error = (values.std() / math.sqrt(len(values))).item()
    assert abs(values.mean().item() - expected) < 5 * error


@pytest.mark.parametrize("toy", TOYS)
def test_shapes_and_seeds(toy):
    data = toy(300, 200, seed=3)
    assert data.shape == (2,)
    assert data.scaling.levels is None
    assert (len(data.train), len(data.test)) == (300, 200)
    assert data.train.x.dtype == torch.float32
    assert torch.equal(toy(300, 10, seed=3).train.x, data.train.x)
    assert torch.equal(toy(10, 200, seed=3).test.x, data.test.x)
    assert not torch.equal(toy(300, 200, seed=4).train.x, data.train.x)
    assert not torch.equal(data.train.x[:200], data.test.x)
    with pytest.raises(ValueError, match="test >= 1"):
        toy(10, 0)


def test_moons_have_their_moments():
    data = moons(N, 1)
    x, y = data.train.x.unbind(1)
    assert_mean(x, 0)
    assert_mean(y, 0)
    assert_mean(x**2, 0.75 + 0.01)
    assert_mean(y**2, 9 / 16 - 1 / math.pi + 0.01)


def test_moons_are_half_circles_up_to_noise():
    data = moons(N, 1)
    for label, centre in ((0, (-0.5, -0.25)), (1, (0.5, 0.25))):
        radius = (data.train.x[data.train.label == label] - torch.tensor(centre)).norm(dim=1)
        # The noise across the circle is 0.1; the one along it moves the radius by 0.1^2 / 2.
        assert_mean(radius, 1.005)
        assert radius.std().item() == pytest.approx(0.1, rel=0.02)


def test_checkerboard_fills_every_other_square_evenly():
    x = checkerboard(N, 1).train.x
    assert x.abs().max() <= 2
    cell = x.clamp(max=1.9999).floor().long()
    assert (cell.sum(1) % 2 == 0).all()
    counts = (4 * (cell[:, 0] + 2) + cell[:, 1] + 2).bincount()
    assert (counts > 0).sum() == 8
    assert (counts[counts > 0] - N / 8).abs().max() < 5 * math.sqrt(N / 8)
    for axis in x.unbind(1):
        assert_mean(axis, 0)
        assert_mean(axis**2, 4 / 3)
    assert_mean(x.prod(1), 1 / 4)


def test_swiss_roll_has_its_radius_and_angle():
    x = swiss_roll(N, 1).train.x
    low, high = 0.3 * math.pi, 0.9 * math.pi
    assert_mean(x.square().sum(1), (low**2 + low * high + high**2) / 3 + 2 * 0.05**2)
    radius = x.norm(dim=1)
    spiral = torch.stack([radius * (5 * radius).cos(), radius * (5 * radius).sin()], 1)
    assert (x - spiral).norm(dim=1).quantile(0.9) < 1.0


def test_gaussians_sit_on_the_grid():
    data = gaussians25(N, 1)
    x, label = data.train.x, data.train.label
    nearest = x.round()
    assert torch.equal(5 * (nearest[:, 0] + 2) + nearest[:, 1] + 2, label.float())
    assert data.classes[7] == "(-1,0)"
    assert nearest[label == 7].unique(dim=0).tolist() == [[-1, 0]]
    assert (label.bincount() - N / 25).abs().max() < 5 * math.sqrt(N / 25)
    for axis in (x - nearest).unbind(1):
        assert_mean(axis, 0)
        assert_mean(axis**2, 0.05**2)
