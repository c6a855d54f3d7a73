"""The average of weights against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde.training import averages


class Normed(nn.Module):
    """Two parameters, a real and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def test_constant_decay_is_the_geometric_sum():
    model, decay, values = Normed().double(), 0.8, [2.0, -1.0, 0.5, 7.0, 3.0]
    set_all(model, 1.0)
    average = averages.averaged(model)
    for value in values:
        set_all(model, value)
        averages.update(average, model, decay)
    n = len(values)
    expected = decay**n + sum((1 - decay) * decay ** (n - 1 - k) * v for k, v in enumerate(values))
    for p in average.parameters():
        torch.testing.assert_close(p, torch.full_like(p, expected), rtol=1e-14, atol=0)


def test_warm_up_forgets_the_start():
    # prod (1 + k) / (10 + k) over k < n is what is left of the initial weights.
    model = nn.Linear(1, 1).double()
    set_all(model, 1.0)
    average = averages.averaged(model)
    set_all(model, 0.0)
    for step in range(20):
        averages.update(average, model, averages.warmed_up(0.999, step))
    left = torch.tensor([(1 + k) / (10 + k) for k in range(20)], dtype=torch.float64).prod()
    torch.testing.assert_close(average.weight.detach().squeeze(), left, rtol=1e-12, atol=0)
    assert averages.warmed_up(0.999, 10**6) == 0.999


def test_average_is_a_copy_without_gradients():
    model = Normed()
    average = averages.averaged(model)
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
    set_all(model, 5.0)
    assert not any(bool((p == 5).all()) for p in average.parameters())


def test_buffers_are_copied():
    model = Normed()
    average = averages.averaged(model)
    model.norm(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    averages.update(average, model, 0.9)
    assert torch.equal(average.norm.running_mean, model.norm.running_mean)
    assert average.norm.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_decay_out_of_range(decay):
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="decay"):
        averages.update(averages.averaged(model), model, decay)
