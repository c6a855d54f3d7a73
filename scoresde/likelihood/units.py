"""From nats in model units to bits of integer levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bits_per_dim(log_prob: Tensor, shape: torch.Size | tuple[int, ...], scale: float) -> Tensor:
    """Bits per dimension of integer levels, -(log_prob / D + log scale) / log 2.

    ``shape`` is that of one sample (D its product) and ``scale`` is d(model units) / d(level), so
    that the density of the level plus its dequantisation is the model's times scale^D. RealNVP,
    arXiv 1605.08803, section 4.1.
    """
    return -(log_prob / math.prod(shape) + math.log(scale)) / math.log(2)
