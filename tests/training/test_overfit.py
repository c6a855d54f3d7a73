"""A few dozen updates on a handful of digits: every network learns them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from scoresde import EDM, ScoreModel, parameterization
from scoresde.data import digits
from scoresde.nn import EDM2, DiT
from scoresde.training import Plan, TrainState, fit
from scoresde.training.times import LogNormal


def edm2() -> nn.Module:
    return EDM2(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=16)


def dit() -> nn.Module:
    return DiT(1, width=64, depth=2, heads=4, embedding=32)


@pytest.mark.parametrize(
    ("build", "rate", "steps", "learned"),
    [(edm2, 2e-2, 40, False), (dit, 1e-2, 100, False), (dit, 1e-2, 100, True)],
)
def test_the_loss_on_a_handful_of_digits_falls(
    build: Callable[[], nn.Module], rate: float, steps: int, learned: bool
) -> None:
    data = digits()
    few = data.train.take(torch.arange(4))
    torch.manual_seed(0)
    model = ScoreModel(build(), EDM(), parameterization.edm(0.6))
    plan = Plan(
        steps=steps, batch=16, lr=rate, warmup=5, schedule="cosine", times=LogNormal(0.5, 0.5),
        learned_weight=learned, dither=False,
    )  # fmt: skip
    state = TrainState.of(model, plan)
    losses = torch.stack([m.loss for m in fit(state, plan, few, data.scaling)])
    # The mean of the digits alone, at every level, leaves three fifths.
    assert losses[-10:].mean() < 0.5 * losses[:3].mean()
