"""Batches drawn ahead: the same ones in the same order, their errors, and a thread that ends."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from scoresde.data import DataError
from scoresde.training import fit
from scoresde.training.batches import THREAD, ahead


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(THREAD)]


@pytest.mark.parametrize("n", [0, 1, 3, 50])
def test_every_value_comes_once_and_in_order(n):
    assert list(ahead(lambda k: k * k, range(2, 9), n)) == [k * k for k in range(2, 9)]
    assert list(ahead(lambda k: k, range(0), n)) == []
    assert not threads()


@pytest.mark.parametrize("n", [1, 3])
def test_n_values_are_made_while_one_is_in_use_and_no_more(n):
    made, last = [], threading.Event()

    def make(k):
        made.append(k)
        if k == n:
            last.set()
        return threading.current_thread().name

    values = ahead(make, range(100), n)
    assert next(values).startswith(THREAD)
    assert last.wait(10)
    assert made == list(range(n + 1))
    values.close()
    assert made == list(range(n + 1))
    assert not threads()


@pytest.mark.parametrize("n", [0, 2])
def test_an_error_comes_where_its_value_was_due(n):
    def make(k):
        if k == 3:
            raise DataError("pictures/3.png: gone")
        return k

    values = ahead(make, range(9), n)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"3\.png"):
        next(values)
    assert not threads()


def test_a_run_is_the_same_bit_for_bit(plan, split, scaling, fresh):
    def weights(prefetch, stop=None):
        state = fresh()
        for metrics in fit(state, replace(plan, prefetch=prefetch), split, scaling):
            if metrics.step == stop:
                break
        if stop is not None:
            for _ in fit(state, replace(plan, prefetch=prefetch + 1), split, scaling):
                pass
        return list(state.model.state_dict().values())

    bare = weights(0)
    for other in (weights(2), weights(2, stop=4), weights(40)):
        assert all(torch.equal(a, b) for a, b in zip(bare, other, strict=True))
    assert not threads()


def test_the_thread_ends_when_an_update_fails(plan, split, scaling, fresh):
    state = fresh()
    run = fit(state, replace(plan, prefetch=2), split, scaling)
    next(run)
    with torch.no_grad():
        next(state.model.parameters()).fill_(float("nan"))
    with pytest.raises(RuntimeError, match="step 2: loss nan"):
        next(run)
    assert not threads()


def test_a_negative_number_is_refused(plan):
    with pytest.raises(ValueError, match="prefetch=-1"):
        replace(plan, prefetch=-1)
