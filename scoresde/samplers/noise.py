"""Injected randomness: where a sampler's normal draws come from."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from scoresde.sde import SDE, match


class Noise(Protocol):
    """Standard normal noise shaped like ``x``, for the interval from ``t`` to ``s``.

    White noise ignores the interval.
    """

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor: ...


def white_noise(generator: torch.Generator | None = None) -> Noise:
    """Independent draws from one generator, or from the device's own when none is given."""

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if generator is None:
            return torch.randn_like(x)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    return noise


def per_sample_noise(seeds: Sequence[int]) -> Noise:
    """One stream a sample: sample i is the same alone or in a batch, on any device.

    The draw of call k is a hash of (seed, k, position), so nothing but the number of calls is
    remembered. Raises ValueError when the batch is not one sample per seed.
    """
    draws, calls = _Draws(seeds), 0

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return draws(x, Purpose.STREAM, calls)

    return noise


class BrownianPath:
    """One Brownian path a seed, refined where it is asked: as noise, its increments of unit size.

        noise(x, t, s) = (W(u(s)) - W(u(t))) / sqrt(|u(s) - u(t)|)

    Between points it knows a new one is drawn from the bridge, outside them from the increment, so
    that a walk of 80 steps follows the path of an earlier walk of 20 with the same object.
    ``clock`` is u, the identity by default; u = exp(2 lam) makes the noise of exact steps of the
    reverse SDE additive. Over an empty interval every call is a fresh draw beside the path. None
    of its draws is one of ``per_sample_noise`` with the same seed, which may have drawn the start.
    It keeps one tensor like ``x`` a point. Raises ValueError when the batch is not one sample per
    seed or the interval is missing.
    """

    def __init__(
        self, seeds: Sequence[int], clock: Callable[[Tensor], Tensor] = lambda t: t
    ) -> None:
        self._draws = _Draws(seeds)
        self._clock = clock
        self._points: list[float] = []
        self._values: list[Tensor] = []
        self._moments = 0

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if t is None or s is None:
            raise ValueError("a Brownian path needs the interval: noise(x, t, s)")
        at, to = float(self._clock(t)), float(self._clock(s))
        if at == to:
            # Noise at fixed time, of churn or a corrector, is no part of the path.
            self._moments += 1
            return self._draws(x, Purpose.FIXED_TIME, self._moments)
        start, length = self._value(x, at), math.sqrt(abs(to - at))
        if not self._extends(at, to):
            return torch.sub(self._value(x, to), start).mul_(1 / length)
        # The step of a walk: its increment is the draw itself.
        z = self._draws(x, Purpose.PATH, _bits(to))
        self._keep(to, torch.add(start, z, alpha=length))
        return z

    def cells(self, x: Tensor, level: Tensor, index: Tensor) -> Tensor:
        """Increments over cells of a dyadic partition of a unit interval, one cell a sample.

        Sample i gets the increment over [k, k + 1] / 2^l with l = level[i], k = index[i], both
        int64 (B,): the two halves of a cell add up to it, whatever was asked before, and nothing
        is kept. A step that is rejected and halved so meets the noise it has seen.
        """
        increment = self._draws(x, Purpose.CELLS, 0)
        for depth in range(1, int(level.max()) + 1):
            # The cell of this depth that holds the sample's cell, and the half of its parent.
            cell = index >> (level - depth).clamp(min=0)
            z = self._draws(x, Purpose.CELLS, (cell >> 1) + (1 << depth))
            side = match((1 - 2 * (cell & 1)) * 2.0 ** (-(depth + 1) / 2), x)
            increment = torch.where(
                match(level >= depth, x).bool(), increment / 2 + side * z, increment
            )
        return increment

    def _value(self, x: Tensor, u: float) -> Tensor:
        """W(u), which is drawn and kept if it is not known."""
        i = bisect_left(self._points, u)
        if i < len(self._points) and self._points[i] == u:
            return self._values[i]
        return self._keep(u, self._draw(x, u, i))

    def _keep(self, u: float, value: Tensor) -> Tensor:
        """Make W(u) a point of the path."""
        i = bisect_left(self._points, u)
        self._points.insert(i, u)
        self._values.insert(i, value)
        return value

    def _extends(self, at: float, to: float) -> bool:
        """Whether ``to`` lies beyond the end ``at`` of what is known."""
        first, last = self._points[0], self._points[-1]
        return (at == last and to > last) or (at == first and to < first)

    def _draw(self, x: Tensor, u: float, i: int) -> Tensor:
        """W(u) given its neighbours, the points before and from ``i``."""
        if not self._points:
            return torch.zeros_like(x)
        z = self._draws(x, Purpose.PATH, _bits(u))
        if i in (0, len(self._points)):
            end = min(i, len(self._points) - 1)
            return z.mul_(math.sqrt(abs(u - self._points[end]))).add_(self._values[end])
        low, high = self._points[i - 1], self._points[i]
        share = (u - low) / (high - low)
        mean = torch.lerp(self._values[i - 1], self._values[i], share)
        return mean.add_(z, alpha=math.sqrt(share * (high - u)))


