"""Learning rates by step."""

from __future__ import annotations

import math
from collections.abc import Callable

LearningRate = Callable[[int], float]
"""Step 0, 1, ... to the learning rate of its update."""


def warmup(rate: float, steps: int) -> LearningRate:
    """A linear rise to ``rate`` over ``steps`` updates, then constant.

    Raises ValueError for a rate <= 0 or steps < 0.
    """
    if not (rate > 0 and steps >= 0):
        raise ValueError(f"need rate > 0 and steps >= 0, got rate={rate:g}, steps={steps}")
    return lambda step: rate * min(1.0, (step + 1) / max(steps, 1))


def cosine(rate: float, steps: int, total: int) -> LearningRate:
    """The rise of ``warmup``, then half a cosine to 0 at update ``total``.

    Raises ValueError unless steps < total. SGDR, arXiv 1608.03983, eq. 5.
    """
    if not steps < total:
        raise ValueError(f"need warm-up steps < total, got {steps} and {total}")
    rising = warmup(rate, steps)

    def learning_rate(step: int) -> float:
        done = min(max(step - steps, 0) / (total - steps), 1.0)
        return rising(step) * (1 + math.cos(math.pi * done)) / 2

    return learning_rate


def inverse_sqrt(rate: float, steps: int, start: int) -> LearningRate:
    """The rise of ``warmup``, then constant up to update ``start``, then rate / sqrt(t / start).

    Raises ValueError for start < 1. arXiv 2312.02696, appendix B.
    """
    if start < 1:
        raise ValueError(f"need start >= 1, got start={start}")
    rising = warmup(rate, steps)
    return lambda step: rising(step) / math.sqrt(max((step + 1) / start, 1.0))
