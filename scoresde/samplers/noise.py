"""Sources of the normal draws of a sampler."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from scoresde.sde import SDE, match, sent


class Noise(Protocol):
    """Standard normal noise shaped like ``x``, for the interval from ``t`` to ``s``.

    White noise ignores the interval.
    """

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor: ...


def white_noise(generator: torch.Generator | None = None) -> Noise:
    """Independent draws from a generator, by default the global one of the device."""

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if generator is None:
            return torch.randn_like(x)
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    return noise


def per_sample_noise(seeds: Sequence[int]) -> Noise:
    """One random stream per sample, so that a sample does not depend on its batch or device.

    The draw of call k is a hash of (seed, k, position), so the number of calls is the only state.
    Raises ValueError unless the batch has one sample per seed.
    """
    draws, calls = _Draws(seeds), 0

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return draws(x, Purpose.STREAM, calls)

    return noise


class BrownianPath:
    """One Brownian path per seed, refined on demand; the noise is its normalised increments.

        noise(x, t, s) = (W(u(s)) - W(u(t))) / sqrt(|u(s) - u(t)|)

    A new point between known points is drawn from the Brownian bridge, one outside them from an
    independent increment. So a walk of 80 steps follows the path of an earlier walk of 20 with the
    same object. ``clock`` is u, by default the identity; with u = exp(2 lam) the noise of exact
    steps of the reverse SDE is additive. Over an empty interval every call returns a fresh draw,
    independent of the path. The draws differ from those of ``per_sample_noise`` with the same
    seed, which may have drawn the start. The object stores one tensor like ``x`` per point. Raises
    ValueError if the interval is missing, or unless the batch has one sample per seed.
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
            # Noise at fixed time, of churn or of a corrector, is independent of the path.
            self._moments += 1
            return self._draws(x, Purpose.FIXED_TIME, self._moments)
        start, length = self._value(x, at), math.sqrt(abs(to - at))
        if not self._extends(at, to):
            return torch.sub(self._value(x, to), start).mul_(1 / length)
        # A step beyond the known points: the normalised increment is the draw itself.
        z = self._draws(x, Purpose.PATH, _bits(to))
        self._keep(to, torch.add(start, z, alpha=length))
        return z

    def cells(self, x: Tensor, level: Tensor, index: Tensor) -> Tensor:
        """Increments over cells of a dyadic partition of a unit interval, one cell per sample.

        Sample i gets the increment over [k, k + 1] / 2^l with l = level[i], k = index[i], both
        int64 (B,). The increments of the two halves of a cell add up to its own, so a step that is
        rejected and halved sees the same Brownian path. The values do not depend on earlier calls,
        and none are stored.
        """
        increment = self._draws(x, Purpose.CELLS, 0)
        for depth in range(1, int(level.max()) + 1):
            # The cell of this depth that contains the sample's cell, and its side of the parent.
            cell = index >> (level - depth).clamp(min=0)
            z = self._draws(x, Purpose.CELLS, (cell >> 1) + (1 << depth))
            side = match((1 - 2 * (cell & 1)) * 2.0 ** (-(depth + 1) / 2), x)
            increment = torch.where(
                match(level >= depth, x).bool(), increment / 2 + side * z, increment
            )
        return increment

    def _value(self, x: Tensor, u: float) -> Tensor:
        """W(u); draws and stores it if it is not known."""
        i = bisect_left(self._points, u)
        if i < len(self._points) and self._points[i] == u:
            return self._values[i]
        return self._keep(u, self._draw(x, u, i))

    def _keep(self, u: float, value: Tensor) -> Tensor:
        """Store W(u) as a point of the path."""
        i = bisect_left(self._points, u)
        self._points.insert(i, u)
        self._values.insert(i, value)
        return value

    def _extends(self, at: float, to: float) -> bool:
        """True if ``at`` is an end of the known points and ``to`` lies beyond it."""
        first, last = self._points[0], self._points[-1]
        return (at == last and to > last) or (at == first and to < first)

    def _draw(self, x: Tensor, u: float, i: int) -> Tensor:
        """A draw of W(u), conditional on its neighbours, points ``i - 1`` and ``i``."""
        if not self._points:
            return torch.zeros_like(x)
        z = self._draws(x, Purpose.PATH, _bits(u))
        if i in (0, len(self._points)):
            end = min(i, len(self._points) - 1)
            return z.mul_(math.sqrt(abs(u - self._points[end]))).add_(self._values[end])
        low, high = self._points[i - 1], self._points[i]
        fraction = (u - low) / (high - low)
        mean = torch.lerp(self._values[i - 1], self._values[i], fraction)
        return mean.add_(z, alpha=math.sqrt(fraction * (high - u)))


def starting_noise(sde: SDE, like: Tensor, noise: Noise) -> Tensor:
    """Draws from the prior at ``t_max``, shaped like ``like`` (B, ...)."""
    return noise(like) * float(sde.prior().stddev)


# Counter-based normals. Each (seed, purpose, counter) is the state of a SplitMix64 generator. Its
# 64-bit output at a position gives two normals. Steele, Lea, Flood, Fast Splittable Pseudorandom
# Number Generators, OOPSLA 2014. 64-bit integers overflow identically on every device.


class Purpose(IntEnum):
    """Purposes of draws; draws of one seed for different purposes are independent."""

    STREAM = 1
    FIXED_TIME = 2
    PATH = 3
    CELLS = 4


def _signed(word: int) -> int:
    """The last 64 bits as a signed integer, in two's complement."""
    return ((word + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place."""
    for by, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # A logical shift, by masking an arithmetic one.
        z ^= (z >> by).bitwise_and_((1 << (64 - by)) - 1)
        z *= factor
    return z


class _Draws:
    """Normals as a function of (seed, purpose, counter, position), by the Box-Muller transform.

        z + i z' = sqrt(-2 log u) exp(i phi),   u of 31 bits, phi of 32

    The radius has the exact distribution up to sqrt(64 log 2) = 6.66.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)

    def __call__(self, x: Tensor, purpose: Purpose, counter: Tensor | int) -> Tensor:
        """Draws shaped like ``x``; the counter is a number, or one per sample (B,)."""
        if len(x) != len(self._seeds):
            raise ValueError(
                f"{len(self._seeds)} seeds for a batch of {len(x)} samples; give one seed a sample"
            )
        self._seeds = sent(self._seeds, x.device)
        counter = sent(counter, x.device) if isinstance(counter, Tensor) else counter
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
