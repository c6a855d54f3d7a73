"""The default sampler: a multistep predictor-corrector, and a grid for any number of calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, final

import numpy as np
import torch
from torch import Tensor

from scoresde.arguments import NonNegative, Positive, Range, check, check_fields
from scoresde.samplers.grids import Grid, uniform
from scoresde.samplers.integrals import Interpolation, Residual, Share
from scoresde.samplers.multistep import UniPC
from scoresde.samplers.protocols import Step
from scoresde.samplers.stochastic_multistep import StochasticMultistep
from scoresde.sde import SDE


@final
@dataclass(frozen=True)
class ArctanGrid:
    """Steps whose length in lam grows with the distance from ``centre``.

        h(lam) = h(centre) (1 + ((lam - centre) / w)^2),   n steps to lam = end + growth sqrt(n)

    They are short where the parts of the data separate. w is ``width`` at higher noise, and
    width (1 + spread / sqrt(n)) at lower noise. With few steps the grid ends earlier, because the
    denoising step then covers more at less error; it never ends beyond lam(t_min). The last step
    is shorter, because no later call corrects it. ``centre`` and ``end`` are for data of standard
    deviation 0.5; for other data they move by -log(std / 0.5).
    Raises ValueError for values out of range, and on use unless n >= 1.

    Args:
        centre: log(alpha / sigma) where the steps are shortest.
        width: width of the dense region in log(alpha / sigma), at higher noise.
        spread: increase of that width at lower noise, at one step.
        end: log(alpha / sigma) at the end, without the part that grows.
        growth: increase of the end per unit of the square root of the number of steps.
        last: length of the last step, relative to the rule.
        std: standard deviation of the data.
    """

    centre: float = 0.5
    width: Positive = 1.5
    spread: NonNegative = 2.0
    end: float = -0.5
    growth: NonNegative = 1.45
    last: Annotated[float, Range(gt=0, le=1)] = 0.3
    std: Positive = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, n: int) -> Tensor:
        if n < 1:
            raise ValueError(f"a grid needs at least 1 step, got {n}")
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        first, limit = sde.lam(ends).tolist()
        shift, root = math.log(self.std / 0.5), math.sqrt(n)
        centre, right = self.centre - shift, self.width * (1 + self.spread / root)
        end = max(min(self.end + self.growth * root - shift, limit), (first + limit) / 2)

        def width(side: float) -> float:
            return self.width if side < 0 else right

        # Width times angle: its equal steps are of equal length on both sides of the centre.
        a, b = (width(gap) * math.atan(gap / width(gap)) for gap in (first - centre, end - centre))
        places = np.minimum(np.arange(n + 1) / (n - 1 + self.last), 1.0)
        arcs = [a + (b - a) * place for place in places.tolist()]
        lams = [centre + width(arc) * math.tan(arc / width(arc)) for arc in arcs]
        ts = sde.time(torch.tensor(lams, dtype=torch.float64))
        ts[0], ts[-1] = sde.t_max, max(float(ts[-1]), sde.t_min)
        return ts


WIDE = ArctanGrid(centre=1.6, width=3.2, spread=0.0, end=2.2, growth=0.65, last=1.0)
"""For steps with noise, whose errors are larger where steps are long."""


def suited_grid(step: Step, std: float | None = None) -> Grid:
    """``ArctanGrid``, or the wide one for a step that draws noise.

    It is made for the ``std`` of the step, or where the step has none for data of deviation
    ``std``. A step that paces itself has one interval, to ``t_eps``: ``ArctanGrid`` ends early
    where there are few.
    """
    if hasattr(step, "self_paced"):
        return uniform
    noisy = hasattr(step, "weak_order") and getattr(step, "eta", 1.0) > 0
    holder = step if hasattr(step, "std") else getattr(step, "prediction", None)
    grid = WIDE if noisy else ArctanGrid()
    return replace(grid, std=getattr(holder, "std", None) or std or grid.std)


def recommended(
    nfe: Annotated[int, Range(ge=2)], eta: NonNegative = 0.0, std: Positive = 0.5
) -> tuple[Step, Grid]:
    """The default step and grid for ``nfe`` calls: nfe - 1 steps of one call, then denoising.

    The step is a predictor-corrector of third order on the residual of Gaussian data of standard
    deviation ``std``, that of the model's data: UniPC with up to 3 evaluations, and no start. It
    takes the residual for a polynomial in sigma / (alpha std + sigma), which is bounded, where one
    in lam overshoots in the long steps at both ends. ``eta`` scales the noise: 1 gives the reverse
    SDE, by exponential Adams-Bashforth on the same residual and a wider grid. The choice rests on
    measurements (docs/experiments.md). Raises ValueError unless nfe >= 2, eta >= 0 and std > 0.
    """
    check(recommended, locals())
    rule = Interpolation(Share(std))
    step = StochasticMultistep(3, eta, std) if eta else UniPC(Residual(std), 3, rule)
    return step, suited_grid(step)
