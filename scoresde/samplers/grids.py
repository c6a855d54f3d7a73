"""Time grids: n + 1 decreasing float64 times from ``t_max`` to ``t_eps``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.sde import SDE

Grid = Callable[[SDE, int], Tensor]


def uniform(sde: SDE, n: int) -> Tensor:
    """Equal steps of time. arXiv 2011.13456, algorithms 2-5."""
    return _pinned(sde, sde.t_max + _ramp(n) * (sde.t_eps - sde.t_max))


def quadratic(sde: SDE, n: int) -> Tensor:
    """Equal steps of the square root of time. DDIM, arXiv 2010.02502, appendix D.2."""
    root_max, root_eps = sde.t_max**0.5, sde.t_eps**0.5
    return _pinned(sde, (root_max + _ramp(n) * (root_eps - root_max)) ** 2)


def log_snr(sde: SDE, n: int) -> Tensor:
    """Equal steps of lam, the half log-SNR. DPM-Solver, arXiv 2206.00927, section 3.4."""
    lam_max, lam_eps = _ends(sde)
    return _pinned(sde, sde.time(lam_max + _ramp(n) * (lam_eps - lam_max)))


def karras(rho: float = 7.0) -> Grid:
    """Equal steps of (sigma / alpha)^(1 / rho). EDM, arXiv 2206.00364, eq. 5.

    Raises ValueError unless rho > 0.
    """
    if not rho > 0:
        raise ValueError(f"need rho > 0, got rho={rho:g}")

    def grid(sde: SDE, n: int) -> Tensor:
        high, low = ((-lam / rho).exp() for lam in _ends(sde))
        return _pinned(sde, sde.time(-rho * torch.log(high + _ramp(n) * (low - high))))

    return grid


def _ramp(n: int) -> Tensor:
    """n + 1 numbers from 0 to 1; raises ValueError unless n >= 1."""
    if n < 1:
        raise ValueError(f"a grid needs at least 1 step, got {n}")
    return torch.linspace(0, 1, n + 1, dtype=torch.float64)


def _ends(sde: SDE) -> tuple[Tensor, Tensor]:
    t_max, t_eps = torch.tensor([sde.t_max, sde.t_eps], dtype=torch.float64)
    return sde.lam(t_max), sde.lam(t_eps)


def _pinned(sde: SDE, ts: Tensor) -> Tensor:
    """The grid with its ends exact, free of the rounding of the change of variable."""
    ts[0], ts[-1] = sde.t_max, sde.t_eps
    return ts
