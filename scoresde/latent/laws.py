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
from scoresde.sde import log1mexp

SMALLEST = -7.0
"""Smallest log scale in model units, an eighth of one of 256 levels."""
NARROW = 1e-5
"""Narrower intervals of a normal law have a series, since a difference would cancel."""


class Law(ABC):
    """Independent numbers with the mean and the scale s that the output of the decoder holds.

    The output (B, 2 C, H, W) has means and log scales. A level is the interval of numbers that it
    covers, and the outermost levels reach to infinity, so that the probabilities of all levels
    add up to 1:

        P(k | z) = F((x_(k+1) - mean) / s) - F((x_k - mean) / s)

    Real numbers have the density F' / s. F is symmetric, F(-u) = 1 - F(u).
    """

    outputs: ClassVar[int] = 2
    """Channels of the output of the decoder for each channel of a picture."""

    def parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale (B, C, H, W)."""
        mean, log_scale = output.chunk(2, 1)
        return mean, SMALLEST + F.softplus(log_scale - SMALLEST)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of x, without the limits that the levels set it."""
        return self.parts(output)[0]

    def log_prob(self, output: Tensor, k: Tensor, scaling: Quantisation) -> Tensor:
        """log P(k | z) (B,) of levels, or of real numbers, in the units of the data.

        It is computed in float64, since the ends of narrow levels are equal in float32.
        """
        mean, log_scale = self.parts(output.double())
        inverse = (-log_scale).exp()
        if scaling.levels is None:
            density = self.log_density((middles(k, scaling) - mean) * inverse) - log_scale
            return sum_from(1, density) + scaling.log_volume(tuple(k.shape[1:]))
        a = (scaling.low + scaling.step * k.double() - mean) * inverse
        width = scaling.step * inverse
        within = self.log_interval(a, width)
        # Beside the lowest level is its upper edge, beside the highest its lower one.
        outer = self.log_cdf(torch.where(k == 0, a + width, -a))
        return sum_from(1, torch.where((k == 0) | (k == scaling.levels - 1), outer, within))

    @abstractmethod
    def log_cdf(self, u: Tensor) -> Tensor:
        """log F(u) of the standard law."""

    @abstractmethod
    def log_interval(self, a: Tensor, width: Tensor) -> Tensor:
        """log (F(a + width) - F(a)) of the standard law, without cancellation."""

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """log F'(u) of the standard law."""


@final
@dataclass(frozen=True)
class Gaussian(Law):
    """A normal law with a learned deviation for every number."""

    def log_cdf(self, u: Tensor) -> Tensor:
        found: Tensor = torch.special.log_ndtr(u)
        return found

    def log_interval(self, a: Tensor, width: Tensor) -> Tensor:
        a = torch.where(2 * a + width > 0, -a - width, a)  # mirrored, so that F is small
        narrow = width < NARROW
        wide = torch.where(narrow, 1.0, width)
        upper = self.log_cdf(a + wide)
        apart = upper + log1mexp(self.log_cdf(a) - upper)
        # The density at the middle m times the mean of exp(-m v) over the interval.
        middle = a + width / 2
        half = (middle * width / 2).abs().clamp(min=1e-9)
        mean = half + log1mexp(-2 * half) - (2 * half).log()
        together = self.log_density(middle) + width.log() + mean
        return torch.where(narrow, together, apart)

    def log_density(self, u: Tensor) -> Tensor:
        return -u.square() / 2 - math.log(2 * math.pi) / 2


@final
@dataclass(frozen=True)
class Logistic(Law):
    """A logistic law with a learned scale for every number.

        F(b) - F(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b))

    PixelCNN++, arXiv 1701.05517, eq. 2, with one component.
    """

    def log_cdf(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u)

    def log_interval(self, a: Tensor, width: Tensor) -> Tensor:
        return self.log_cdf(a + width) + self.log_cdf(-a) + log1mexp(-width)

    def log_density(self, u: Tensor) -> Tensor:
        return F.logsigmoid(u) + F.logsigmoid(-u)
