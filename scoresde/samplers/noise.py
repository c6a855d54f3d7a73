"""Injected randomness: where a sampler's normal draws come from."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scoresde.sde import match


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
    keys, calls = _keys(seeds), 0

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return _hashed_normal(x, keys, calls)

    return noise


class BrownianPath:
    """One Brownian path a seed, refined where it is asked: as noise, its increments of unit size.

        noise(x, t, s) = (W(u(s)) - W(u(t))) / sqrt(|u(s) - u(t)|)

    Between points it knows a new one is drawn from the bridge, outside them from the increment, so
    that a walk of 80 steps follows the path of an earlier walk of 20 with the same object.
    ``clock`` is u, the identity by default; u = exp(2 lam) makes the noise of exact steps of the
    reverse SDE additive. It keeps one tensor like ``x`` a point. Raises ValueError when the batch
    is not one sample per seed or the interval is missing.
    """

    def __init__(
        self, seeds: Sequence[int], clock: Callable[[Tensor], Tensor] = lambda t: t
    ) -> None:
        self._keys = _keys(seeds)
        self._clock = clock
        self._points: list[float] = []
        self._values: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if t is None or s is None:
            raise ValueError("a Brownian path needs the interval: noise(x, t, s)")
        at, to = float(self._clock(t)), float(self._clock(s))
        if at == to:
            raise ValueError(f"a Brownian path has no increment over an empty interval at {at:g}")
        gap = self._value(x, to) - self._value(x, at)
        return gap / math.sqrt(abs(to - at))

    def cells(self, x: Tensor, level: Tensor, index: Tensor) -> Tensor:
        """Increments over cells of a dyadic partition of a unit interval, one cell a sample.

        Sample i gets the increment over [k, k + 1] / 2^l with l = level[i], k = index[i], both
        int64 (B,): the two halves of a cell add up to it, whatever was asked before, and nothing
        is kept. A step that is rejected and halved so meets the noise it has seen.
        """
        increment = _hashed_normal(x, self._keys, torch.zeros_like(level))
        for depth in range(1, int(level.max()) + 1):
            # The cell of this depth that holds the sample's cell, and the half of its parent.
            cell = index >> (level - depth).clamp(min=0)
            z = _hashed_normal(x, self._keys, (cell >> 1) + (1 << depth))
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
        value = self._draw(x, u, i)
        self._points.insert(i, u)
        self._values.insert(i, value)
        return value

    def _draw(self, x: Tensor, u: float, i: int) -> Tensor:
        """W(u) given its neighbours, the points before and from ``i``."""
        if not self._points:
            return torch.zeros_like(x)
        z = _hashed_normal(x, self._keys, _bits(u))
        if i in (0, len(self._points)):
            end = min(i, len(self._points) - 1)
            return self._values[end] + math.sqrt(abs(u - self._points[end])) * z
        low, high = self._points[i - 1], self._points[i]
        share = (u - low) / (high - low)
        mean = torch.lerp(self._values[i - 1], self._values[i], share)
        return mean + math.sqrt(share * (high - u)) * z


# Counter-based normals: SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number
# Generators, OOPSLA 2014) on 64-bit integers, which wrap alike on every device, then Box-Muller.


def _signed(word: int) -> int:
    """The two's complement of a 64-bit word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place."""
    for shift, factor in _ROUNDS:
        # An arithmetic shift, masked to a logical one.
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return z


def _keys(seeds: Sequence[int]) -> Tensor:
    """One 64-bit key per seed."""
    return _mix(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64) * _GAMMA)


def _bits(u: float) -> int:
    """The 64 bits of a float, as a counter."""
    return int(struct.unpack("<q", struct.pack("<d", u))[0])


def _hashed_normal(x: Tensor, keys: Tensor, counter: Tensor | int) -> Tensor:
    """Normals shaped like ``x``, a function of (key of the sample, counter, position).

    The counter is one number, or one per sample (B,).
    """
    if len(x) != len(keys):
        raise ValueError(
            f"{len(keys)} seeds for a batch of {len(x)} samples; give one seed a sample"
        )
    n = x[0].numel()
    half = (n + 1) // 2
    offset = _signed(counter * _GAMMA) if isinstance(counter, int) else counter * _GAMMA
    streams = _mix(keys.to(x.device) + offset).unsqueeze(1)
    z = _mix(streams + torch.arange(1, half + 1, device=x.device) * _GAMMA)
    # The low word gives the radius, the high word (signed: any full turn will do) the angle.
    u = (z & 0xFFFFFFFF).to(x.dtype).add_(0.5).mul_(2.0**-32)
    angle = (z >> 32).to(x.dtype).mul_(math.pi * 2.0**-31)
    radius = u.log_().mul_(-2).sqrt_()
    pair = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pair[:, :n].reshape(x.shape)
