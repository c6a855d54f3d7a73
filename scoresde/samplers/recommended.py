"""What to use when nothing is known but the number of calls: one method, one family of grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from scoresde.samplers.grids import Grid
from scoresde.samplers.integrals import Array, Point, Prediction
from scoresde.samplers.kernels import Level
from scoresde.samplers.loop import Step
from scoresde.samplers.multistep import Multistep
from scoresde.sde import SDE


@final
@dataclass(frozen=True)
class Residual(Prediction):
    """What is left of the flow beside that of Gaussian data of deviation d, which costs no error.

        u = sqrt(alpha^2 d^2 + sigma^2),   theta = arctan(sigma / (alpha d)),
        m = (alpha d^2 x - u^2 x0) / (sigma d u)

    -m is what a network in EDM's parameterisation returns, and m for d = 1 the velocity of VP.
    Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 7.
    """

    std: float = 0.5

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"need std > 0, got std={self.std:g}")

    def unit(self, at: Level) -> float:
        return math.hypot(at.alpha * self.std, at.sigma)

    def kernel(self, lam: Array, to: Level) -> Array:
        return -self.unit(to) / (2 * np.cosh(lam + math.log(self.std)))

    def read(self, x: Tensor, x0: Tensor, at: Level) -> Point:
        u = self.unit(at)
        centred = torch.sub(x0, x, alpha=at.alpha * (self.std / u) ** 2)
        return Point(at.lam, -u / (at.sigma * self.std), centred)


@final
@dataclass(frozen=True)
class ArctanGrid:
    """Equal steps of arctan((lam - centre) / width): dense around ``centre``, sparse at both ends.

    The last lam of a grid of n steps is end + growth log((n + 1) / 10), but no more than that of
    ``t_min``: with few steps the denoising step had better reach further.
    """

    centre: float = 1.6
    width: float = 3.2
    end: float = 4.1
    growth: float = 1.5

    def __call__(self, sde: SDE, n: int) -> Tensor:
        if n < 1:
            raise ValueError(f"a grid needs at least 1 step, got {n}")
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        first, limit = sde.lam(ends).tolist()
        last = max(
            min(self.end + self.growth * math.log((n + 1) / 10), limit), (first + limit) / 2
        )
        a, b = (math.atan((lam - self.centre) / self.width) for lam in (first, last))
        angles = torch.linspace(a, b, n + 1, dtype=torch.float64)
        ts = sde.time(self.centre + self.width * angles.tan())
        ts[0], ts[-1] = sde.t_max, max(float(ts[-1]), sde.t_min)
        return ts


def recommended(nfe: int) -> tuple[Step, Grid]:
    """The default step and grid for ``nfe`` calls: nfe - 1 steps, one call each, and the
    denoising call.

    Exponential Adams-Bashforth on the residual of Gaussian data, through 3 readings or, from 16
    calls on, 4; chosen by measurement (docs/samplers.md). For data scaled to a deviation of about
    0.5. Raises ValueError unless nfe >= 2.
    """
    if nfe < 2:
        raise ValueError(f"need at least 2 calls, one step and the denoising, got nfe={nfe}")
    return Multistep(Residual(), 3 if nfe < 16 else 4), ArctanGrid()
