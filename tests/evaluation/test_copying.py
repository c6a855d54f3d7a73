"""The copy rate: what counts as a copy, and what it is for fresh images."""

from __future__ import annotations

import pytest
import torch

from scoresde.evaluation import copies, copy_rate
from scoresde.evaluation.copying import nearest


def gaussian(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_training_set_copies_itself_and_far_images_do_not():
    train = gaussian(300)
    assert copy_rate(train, train) == 1.0
    assert copy_rate(train + 1e-3, train) == 1.0
    assert copy_rate(train + 100, train) == 0.0
    mixed = torch.cat([train[:30], train[:90] + 100])
    assert copy_rate(mixed, train) == 0.25


def test_definition_on_the_line():
    train = torch.tensor([[0.0], [1.0], [5.0]])
    # Nearest to 1, whose neighbour is 1 away; nearest to 5, whose neighbour is 4 away; and a tie.
    samples = torch.tensor([[2.5], [1.9], [8.0], [10.0], [2.0]])
    assert [copy_rate(s[None], train) for s in samples] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert copies(samples, train).tolist() == [False, True, True, False, False]


def test_exact_copies_of_a_doubled_image_count():
    train = torch.tensor([[0.0], [0.0], [9.0]])
    assert copy_rate(torch.tensor([[0.0]]), train) == 1.0
    assert copy_rate(torch.tensor([[1e-6]]), train) == 0.0


def test_the_rate_ignores_units_shapes_and_chunks():
    samples, train = gaussian(700, 16, seed=1), gaussian(600, 16)
    rate = copy_rate(samples, train)
    images = copy_rate(samples.reshape(-1, 1, 4, 4) * 3 + 7, train.reshape(-1, 1, 4, 4) * 3 + 7)
    assert 0 < rate < 1
    assert images == rate


def test_fresh_draws_score_alike_and_far_from_both_ends():
    rates = [copy_rate(gaussian(4000, 4, s), gaussian(4000, 4, s + 1)) for s in (0, 2)]
    assert rates[0] == pytest.approx(rates[1], abs=0.05)
    assert all(0.3 < rate < 0.7 for rate in rates)


def test_nearest_agrees_with_the_full_distance_matrix():
    a, b = gaussian(300, 5, 1).double(), gaussian(400, 5, 2).double()
    index, distance = nearest(a, b)
    expected = torch.cdist(a, b).min(1)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distance, expected.values)
    skip = index
    matrix = torch.cdist(a, b)
    matrix[torch.arange(300), skip] = torch.inf
    assert torch.equal(nearest(a, b, skip)[0], matrix.argmin(1))


def test_test_images_of_the_digits_are_the_yardstick():
    pytest.importorskip("sklearn")
    from scoresde.data import digits

    data = digits()
    # 164 of 360, counted independently with a full distance matrix.
    assert copy_rate(data.test.x, data.train.x) == pytest.approx(164 / 360)


@pytest.mark.parametrize(
    ("samples", "train"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4)),
        (torch.zeros(0, 2), torch.zeros(3, 2)),
        (torch.zeros(3, 2), torch.zeros(1, 2)),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2)),
    ],
)
def test_impossible_input_is_refused(samples, train):
    with pytest.raises(ValueError, match="samples"):
        copy_rate(samples, train)
