"""The order of examples: a bijection whatever their number, with and without a table."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import batch_indices, shuffle
from scoresde.data.shuffle import scattered


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_every_index_comes_once(n, seed, epoch):
    found = scattered(torch.arange(n), n, seed, epoch)
    assert torch.equal(found.sort().values, torch.arange(n))


def test_beyond_the_table_an_epoch_still_visits_every_example_once(monkeypatch):
    monkeypatch.setattr(shuffle, "LARGEST_TABLE", 10)
    visited = torch.cat([batch_indices(101, 7, 3, step) for step in range(29)])
    assert torch.equal(visited[:101].sort().values, torch.arange(101))
    assert torch.equal(visited[101:202].sort().values, torch.arange(101))
    assert not torch.equal(visited[:101], visited[101:202])


def test_a_batch_of_a_very_large_set_costs_no_table():
    found = batch_indices(10**12, 32, 0, 10**6)
    assert len(found.unique()) == 32
    assert 0 <= int(found.min()) < int(found.max()) < 10**12


def test_it_is_as_uniform_as_chance():
    n, places = 4096, torch.arange(64)
    found = torch.cat([scattered(places, n, seed) for seed in range(400)])
    counts = torch.bincount(found // 256, minlength=16).double()
    expected = len(found) / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # 15 degrees: p = 8e-5
