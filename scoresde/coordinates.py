"""What a network is told of the noise level: functions (process, t) -> one float64 number a time.

Networks of this library are told log(sigma / alpha) / 4 (``scoresde.parameterization``). Published
networks are told other numbers, of which these are the kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from scoresde.arguments import Count, check_fields
from scoresde.sde import FAINTEST, SDE

Coordinate = Callable[[SDE, Tensor], Tensor]


@final
@dataclass(frozen=True)
class Index:
    """The place 0..N-1 in a table of N levels, t N / t_max - 1: with a fraction between levels.

    DDPM, arXiv 2006.11239, section 3. k-diffusion and diffusers interpolate it in log(sigma /
    alpha), which differs by less than a tenth.

    Args:
        levels: length N of the table.
        nearest: round to the nearest level, for a network that knows whole numbers only.
        between: the fraction is one of t, or of lam.
    """

    levels: Count = 1000
    nearest: bool = False
    between: Literal["t", "lam"] = "t"

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        unit = sde.t_max / self.levels
        place = (t.double() / unit - 1).clamp(min=0)
        entry = place.round()
        place = torch.where((place - entry).abs() < 1e-9, entry, place)  # networks may truncate
        if self.between == "lam":
            low = place.floor().clamp(max=self.levels - 2)
            at, first, last = (sde.lam(u * unit) for u in (place + 1, low + 1, low + 2))
            place = low + (first - at) / (first - last)
        return place.round() if self.nearest else place


@final
@dataclass(frozen=True)
class Time:
    """The time itself, ``factor`` t: 999 in score_sde, 1000 in flow matching of diffusers.

    Args:
        factor: what the time is multiplied by.
    """

    factor: float = 1.0

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return t.double() * self.factor


@final
@dataclass(frozen=True)
class Level:
    """scale log(sigma / alpha) + shift: 1/4 in EDM, arXiv 2206.00364, table 1.

    Args:
        scale: what the logarithm is multiplied by.
        shift: what is added.
    """

    scale: float = 0.25
    shift: float = 0.0

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        return -self.scale * sde.lam(t.double()).clamp(min=FAINTEST) + self.shift


def place(sde: SDE, t: Tensor) -> Tensor:
    """``Index`` in the table of the process itself. Raises ValueError for one without a table."""
    betas = getattr(sde, "betas", None)
    if betas is None:
        raise ValueError(
            f"noise: {type(sde).__name__} has no table of levels to tell the place in; take "
            "DiscreteVP"
        )
    return Index(len(betas))(sde, t)


def ratio(sde: SDE, t: Tensor) -> Tensor:
    """sigma / alpha, as in k-diffusion and in NCSN++ of score_sde."""
    return (-sde.lam(t.double())).exp()
