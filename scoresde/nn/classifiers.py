"""Classifiers of noisy states: a state and its noise level in, a number for each class out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Fraction, check
from scoresde.nn.blocks import GroupNorm, ResidualImage, ResidualVector, zeroed
from scoresde.nn.embeddings import Conditioning
from scoresde.nn.unet import Several, check_images

FEATURES = 64  # of the noise level


class ImageClassifier(nn.Module):
    """The encoder half of a U-Net on (B, channels, H, W), its last maps averaged over the pixels.

    The logits are initially zero. Raises ValueError for sizes out of range. Diffusion Models Beat
    GANs on Image Synthesis, arXiv 2105.05233, section 4.2, there with attention in the end.

    Args:
        channels: channels of the input.
        classes: number of classes.
        width: channels at full resolution.
        multipliers: channels at each resolution, in units of the width.
        blocks: residual blocks at each resolution.
        dropout: probability of dropout in each block.
    """

    def __init__(
        self,
        channels: int,
        classes: Count,
        *,
        width: Count = 32,
        multipliers: Several = (1, 2),
        blocks: Count = 1,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        check(ImageClassifier, locals())
        widths = [width * m for m in multipliers]
        self.channels = channels
        self.condition = Conditioning(FEATURES, 4 * width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=1 + (i > 0), padding=1)
            for i, (fine, coarse) in enumerate(pairwise([width, *widths]))
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualImage(each, 4 * width, dropout=dropout) for _ in range(blocks))
            for each in widths
        )
        self.norm = GroupNorm(widths[-1])
        self.head = zeroed(nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x (B, channels, H, W), noise (B,) -> logits (B, classes)."""
        check_images(x, self.channels)
        condition, h = self.condition(noise), self.stem(x)
        stages: Any = self.stages
        for shrink, blocks in zip(self.shrink, stages, strict=True):
            h = shrink(h)
            for block in blocks:
                h = block(h, condition)
        logits: Tensor = self.head(F.silu(self.norm(h)).mean((2, 3)))
        return logits


class VectorClassifier(nn.Module):
    """A residual perceptron on any (B, ...) with ``dim`` numbers per sample.

    The logits are initially zero. Raises ValueError for sizes out of range.

    Args:
        dim: numbers per sample.
        classes: number of classes.
        width: hidden units.
        depth: residual blocks.
        dropout: probability of dropout in each block.
    """

    def __init__(
        self,
        dim: Count,
        classes: Count,
        *,
        width: Count = 128,
        depth: Count = 2,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        check(VectorClassifier, locals())
        self.condition = Conditioning(FEATURES, width)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            ResidualVector(width, width, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = zeroed(nn.Linear(width, classes))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x (B, ...), noise (B,) -> logits (B, classes)."""
        condition, h = self.condition(noise), self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        logits: Tensor = self.head(F.silu(self.norm(h)))
        return logits
