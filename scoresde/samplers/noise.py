"""Injected randomness: where a sampler's normal draws come from."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
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
        start, length = self._value(x, at), math.sqrt(abs(to - at))
        if not self._extends(at, to):
            return torch.sub(self._value(x, to), start).mul_(1 / length)
        # The step of a walk: its increment is the draw itself.
        z = self._hashed.normal(x, _bits(to))
        self._keep(to, torch.add(start, z, alpha=length))
        return z

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
        z = self._hashed.normal(x, _bits(u))
        if i in (0, len(self._points)):
            end = min(i, len(self._points) - 1)
            return z.mul_(math.sqrt(abs(u - self._points[end]))).add_(self._values[end])
        low, high = self._points[i - 1], self._points[i]
        share = (u - low) / (high - low)
        mean = torch.lerp(self._values[i - 1], self._values[i], share)
        return mean.add_(z, alpha=math.sqrt(share * (high - u)))


# Counter-based normals: 64 hashed bits are four draws from a table of 2^16 values, then turned
# into one another. The hash is SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number
# Generators, OOPSLA 2014) on 64-bit integers, which wrap alike on every device.

_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    """The two's complement of the last 64 bits."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
# The golden ratio, pi and sqrt 2, for seeds, calls and positions: with one step for all, seed 3 at
# position 5 would be seed 5 at position 3.
_SEED, _CALL = _signed(0x9E3779B97F4A7C15), _signed(0x243F6A8885A308D3)
_POSITION = _signed(0x6A09E667F3BCC909)


def _words(seeds: Sequence[int]) -> Tensor:
    """Seeds of any size, modulo 2^64."""
    try:
        return torch.from_numpy(np.fromiter(seeds, np.int64, len(seeds)))
    except OverflowError:  # the slow way, for seeds from 2^63 on
        return torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)


def _mixed(word: int) -> int:
    """The finaliser of SplitMix64, of the last 64 bits on the host."""
    word &= _WORD
    for by, factor in ((30, _FIRST), (27, _SECOND)):
        word = (word ^ word >> by) * factor & _WORD
    return _signed(word ^ word >> 31)


def _mix(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64, in place."""
    spare = torch.empty_like(z)
    return _fold(_multiplied(_fold(z, 30, spare), spare), 31, spare)


def _multiplied(z: Tensor, spare: Tensor) -> Tensor:
    """Both products of the finaliser and the fold between them, in place."""
    return _fold(z.mul_(_FIRST), 27, spare).mul_(_SECOND)


def _fold(z: Tensor, by: int, spare: Tensor) -> Tensor:
    """z ^ (z >> by), in place; the shift is logical: an arithmetic one, masked."""
    torch.bitwise_right_shift(z, by, out=spare)
    return z.bitwise_xor_(spare.bitwise_and_((1 << (64 - by)) - 1))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _positions(words: int, device: torch.device) -> Tensor:
    """A random word for every four numbers of a sample."""
    return _mix(torch.arange(1, words + 1) * _POSITION).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Means of 2^16 cells of equal probability under the normal law, over sqrt 2.

    In the outermost two a side, the a and b that make the variance 1 and the fourth moment 3:
    a^2 + b^2 = A and a^4 + b^4 = B are what the other cells leave of them.
    """
    side = 1 << 15
    edges = torch.special.ndtri(torch.arange(side, 2 * side, dtype=torch.float64) / (2 * side))
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    upper = -2 * side * torch.cat([density, density.new_zeros(1)]).diff()
    left, left4 = (k * side - float(upper[:-2].pow(p).sum()) for k, p in ((1, 2), (3, 4)))
    gap = math.sqrt(2 * left4 - left**2)
    upper[-2], upper[-1] = math.sqrt((left - gap) / 2), math.sqrt((left + gap) / 2)
    return torch.cat([-upper.flip(0), upper]).div(math.sqrt(2)).to(device, dtype)


def _bits(u: float) -> int:
    """The 64 bits of a float, as a counter."""
    return int(struct.unpack("<q", struct.pack("<d", u))[0])


class _Scratch:
    """Memory for draws like ``x``: fresh memory every call would cost as much as the hash."""

    @torch.inference_mode(False)  # it may be used again outside
    def __init__(self, x: Tensor) -> None:
        self.fits = (x.shape, x.dtype, x.device)
        size, dtype = math.prod(x.shape[1:]), torch.promote_types(x.dtype, torch.float32)
        pairs = -(-size // 2)
        words = -(-pairs // 2)
        self.odd, self.plane = bool(size % 2), dtype.to_complex()
        self.positions, self.table = _positions(words, x.device), _table(dtype, x.device)
        self.words = torch.empty(len(x), words, dtype=torch.int64, device=x.device)
        self.spare = torch.empty_like(self.words)
        # Of a single pair only the upper halves of the words are used, closed up.
        self.upper = self.words.view(torch.int32)[:, 1:]
        self.used = self.upper.clone() if pairs == 1 else self.words
        self.cells = self.used.view(torch.uint16)[:, : 2 * pairs]
        self.index = torch.empty_like(self.cells, dtype=torch.int32)
        self.flat = self.index.view(-1)


class _Hashed:
    """Normals as a function of (seed, counter, position), for samples of one shape.

        z, z' = (a - b) / sqrt 2, (a + b) / sqrt 2,   a, b means of cells of the normal law

    Each number so takes 2^31 values, in double precision too, and reaches 6.3 deviations; P(|z| >
    c) is within 0.1 % of the normal law up to c = 4.25, 0.5 % short at 4.5, 3 % at 5. Turned back,
    (z + z') / sqrt 2, a pair is as coarse as the table: 2^16 values, within 4.5 deviations.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._keys = _mix(_words(seeds) * _SEED).unsqueeze(1)
        self._scratch: _Scratch | None = None

    def normal(self, x: Tensor, counter: Tensor | int) -> Tensor:
        """Draws shaped like ``x``; the counter is one number, or one per sample (B,)."""
        to = self._prepared(x)
        self._hash(counter, to)
        z = to.table.index_select(0, to.flat)
        # (a + ib) (1 + i): the products are exact, so that every device rounds alike.
        z.view(to.plane).mul_(1 + 1j)
        if to.odd:
            z = z.view(to.index.shape)[:, :-1]
        z = z.view(x.shape)
        return z if z.dtype == x.dtype else z.to(x.dtype)

    def _prepared(self, x: Tensor) -> _Scratch:
        """The memory for draws like ``x``, after a check of the batch."""
        if self._scratch is None or self._scratch.fits != (x.shape, x.dtype, x.device):
            if len(x) != len(self._keys):
                raise ValueError(
                    f"{len(self._keys)} seeds for a batch of {len(x)} samples; "
                    "give one seed a sample"
                )
            self._scratch, self._keys = _Scratch(x), self._keys.to(x.device)
        return self._scratch

    def _hash(self, counter: Tensor | int, to: _Scratch) -> None:
        """Cells for all numbers: 64 bits for four, the finaliser of seed ^ counter ^ position.

        Each of the three is a random word by now, and the first fold linear: it is left out, as
        that of other random words. The last is for the lower half: an upper half goes without.
        """
        if isinstance(counter, int):
            places = to.positions ^ _mixed(counter * _CALL)
        else:
            places = to.positions ^ _mix(counter * _CALL).unsqueeze(1)
        torch.bitwise_xor(self._keys, places, out=to.words)
        _multiplied(to.words, to.spare)
        if to.used is to.words:
            _fold(to.words, 31, to.spare)
        else:
            to.used.copy_(to.upper)
        to.index.copy_(to.cells)
