"""The law of a picture given the output of a decoder, p(x | z), with a learned scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.likelihood.dequantise import Quantisation, middles
from scoresde.likelihood.divergence import sum_from

SMALLEST = -7.0
"""Smallest log scale in model units, an eighth of one of 256 levels."""
TINY = 1e-30
FAR = 1e4
"""Where the outermost levels end, in model units; infinity would have no gradient."""


class Law(ABC):
    """Independent numbers with the mean and the scale s that the output of the decoder holds.

    The output (B, 2 C, H, W) has means and log scales. A level is the interval of numbers that it
    covers, and the outermost levels reach to infinity, so that the probabilities of all levels
    add up to 1:

        P(k | z) = F((x_(k+1) - mean) / s) - F((x_k - mean) / s)

    Real numbers have the density F' / s.
    """

    outputs: ClassVar[int] = 2
    """Channels of the output of the decoder for each channel of a picture."""

    def parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale (B, C, H, W)."""
        mean, log_scale = output.chunk(2, 1)
        return mean, SMALLEST + F.softplus(log_scale - SMALLEST)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of x."""
        return self.parts(output)[0]

    def log_prob(self, output: Tensor, k: Tensor, scaling: Quantisation) -> Tensor:
        """log P(k | z) (B,) of levels, or of real numbers, in the units of the data.

        It has the dtype of ``output``.
        """
        mean, log_scale = self.parts(output)
        inverse = (-log_scale).exp()
        if scaling.levels is None:
            u = (middles(k, scaling).to(output) - mean) * inverse
            density = sum_from(1, self.log_density(u) - log_scale)
            return density + scaling.log_volume(tuple(k.shape[1:]))
        low = (scaling.low + scaling.step * k.double()).to(output)
        high = (scaling.low + scaling.step * (k.double() + 1)).to(output)
        low = torch.where(k == 0, -FAR, low)
        high = torch.where(k == scaling.levels - 1, FAR, high)
        return sum_from(1, self.log_interval((low - mean) * inverse, (high - mean) * inverse))

    @abstractmethod
    def log_interval(self, a: Tensor, b: Tensor) -> Tensor:
        """log (F(b) - F(a)) of the standard law, a < b, without cancellation."""

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """log F'(u) of the standard law."""


@final
@dataclass(frozen=True)
class Gaussian(Law):
    """A normal law with a learned deviation for every number."""

    def log_interval(self, a: Tensor, b: Tensor) -> Tensor:
        right = a + b > 0  # mirrored, so that neither end has F = 1
        a, b = torch.where(right, -b, a), torch.where(right, -a, b)
        upper = torch.special.log_ndtr(b)
        ratio = torch.special.log_ndtr(a) - upper
        found: Tensor = upper + torch.log(-torch.expm1(ratio.clamp(max=-TINY)))
        return found

    def log_density(self, u: Tensor) -> Tensor:
        return -u.square() / 2 - math.log(2 * math.pi) / 2


@final
@dataclass(frozen=True)
class Logistic(Law):
    """A logistic law with a learned scale for every number.

        F(b) - F(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b))

    PixelCNN++, arXiv 1701.05517, eq. 2, with one component.
    """

    def log_interval(self, a: Tensor, b: Tensor) -> Tensor:
        wide = torch.log(-torch.expm1((a - b).clamp(max=-TINY)))
        return F.logsigmoid(b) + F.logsigmoid(-a) + wide

    def log_density(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u) + F.logsigmoid(-u)
