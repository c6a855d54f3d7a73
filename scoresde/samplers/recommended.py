"""The default sampler: a multistep method and a family of grids, chosen by the number of calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.arguments import NonNegative, Positive
from scoresde.samplers.grids import Grid
from scoresde.samplers.integrals import Residual
from scoresde.samplers.multistep import Multistep
from scoresde.samplers.protocols import Step
from scoresde.samplers.stochastic_multistep import StochasticMultistep
from scoresde.sde import SDE


@final
@dataclass(frozen=True)
class ArctanGrid:
    """Equal steps of arctan((lam - centre) / width): dense around ``centre``, sparse at both ends.

    A grid of n steps ends at lam = end + growth log((n + 1) / 10), but not beyond lam(t_min).
    With few steps it ends earlier, because the denoising step then covers more at less error.

    Args:
        centre: log(alpha / sigma) where the steps are densest.
        width: width of the dense region in log(alpha / sigma).
        end: log(alpha / sigma) at the end of 9 steps.
        growth: increase of that end per factor e in the number of calls.
    """

    centre: float = 1.6
    width: Positive = 3.2
    end: float = 4.1
    growth: NonNegative = 1.5

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


def recommended(nfe: int, eta: float = 0.0) -> tuple[Step, Grid]:
    """The default step and grid for ``nfe`` calls: nfe - 1 steps of one call, then denoising.

    The step is exponential Adams-Bashforth on the residual of Gaussian data. It combines 3
    evaluations, or 4 without noise and from 16 calls on. ``eta`` scales the noise: 1 gives the
    reverse SDE. The choice rests on measurements (docs/samplers.md) for data scaled to a standard
    deviation of about 0.5. Raises ValueError unless nfe >= 2 and eta >= 0.
    """
    if nfe < 2:
        raise ValueError(f"need at least 2 calls, one step and the denoising, got nfe={nfe}")
    if eta:
        return StochasticMultistep(3, eta, Residual().std), ArctanGrid()
    return Multistep(Residual(), 3 if nfe < 16 else 4), ArctanGrid()
