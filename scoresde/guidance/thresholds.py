"""Predictions kept in the range of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from scoresde.arguments import Open, check
from scoresde.denoiser import Denoiser, Guide


@dataclass(frozen=True)
class Changed:
    """A prediction, changed sample by sample."""

    denoiser: Denoiser
    change: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.change(self.denoiser(x, t))

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and the mix of the reverse variance, in one call where the denoiser does so."""
        x0, mix = self.denoiser.with_variance(x, t)
        return self.change(x0), mix

    @property
    def variance_mix(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """That of the denoiser."""
        return self.denoiser.variance_mix

    def among(self, rows: Tensor) -> Changed:
        """The prediction for some samples of the batch."""
        return replace(self, denoiser=self.denoiser.among(rows, self.denoiser.batch or 0))


def _guide(change: Callable[[Tensor], Tensor]) -> Guide:
    def guide(denoiser: Denoiser) -> Denoiser:
        return replace(denoiser, predict=Changed(denoiser, change), normalised=False)

    return guide


def clip(low: float = -1.0, high: float = 1.0) -> Guide:
    """x0_hat clamped to [low, high], in model units.

    Raises ValueError unless low < high. Denoising Diffusion Probabilistic Models, arXiv
    2006.11239, whose published sampler does so.
    """
    if not low < high:
        raise ValueError(f"clip: need low < high, got {low} and {high}")
    return _guide(lambda x0: x0.clamp(low, high))


def dynamic_threshold(quantile: Open = 0.995) -> Guide:
    """x0_hat clamped to [-r, r] and divided by r = max(1, quantile of |x0_hat|), each sample.

    For data in [-1, 1], in model units. Raises ValueError unless 0 < quantile < 1. Photorealistic
    Text-to-Image Diffusion Models with Deep Language Understanding, arXiv 2205.11487, section 2.3.
    """
    check(dynamic_threshold, {"quantile": quantile})

    def change(x0: Tensor) -> Tensor:
        size = x0.abs().flatten(1)
        place = quantile * (size.shape[1] - 1)
        below = math.floor(place)
        # The largest ones are enough, and torch.quantile takes 2^24 numbers at most.
        top = size.topk(size.shape[1] - below, 1).values
        r = top[:, -1]
        if place > below:
            r = r.lerp(top[:, -2], place - below)
        r = r.clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-r, r) / r

    return _guide(change)
