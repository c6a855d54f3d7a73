"""The exponential moving average of a model's weights, held in a copy of the model."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scoresde.training.fsdp import parts

Model = TypeVar("Model", bound=nn.Module)


def averaged(model: Model) -> Model:
    """A copy of the model to hold its average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def warmed_up(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), which forgets the initial weights of a young run.

    ``step`` = 0 is the first update. TensorFlow, tf.train.ExponentialMovingAverage (num_updates).
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model, in place; buffers are copied.

    Raises ValueError unless 0 <= decay <= 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"need 0 <= decay <= 1, got decay={decay:g}")
    get_ema_multi_avg_fn(decay)(parts(average.parameters()), parts(model.parameters()), 0)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
