"""Does a model copy its training images?"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite

CHUNK = 256


def copy_rate(samples: Tensor, train: Tensor) -> float:
    """Share of samples nearer to a training image than that is to any other training image.

        mean_i [ |s_i - x_j| < min_{k != j} |x_k - x_j| ],     j = argmin_j |s_i - x_j|

    Euclidean distance; an exact copy always counts. `samples` (M, ...) and `train` (N, ...) with
    N >= 2 are in the same units. Fresh images score well above 0, the test images of the 8 x 8
    digits 0.46: compare with theirs. Raises ValueError for empty or unlike shapes, NaN or
    infinity.
    """
    return copies(samples, train).double().mean().item()


def copies(samples: Tensor, train: Tensor) -> Tensor:
    """Which samples (M,) ``copy_rate`` counts."""
    _check(samples, train)
    samples, train = samples.flatten(1), train.flatten(1)
    index, distance = nearest(samples, train)
    hit, where = index.unique(return_inverse=True)
    _, between = nearest(train[hit], train, skip=hit)
    return (distance < between[where]) | (distance == 0)


def nearest(a: Tensor, b: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Index and distance (M,) of the row of `b` (N, D) nearest to each row of `a` (M, D).

    Row i of `a` passes over row `skip[i]` of `b`. Works in chunks: memory grows as M + N.
    """
    middle = b.double().mean(0)
    near, far = (a - middle).float(), (b - middle).float()
    rows = torch.arange(len(a), device=a.device).split(CHUNK)
    index = torch.cat([_nearest(near[r], far, None if skip is None else skip[r]) for r in rows])
    # The expanded square cancels for near copies: the distance of the winner is taken afresh.
    return index, torch.linalg.vector_norm(a.double() - b[index].double(), dim=1)


def _nearest(a: Tensor, b: Tensor, skip: Tensor | None) -> Tensor:
    square = b.square().sum(1) - 2 * a @ b.T
    if skip is not None:
        square[torch.arange(len(a), device=a.device), skip] = torch.inf
    return square.argmin(1)


def _check(samples: Tensor, train: Tensor) -> None:
    if samples.shape[1:] != train.shape[1:] or samples.numel() == 0 or len(train) < 2:
        shapes = f"{tuple(samples.shape)} and {tuple(train.shape)}"
        raise ValueError(f"samples and training images are {shapes}; expected (M, ...), (N, ...)")
    require_finite(samples, train)
