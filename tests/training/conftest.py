"""A small class-conditional model with dropout, its data and its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from scoresde import VP, ScoreModel, parameterization
from scoresde.data import Scaling, Split
from scoresde.nn import MLP
from scoresde.training import Plan, TrainState
from scoresde.training.times import LogSNR

SCALING = Scaling(17)
PLAN = Plan(
    steps=10,
    batch=16,
    optimizer=torch.optim.AdamW,
    lr=1e-2,
    warmup=2,
    schedule="cosine",
    times=LogSNR(),
    seed=3,
    classes=3,
    label_dropout=0.3,
)


@pytest.fixture
def split() -> Split:
    """50 pictures of 2 x 2 pixels in three classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 17, (50, 1, 2, 2), generator=generator, dtype=torch.uint8)
    return Split(x, torch.arange(50) % 3)


@pytest.fixture
def scaling() -> Scaling:
    return SCALING


@pytest.fixture
def plan() -> Plan:
    """Batches of 16: the epochs of 50 end in the middle of a batch."""
    return PLAN


@pytest.fixture
def fresh() -> Callable[..., TrainState]:
    """A new state, its weights drawn from ``seed``."""

    def make(seed: int = 0, dropout: float = 0.5) -> TrainState:
        torch.manual_seed(seed)
        net = MLP(4, width=16, depth=1, embedding=8, classes=3, dropout=dropout)
        model = ScoreModel(net, VP(), parameterization.v)
        return TrainState.of(model, PLAN)

    return make


@pytest.fixture
def unconditional(plan: Plan) -> Plan:
    return replace(plan, classes=None)
