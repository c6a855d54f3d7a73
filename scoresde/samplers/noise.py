"""Injected randomness: where a sampler's normal draws come from."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
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
    hashed, calls = _Hashed(seeds), 0

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return hashed.normal(x, calls)

    return noise


class BrownianPath:
    """One Brownian path a seed, refined where it is asked: as noise, its increments of unit size.

        noise(x, t, s) = (W(u(s)) - W(u(t))) / sqrt(|u(s) - u(t)|)

    Between points it knows a new one is drawn from the bridge, outside them from the increment, so
    that a walk of 80 steps follows the path of an earlier walk of 20 with the same object.
    ``clock`` is u, the identity by default; u = exp(2 lam) makes the noise of exact steps of the
    reverse SDE additive. Over an empty interval every call is a fresh draw beside the path. It
    keeps one tensor like ``x`` a point. Raises ValueError when the batch is not one sample per
    seed or the interval is missing.
    """

    def __init__(
        self, seeds: Sequence[int], clock: Callable[[Tensor], Tensor] = lambda t: t
    ) -> None:
        self._hashed = _Hashed(seeds)
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
            return self._hashed.normal(x, self._moments)
        gap = self._value(x, to) - self._value(x, at)
        return gap / math.sqrt(abs(to - at))

    def cells(self, x: Tensor, level: Tensor, index: Tensor) -> Tensor:
        """Increments over cells of a dyadic partition of a unit interval, one cell a sample.

        Sample i gets the increment over [k, k + 1] / 2^l with l = level[i], k = index[i], both
        int64 (B,): the two halves of a cell add up to it, whatever was asked before, and nothing
        is kept. A step that is rejected and halved so meets the noise it has seen.
        """
        increment = self._hashed.normal(x, torch.zeros_like(level))
        for depth in range(1, int(level.max()) + 1):
            # The cell of this depth that holds the sample's cell, and the half of its parent.
            cell = index >> (level - depth).clamp(min=0)
            z = self._hashed.normal(x, (cell >> 1) + (1 << depth))
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
        z = self._hashed.normal(x, _bits(u))
        if i in (0, len(self._points)):
            end = min(i, len(self._points) - 1)
            return self._values[end] + math.sqrt(abs(u - self._points[end])) * z
        low, high = self._points[i - 1], self._points[i]
        share = (u - low) / (high - low)
        mean = torch.lerp(self._values[i - 1], self._values[i], share)
        return mean + math.sqrt(share * (high - u)) * z


# Counter-based normals: SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number
# Generators, OOPSLA 2014) on 64-bit integers, which wrap alike on every device, then the inverse
# of the normal distribution function.


def _signed(word: int) -> int:
    """The two's complement of a 64-bit word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(z: Tensor, spare: Tensor | None = None) -> Tensor:
    """The finaliser of SplitMix64, in place."""
    spare = torch.empty_like(z) if spare is None else spare
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z.bitwise_xor_(_shifted(z, shift, spare)).mul_(factor)
    return z.bitwise_xor_(_shifted(z, 31, spare))


def _shifted(z: Tensor, by: int, out: Tensor) -> Tensor:
    """A logical shift to the right: an arithmetic one, masked."""
    return torch.bitwise_right_shift(z, by, out=out).bitwise_and_((1 << (64 - by)) - 1)


@lru_cache(maxsize=64)
def _positions(n: int, device: torch.device) -> Tensor:
    """A random word for each pair of numbers of a sample."""
    return _mix(torch.arange(1, (n + 1) // 2 + 1, device=device) * _GAMMA)


def _bits(u: float) -> int:
    """The 64 bits of a float, as a counter."""
    return int(struct.unpack("<q", struct.pack("<d", u))[0])


class _Hashed:
    """Normals as a function of (seed, counter, position), in reused memory.

    Two numbers a word, as sqrt(2) erfinv(u), |u| < 1: 24 bits in single precision, which reach 5.4
    deviations, and 32 in double.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        words = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)
        self._keys = _mix(words * _GAMMA)
        # Fresh memory every call would cost as much as the hash.
        self._words = self._spare = self._keys[:0]

    def normal(self, x: Tensor, counter: Tensor | int) -> Tensor:
        """Draws shaped like ``x``; the counter is one number, or one per sample (B,)."""
        if len(x) != len(self._keys):
            raise ValueError(
                f"{len(self._keys)} seeds for a batch of {len(x)} samples; give one seed a sample"
            )
        bits = self._hash(x, counter).view(torch.int32)
        # Short of 1, whose quantile is infinite, also where single precision rounds up.
        unit = 2.0**-31 * (1 - 2.0**-24)
        z = bits.to(x.dtype).mul_(unit).erfinv_().mul_(math.sqrt(2))
        return z[:, : math.prod(x.shape[1:])].reshape(x.shape)

    def _hash(self, x: Tensor, counter: Tensor | int) -> Tensor:
        """64 random bits for every pair of numbers (B, pairs), valid until the next call."""
        positions = _positions(math.prod(x.shape[1:]), x.device)
        self._keys = self._keys.to(x.device)
        offset = _signed(counter * _GAMMA) if isinstance(counter, int) else counter * _GAMMA
        shape = (len(x), len(positions))
        if self._words.shape != shape or self._words.device != x.device:
            self._words = torch.empty(shape, dtype=torch.int64, device=x.device)
            self._spare = torch.empty_like(self._words)
        streams = (self._keys + offset).unsqueeze(1)
        return _mix(torch.bitwise_xor(streams, positions, out=self._words), self._spare)
