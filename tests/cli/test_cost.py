"""What a training costs, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde import VP, ScoreModel, parameterization
from scoresde.runs import cost
from scoresde.runs.levels_plot import levels_plot


class Two(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 7), nn.Linear(7, 3)

    def forward(self, x, noise, label=None):
        return self.outer(self.inner(x))


def test_operations_are_two_a_multiplication_and_three_passes():
    model = ScoreModel(Two(), VP(), parameterization.v)
    # Forward, the gradients of both weights, and that of the hidden layer.
    assert cost.flops(model, (3,), None) == 2 * (2 * 21 + 2 * 21 + 21)
    assert all(p.grad is None for p in model.parameters())


def test_the_peak_of_a_card_is_looked_up_by_name(monkeypatch):
    for name, expected in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("Other", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert cost.peak(torch.device("cuda")) == expected
    assert cost.peak(torch.device("cpu")) is None


def test_numbers_are_short():
    assert [cost.short(n) for n in (12, 1234, 2.5e9)] == ["12 ", "1.23 k", "2.5 G"]


def test_the_plot_of_levels_needs_some(tmp_path):
    from PIL import Image

    records = [{"step": k, "loss_by_lam": [(-1.0, 0.5), (1.0, 0.1 * k)]} for k in range(1, 9)]
    levels_plot(tmp_path / "levels.png", records)
    with Image.open(tmp_path / "levels.png") as picture:
        assert picture.size == (840, 420)
    with pytest.raises(ValueError, match="loss_by_lam"):
        levels_plot(tmp_path / "none.png", [{"step": 1, "loss": 1.0}])
