"""Latent codes: the probability flow maps samples to ``t_max`` and back.

    z = x(t_max) / std of the prior,      dx/dt by (6) from x(t_min) = x

Codes have about unit variance for every process. An ODE solver follows the flow at a tolerance, or
a deterministic step follows it along a grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers import Step, sample
from scoresde.solvers import require_samples, solve_ode

PARALLEL = 1e-6
"""Sine of the angle below which a great circle is replaced by a straight line."""


class Flow(Protocol):
    """Maps ``x`` (B, ...) along the probability flow from clean data to ``t_max``, or back."""

    def __call__(self, denoiser: Denoiser, x: Tensor, *, encode: bool) -> Tensor: ...


@dataclass(frozen=True)
class Solved:
    """The flow by ``solve_ode``, with the same relative and absolute ``tolerance``, in units of w.

    ``t0`` is the time of clean data, by default ``t_min``.
    """

    tolerance: float = 1e-6
    t0: float | None = None
    method: str = "dopri5"

    def __call__(self, denoiser: Denoiser, x: Tensor, *, encode: bool) -> Tensor:
        sde, tolerance = denoiser.sde, self.tolerance
        clean = sde.t_min if self.t0 is None else self.t0
        t, s = (clean, sde.t_max) if encode else (sde.t_max, clean)
        return solve_ode(denoiser, x, t, s, method=self.method, rtol=tolerance, atol=tolerance).x


@dataclass(frozen=True)
class Walked:
    """The flow by a deterministic ``step`` along the times ``ts``, which encoding reverses.

    An example is ``Walked(karras(sde, 18), Heun())``.
    """

    ts: Tensor
    step: Step

    def __call__(self, denoiser: Denoiser, x: Tensor, *, encode: bool) -> Tensor:
        ts = self.ts.flip(0) if encode else self.ts
        return sample(denoiser, x, ts, self.step, _no_noise, denoise=False)


def encode(denoiser: Denoiser, x: Tensor, flow: Flow | None = None) -> Tensor:
    """The codes (B, ...) of clean samples ``x`` by ``flow`` (default ``Solved()``), in float64.

    Raises ValueError for an empty batch, SolverError as ``solve_ode`` does. Score-Based Generative
    Modeling through SDEs, arXiv 2011.13456, section 4.3.
    """
    require_samples(x)
    end = (flow or Solved())(denoiser, x.double(), encode=True)
    return end / float(denoiser.sde.prior().stddev)


def decode(denoiser: Denoiser, z: Tensor, flow: Flow | None = None) -> Tensor:
    """The samples (B, ...) of codes ``z``, in float64: the inverse of ``encode``.

    Raises as ``encode`` does.
    """
    require_samples(z)
    start = z.double() * float(denoiser.sde.prior().stddev)
    return (flow or Solved())(denoiser, start, encode=False)


def round_trip_error(denoiser: Denoiser, x: Tensor, flow: Flow | None = None) -> Tensor:
    """Root mean square of decode(encode(x)) - x over each sample (B,), in model units."""
    back = decode(denoiser, encode(denoiser, x, flow), flow)
    return (back - x.double()).flatten(1).square().mean(1).sqrt()


def interpolate(z0: Tensor, z1: Tensor, n: int) -> Tensor:
    """n codes (n, B, ...) from ``z0`` to ``z1`` along great circles, ends included.

        z(u) = [sin((1 - u) w) z0 + sin(u w) z1] / sin w,    cos w = z0 . z1 / |z0| |z1|

    Points on a great circle between two normal codes have a typical norm, unlike those on a
    straight line. Parallel and opposite codes are interpolated linearly. Raises ValueError unless
    n >= 2 and the shapes agree. DDIM, arXiv 2010.02502, appendix D.5.
    """
    if n < 2 or z0.shape != z1.shape:
        raise ValueError(
            f"need n >= 2 and codes alike, got n={n}, {tuple(z0.shape)} and {tuple(z1.shape)}"
        )
    a, b = z0.flatten(1).double(), z1.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=math.ulp(0.0))
    angle = torch.arccos(cosine.clamp(-1, 1))
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=a.device).unsqueeze(1)
    sine = torch.sin(angle)
    flat = sine < PARALLEL
    safe = torch.where(flat, 1.0, sine)
    first = torch.where(flat, 1 - u, torch.sin((1 - u) * angle) / safe)
    second = torch.where(flat, u, torch.sin(u * angle) / safe)
    path = first.unsqueeze(2) * a + second.unsqueeze(2) * b
    return path.reshape(n, *z0.shape)


def _no_noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    raise ValueError("a code needs a deterministic step, and this one draws noise; take another")
