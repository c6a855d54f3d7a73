"""Splits, data sets, and the order in which training visits them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import DataError, Dataset, Scaling, Split, batch_indices, holdout
from scoresde.data.dataset import spread


def numbered(n):
    return Split(torch.arange(n).reshape(n, 1, 1, 1).int(), torch.arange(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_every_index_comes_once_an_epoch_and_every_epoch_differs(n, batch, seed):
    steps = -(-4 * n // batch)
    stream = torch.cat([batch_indices(n, batch, seed, s) for s in range(steps)])
    assert stream.dtype == torch.int64
    assert len(stream) == steps * batch
    epochs = stream[: 4 * n].reshape(4, n)
    assert torch.equal(epochs.sort(1).values, torch.arange(n).expand(4, n))
    if n > 12:
        assert len(epochs.unique(dim=0)) == 4


def test_resuming_continues_exactly():
    straight = [batch_indices(100, 32, 7, s) for s in range(20)]
    for k in (0, 3, 11):
        assert all(torch.equal(batch_indices(100, 32, 7, s), straight[s]) for s in range(k, 20))


def test_the_visit_order_does_not_depend_on_the_batch_size():
    small = torch.cat([batch_indices(50, 6, 1, s) for s in range(30)])
    large = torch.cat([batch_indices(50, 20, 1, s) for s in range(9)])
    assert torch.equal(small, large)
    assert not torch.equal(small[:50], batch_indices(50, 50, 2, 0))


def test_changing_a_batch_does_not_change_later_ones():
    expected = batch_indices(10, 10, 0, 0).clone()
    batch_indices(10, 10, 0, 0).zero_()
    assert torch.equal(batch_indices(10, 10, 0, 0), expected)


@pytest.mark.parametrize("bad", [(0, 4, 0, 0), (4, 0, 0, 0), (4, 4, 0, -1)])
def test_impossible_batches_are_refused(bad):
    with pytest.raises(ValueError, match="sizes start at 1"):
        batch_indices(*bad)


@pytest.mark.parametrize(("size", "count"), [(3, 3), (3.0, 3), (0.25, 5), (0.001, 1), (19, 19)])
def test_holdout_divides_without_loss(size, count):
    split = numbered(20)
    rest, held = holdout(split, size, seed=1)
    assert len(held) == count
    assert torch.cat([rest.label, held.label]).sort().values.equal(split.label)
    assert all(torch.equal(part.x.flatten().long(), part.label) for part in (rest, held))
    again = holdout(split, size, seed=1)[1]
    assert torch.equal(again.label, held.label)


def test_holdout_depends_on_the_seed():
    assert not torch.equal(*(holdout(numbered(50), 10, seed)[1].label for seed in (0, 1)))


@pytest.mark.parametrize("size", [0, 20, 21, -1, 20.0, 0.0, -0.5, 1e9, float("inf"), float("nan")])
def test_holdout_leaves_no_part_empty(size):
    with pytest.raises(DataError, match=r"cannot hold out .* of 20"):
        holdout(numbered(20), size)


def test_take_keeps_examples_and_labels_together():
    taken = numbered(9).take(torch.tensor([4, 2]))
    assert taken.x.flatten().tolist() == taken.label.tolist() == [4, 2]
    assert Split(torch.zeros(3, 2)).take(torch.tensor([1])).label is None


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (torch.zeros(0, 2), None, "no examples"),
        (torch.zeros(3), None, "no examples"),
        (torch.tensor([[0.0, torch.nan]]), None, "1 values are NaN"),
        (torch.tensor([[torch.inf, torch.nan]]), None, "2 values are NaN"),
        (torch.zeros(3, 2), torch.zeros(2).long(), "3 examples but labels of shape"),
    ],
)
def test_splits_that_cannot_be_used(x, label, message):
    with pytest.raises(DataError, match=message):
        Split(x, label)


def test_data_sets_that_do_not_fit_together():
    real, levels = Split(torch.zeros(3, 2)), numbered(3)
    with pytest.raises(DataError, match=r"\(2,\).*\(3,\)"):
        Dataset("d", real, Split(torch.zeros(3, 3)), Scaling(None))
    with pytest.raises(DataError, match="levels need integers"):
        Dataset("d", real, real, Scaling(17))
    with pytest.raises(DataError, match=r"0\.\.2, expected 0\.\.1"):
        Dataset("d", levels, levels, Scaling(2), ("a", "b", "c"))
    with pytest.raises(DataError, match="class names"):
        Dataset("d", levels, levels, Scaling(3))
    with pytest.raises(DataError, match=r"labels run over 0\.\.2"):
        Dataset("d", levels, levels, Scaling(3), ("a", "b"))
    with pytest.raises(DataError, match="two classes are called 'a'"):
        Dataset("d", levels, levels, Scaling(3), ("b", "a", "a"))
    assert Dataset("d", levels, levels, Scaling(3), ("a", "b", "c")).shape == (1, 1, 1)


@given(st.integers(1, 10**12), st.integers(2, 300))
def test_what_is_spread_evenly_has_the_ends_and_even_gaps(n, most):
    found = spread(n, most)
    assert len(found) == min(n, most)
    assert found[0] == 0
    assert len(found) == 1 or found[-1] == n - 1
    gaps = found.diff()
    assert len(gaps) == 0 or 0 < gaps.max() <= gaps.min() + 1
