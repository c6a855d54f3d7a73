"""The rows of each process: together they are the batch, and their gradients its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scoresde.training.batches import draw_batch
from scoresde.training.distributed import Rank
from scoresde.training.loop import _backward, update


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2), (16, 1)])
def test_every_row_is_in_one_part_of_one_process(size, accumulate):
    parts = [
        part for rank in range(size) for part in Rank(rank, size).microbatches(16, accumulate)
    ]
    assert [number for number, _ in parts] == list(range(size * accumulate))
    assert torch.cat([rows for _, rows in parts]).tolist() == list(range(16))
    assert {len(rows) for _, rows in parts} == {16 // (size * accumulate)}


def gradient(plan, split, scaling, state):
    """Gradient and losses of the share of a plan, without the sum over processes."""
    state.optimizer.zero_grad()
    _, losses, _ = _backward(state, plan, draw_batch(plan, split, scaling, state.model.sde, 0))
    return [p.grad.clone() for p in state.model.parameters() if p.grad is not None], losses


@pytest.mark.parametrize("size", [2, 4])
def test_shares_add_up_to_the_parts_of_one_process_with_their_dropout(
    plan, split, scaling, fresh, size
):
    state = fresh()
    update(state, plan, split, scaling)  # the head of a fresh network is zero
    whole, losses = gradient(replace(plan, accumulate=size), split, scaling, state)
    shares = [
        gradient(replace(plan, rank=Rank(rank, size)), split, scaling, state)
        for rank in range(size)
    ]
    assert torch.equal(torch.cat([own for _, own in shares]), losses)
    for k, expected in enumerate(whole):
        total = sum(found[k] for found, _ in shares)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-7)


def test_a_batch_must_be_divisible_by_the_processes(plan):
    with pytest.raises(ValueError, match=r"batch=16 .* on each of 3 processes"):
        replace(plan, rank=Rank(0, 3))
    with pytest.raises(ValueError, match=r"accumulate=8 .* on each of 4 processes"):
        replace(plan, accumulate=8, rank=Rank(0, 4))


def test_alone_nothing_is_sent():
    tensors = [torch.ones(3), torch.zeros(())]
    Rank().add(tensors)
    assert tensors[0].tolist() == [1, 1, 1]
    assert Rank().largest(7) == 7
