"""A head for pixel levels, with the exact posterior of each number in place of a learned one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CHUNK = 1 << 21
"""Probabilities per part on a CPU, so that they fit its cache."""


class LevelMean(nn.Module):
    """The posterior mean of x0 over pixel levels c_k, from the logits F of another network.

        x0_hat = sum_k c_k p_k,   p = softmax_k(F_k(x, noise) - (x - a c_k)^2 / 2 b^2),
        x = a x0 + b eps,   a^2 + b^2 = 1,   noise = log(b / a) / 4

    The likelihood of each number is exact, so F only learns the prior from its surroundings.
    ``inner`` maps (B, C, ...) to (B, C K, ...) for ``middles`` (K,). Continuous Diffusion for
    Categorical Data, arXiv 2211.15089, section 3.1.
    """

    middles: Tensor

    def __init__(self, inner: nn.Module, middles: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.classes: int | None = getattr(inner, "classes", None)
        self.concat: int = getattr(inner, "concat", 0)
        # Not saved: the data determine it.
        self.register_buffer("middles", middles, persistent=False)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        **told: Tensor | None,
    ) -> Tensor:
        """x (B, C, ...), noise (B,) and what the inner network is told -> the shape of x."""
        logits = self.inner(x, noise, label, augment, **told).to(x.dtype)
        logits = torch.unflatten(logits.movedim(1, -1), -1, (x.shape[1], -1))
        at = x.movedim(1, -1).unsqueeze(-1)  # (B, ..., C, 1)
        numbers = math.prod(logits.shape[1:])
        each = max(1, CHUNK // numbers if x.device.type == "cpu" else x.shape[0])
        parts = zip(logits.split(each), at.split(each), noise.split(each), strict=True)
        # Half precision cannot resolve the levels, so autocast applies to the inner network only.
        with torch.autocast(x.device.type, enabled=False):
            mean = torch.cat([self._mean(*part) for part in parts])
        return mean.movedim(-1, 1)

    def _mean(self, logits: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        noise = noise.reshape(-1, *[1] * (x.ndim - 1))
        away = x - torch.sigmoid(-8 * noise).sqrt() * self.middles  # a^2 = 1 / (1 + e^(8 noise))
        precision = 1 + torch.exp(-8 * noise)  # 1 / b^2
        return torch.addcmul(logits, away, precision * away, value=-0.5).softmax(-1) @ self.middles