def starting_noise(sde: SDE, like: Tensor, noise: Noise) -> Tensor:
    """A start at ``t_max`` shaped like ``like`` (B, ...): noise of the deviation of the prior."""
    return noise(like) * float(sde.prior().stddev)


# Counter-based normals. Every (seed, purpose, counter) is the state of one SplitMix64 generator,
# whose output at a position, 64 bits, makes two normals. Steele, Lea, Flood, Fast Splittable
# Pseudorandom Number Generators, OOPSLA 2014. Integers of 64 bits wrap alike on every device.


class Purpose(IntEnum):
    """What draws are for: two purposes of one seed never share a draw."""

    STREAM = 1
    FIXED_TIME = 2
    PATH = 3
    CELLS = 4


def _signed(word: int) -> int:
    """The two's complement of the last 64 bits."""
    return ((word + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place."""
    for by, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # A logical shift: an arithmetic one, masked.
        z ^= (z >> by).bitwise_and_((1 << (64 - by)) - 1)
        z *= factor
    return z


class _Draws:
    """Normals as a function of (seed, purpose, counter, position), by Box and Muller.

        z + i z' = sqrt(-2 log u) exp(i phi),   u of 31 bits, phi of 32

    The radius has the exact law up to sqrt(64 log 2) = 6.66 deviations.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)

    def __call__(self, x: Tensor, purpose: Purpose, counter: Tensor | int) -> Tensor:
        """Draws shaped like ``x``; the counter is one number, or one per sample (B,)."""
        if len(x) != len(self._seeds):
            raise ValueError(
                f"{len(self._seeds)} seeds for a batch of {len(x)} samples; give one seed a sample"
            )
        self._seeds = self._seeds.to(x.device)
        state = _mix(_mix(_mix(self._seeds * _GOLDEN) ^ int(purpose)) ^ counter)
        size, dtype = math.prod(x.shape[1:]), torch.promote_types(x.dtype, torch.float32)
        places = torch.arange(1, -(-size // 2) + 1, device=x.device) * _GOLDEN
        bits = _mix(state.unsqueeze(1) + places).view(torch.int32).unflatten(1, (-1, 2))
        u = (bits[..., 0] & (2**31 - 1)).to(dtype).add_(0.5).mul_(2.0**-31)
        angle = bits[..., 1].to(dtype).mul_(math.pi * 2.0**-31)
        z = torch.view_as_real(torch.polar(u.log_().mul_(-2).sqrt_(), angle))
        return z.flatten(1)[:, :size].reshape(x.shape).to(x.dtype)


def _bits(u: float) -> int:
    """The 64 bits of a float, as a counter."""
    return int(struct.unpack("<q", struct.pack("<d", u))[0])
