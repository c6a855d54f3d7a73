"""Injected randomness: where a sampler's normal draws come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Standard normal noise shaped like ``x``, for the interval from ``t`` to ``s``.

    White noise ignores the interval.
    """

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor: ...


def white_noise(generator: torch.Generator | None = None) -> Noise:
    """Independent draws from one generator, or from the device's own when none is given."""

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if generator is None:
            return torch.randn_like(x)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    return noise


def per_sample_noise(seeds: Sequence[int]) -> Noise:
    """One stream per sample, so that sample i is the same alone or in a batch, on any device.

    Draws are made on the host in float64, one generator per seed, in the order of the calls.
    Raises ValueError when the batch is not one sample per seed.
    """
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if len(x) != len(streams):
            raise ValueError(
                f"{len(streams)} seeds for a batch of {len(x)} samples; give one seed a sample"
            )
        draws = [torch.randn(x.shape[1:], generator=g, dtype=torch.float64) for g in streams]
        return torch.stack(draws).to(x)

    return noise
