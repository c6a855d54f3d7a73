"""Time grids: n + 1 decreasing float64 times from ``t_max`` to ``t_eps``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor

from scoresde.arguments import Positive, Range, check_fields
from scoresde.sde import SDE

Grid = Callable[[SDE, int], Tensor]


def uniform(sde: SDE, n: int) -> Tensor:
    """Equal steps of time. arXiv 2011.13456, algorithms 2-3."""
    return _pinned(sde, sde.t_max + _ramp(n) * (sde.t_eps - sde.t_max))


def quadratic(sde: SDE, n: int) -> Tensor:
    """Equal steps of the square root of time. DDIM, arXiv 2010.02502, appendix D.2."""
    root_max, root_eps = sde.t_max**0.5, sde.t_eps**0.5
    return _pinned(sde, (root_max + _ramp(n) * (root_eps - root_max)) ** 2)


def log_snr(sde: SDE, n: int) -> Tensor:
    """Equal steps of lam, the half log-SNR. DPM-Solver, arXiv 2206.00927, section 3.4."""
    lam_max, lam_eps = sde.span(sde.t_eps)
    return _pinned(sde, sde.time(lam_max + _ramp(n) * (lam_eps - lam_max)))


@final
@dataclass(frozen=True)
class Karras:
    """Equal steps of (sigma / alpha)^(1 / rho). EDM, arXiv 2206.00364, eq. 5.

    Raises ValueError unless rho >= 0.1, below which the powers overflow.

    Args:
        rho: exponent; a larger one puts more steps at low noise.
    """

    rho: Annotated[float, Range(ge=0.1)] = 7.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, n: int) -> Tensor:
        high, low = ((-lam / self.rho).exp() for lam in sde.span(sde.t_eps))
        return _pinned(sde, sde.time(-self.rho * torch.log(high + _ramp(n) * (low - high))))


@final
@dataclass(frozen=True)
class Polyexponential:
    """Steps of lam whose distance from the end is a power rho of equal steps.

        lam_k = lam_n + (1 - k / n)^rho (lam_0 - lam_n)

    rho = 1 is ``log_snr``. k-diffusion's polyexponential schedule of sigma. Raises ValueError
    unless rho > 0.

    Args:
        rho: exponent; 1 is log_snr, and a larger one puts more steps at low noise.
    """

    rho: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, n: int) -> Tensor:
        lam_max, lam_eps = sde.span(sde.t_eps)
        return _pinned(sde, sde.time(lam_eps + (1 - _ramp(n)) ** self.rho * (lam_max - lam_eps)))


karras, polyexponential = Karras, Polyexponential  # named like the functions above


# --- grids on a discrete table of N times, k t_max / N for k = 1..N -----------------------------


@final
@dataclass(frozen=True)
class LevelGrid:
    """Selects times of a discrete table by a rule, and replaces the last one by ``t_eps``.

    ``levels`` is the length N of the table. Raises ValueError unless levels >= 2, and on use if
    the rule does not select n + 1 different times.
    Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891, table 2.
    """

    rule: Literal["linspace", "leading", "trailing"]
    levels: Annotated[int, Range(ge=2)] = 1000

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, sde: SDE, n: int) -> Tensor:
        ramp, count = 1 - _ramp(n), self.levels
        if self.rule == "linspace":
            picked = (1 + ramp * (count - 1)).round()
        elif self.rule == "leading":
            picked = (ramp * n).round() * (count // (n + 1)) + 1
        else:
            picked = (ramp * count).round()
        ts = picked / count * sde.t_max
        ts[-1] = sde.t_eps
        if not (ts.diff() < 0).all():
            raise ValueError(f"{count} levels do not hold a grid of {n} steps; take fewer steps")
        return ts


def linspace(levels: Annotated[int, Range(ge=2)] = 1000) -> Grid:
    """Entries of a discrete table, n + 1 evenly spaced from N to 1; the last becomes t_eps.

    Args:
        levels: number of entries of the table.
    """
    return LevelGrid("linspace", levels)


def leading(levels: Annotated[int, Range(ge=2)] = 1000) -> Grid:
    """Entries k floor(N / (n + 1)) + 1 of a discrete table, k = n..0; the last becomes t_eps.

    It starts below ``t_max``, as in published samplers.

    Args:
        levels: number of entries of the table.
    """
    return LevelGrid("leading", levels)


def trailing(levels: Annotated[int, Range(ge=2)] = 1000) -> Grid:
    """Entries N - k N / n of a discrete table, rounded, k = 0..n - 1, then t_eps.

    Args:
        levels: number of entries of the table.
    """
    return LevelGrid("trailing", levels)


# --- fixed times --------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Fixed:
    """A grid of these times, for any process that is defined on them.

    Raises ValueError unless the times are positive, finite and strictly decreasing, and on use
    unless the number of steps is ``len(times) - 1`` and the times are within ``t_max``.
    """

    times: tuple[float, ...]
    name: str = "the fixed grid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(map(float, self.times)))
        ts = torch.tensor(self.times, dtype=torch.float64)
        if len(ts) < 2 or not (ts.isfinite().all() and (ts.diff() < 0).all()):
            raise ValueError(f"{self.name} must be at least 2 strictly decreasing times")
        if not ts[-1] > 0:
            raise ValueError(f"{self.name} must stay above time 0, got {self.times[-1]:g}")

    def __call__(self, sde: SDE, n: int) -> Tensor:
        if n != len(self.times) - 1:
            raise ValueError(f"{self.name} has {len(self.times) - 1} steps, asked for {n}")
        if self.times[0] > sde.t_max:
            raise ValueError(
                f"{self.name} starts at {self.times[0]:g}, beyond t_max={sde.t_max:g}"
            )
        return torch.tensor(self.times, dtype=torch.float64)


def fixed(times: Sequence[float], name: str = "the fixed grid") -> Grid:
    """``Fixed`` from any sequence of times."""
    return Fixed(tuple(times), name)


def _ramp(n: int) -> Tensor:
    """n + 1 numbers from 0 to 1; raises ValueError unless n >= 1."""
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def _pinned(sde: SDE, ts: Tensor) -> Tensor:
    """The grid with exact ends: the change of variable rounds them."""
    ts[0], ts[-1] = sde.t_max, sde.t_eps
    return ts
