"""A test for samples that copy training examples."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite

CHUNK = 256


def copy_rate(samples: Tensor, train: Tensor) -> float:
    """Fraction of samples closer to a training example than any other training example is.

        mean_i [ |s_i - x_j| < min_{k != j} |x_k - x_j| ],     j = argmin_j |s_i - x_j|

    The distance is Euclidean, and an exact copy always counts. ``samples`` (M, ...) and ``train``
    (N, ...), N >= 2, are in the same units. Fresh real data score well above 0 (the test images of
    the 8 x 8 digits 0.46), so compare with their value. Raises ValueError for empty or unequal
    shapes, NaN or infinity.
    """
    return copies(samples, train).double().mean().item()


def copies(samples: Tensor, train: Tensor) -> Tensor:
    """Boolean mask (M,) of the samples that ``copy_rate`` counts."""
    if samples.shape[1:] != train.shape[1:] or samples.numel() == 0 or len(train) < 2:
        shapes = f"{tuple(samples.shape)} and {tuple(train.shape)}"
        raise ValueError(f"samples and training images are {shapes}; expected (M, ...), (N, ...)")
    require_finite(samples=samples, examples=train)
    samples, train = samples.flatten(1), train.flatten(1)
    index, distance = nearest(samples, train)
    hit, where = index.unique(return_inverse=True)
    _, between = nearest(train[hit], train, skip=hit)
    return (distance < between[where]) | (distance == 0)


def nearest(a: Tensor, b: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Index and distance (M,) of the row of ``b`` (N, D) nearest to each row of ``a`` (M, D).

    Row i of ``a`` ignores row ``skip[i]`` of ``b``. Chunks limit the memory to O(M + N). Raises
    ValueError for NaN or infinity.
    """
    require_finite(points=a, candidates=b)
    middle = b.double().mean(0)
    near, far = (a - middle).float(), (b - middle).float()
    rows = torch.arange(len(a), device=a.device).split(CHUNK)
    index = torch.cat([_nearest(near[r], far, None if skip is None else skip[r]) for r in rows])
    # The expanded square cancels for near copies, so the smallest distance is computed directly.
    return index, torch.linalg.vector_norm(a.double() - b[index].double(), dim=1)


def _nearest(a: Tensor, b: Tensor, skip: Tensor | None) -> Tensor:
    square = b.square().sum(1) - 2 * a @ b.T
    if skip is not None:
        square[torch.arange(len(a), device=a.device), skip] = torch.inf
    return square.argmin(1)
