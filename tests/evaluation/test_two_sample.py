"""The classifier two-sample test: chance on one law, and power where only shapes differ."""

from __future__ import annotations

import pytest
import torch

from scoresde.evaluation import two_sample_test


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def judged(x, y, seed):
    return two_sample_test(x, y, torch.Generator().manual_seed(seed))


def test_one_law_is_told_apart_by_chance():
    found = [judged(normal(300, 5, 2 * k), normal(300, 5, 2 * k + 1), k) for k in range(12)]
    assert all(abs(each.value - 0.5) < 3.5 * each.error for each in found)
    mean = sum(each.value for each in found) / 12
    assert mean == pytest.approx(0.5, abs=3 * 0.5 / (12 * 300) ** 0.5)


def test_different_means_and_different_shapes_are_seen():
    x = normal(600, 2, 0)
    assert judged(x, normal(600, 2, 1) + 4, 0).value > 0.95
    ring = 1.5 * normal(600, 2, 1) / normal(600, 2, 1).norm(dim=1, keepdim=True)  # same mean
    assert judged(x, ring, 0).value > 0.75


def test_stray_samples_do_not_hide_the_rest():
    x, y = normal(600, 2, 0) + 4, normal(600, 2, 1)
    x[:10] *= 1e4
    assert judged(x, y, 0).value > 0.95


def test_it_depends_on_its_generator_alone():
    x, y = normal(100, 3, 0), normal(150, 3, 1)
    before = torch.get_rng_state()
    first, again, other = (judged(x, y, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.value == again.value != other.value


def test_a_constant_feature_does_no_harm():
    x, y = normal(100, 2, 0), normal(100, 2, 1)
    x[:, 0] = y[:, 0] = 7
    assert 0.3 < judged(x, y, 0).value < 0.7


def test_too_few_or_unlike():
    for x, y in ((normal(19, 2, 0), normal(50, 2, 1)), (normal(50, 2, 0), normal(50, 3, 1))):
        with pytest.raises(ValueError, match="20 of each"):
            judged(x, y, 0)
