"""Features of noise level, class and embedding, and the vector that conditions every block.

The noise coordinate is log(sigma / alpha) / 4, roughly in [-3, 3], one number per sample, or the
place in a table of levels, from 0 to about 1000, for networks that are ``indexed``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sinusoids(nn.Module):
    """(sin(w c), cos(w c)) for n fixed frequencies w, (B,) -> (B, 2 n).

    The frequencies, in radians per unit of c, are a buffer and not trained. They stay at least
    float32 in a network of half precision, where an angle of a large c would be wrong by radians.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def _apply(self, fn: Any, recurse: bool = True) -> Sinusoids:
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < 4:
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, coordinate: Tensor) -> Tensor:
        angle = coordinate[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(coordinate.dtype)


def sinusoidal(width: int, *, low: float = 0.5, high: float = 32.0) -> Sinusoids:
    """Geometric frequencies from ``low`` to ``high``.

    At 0.5 rad a sine is one to one on [-3, 3]. At 32 rad a change of sigma / alpha by 1 % (0.0025
    of c) turns the phase by 0.08, and the flow is still smooth enough for an ODE solver. Raises
    ValueError unless width is even and positive. Attention Is All You Need, arXiv 1706.03762,
    section 3.5.
    """
    exponents = torch.linspace(math.log(low), math.log(high), _pairs(width), dtype=torch.float64)
    return Sinusoids(exponents.exp().float())


def gaussian_fourier(width: int, *, scale: float = 2.0, seed: int = 0) -> Sinusoids:
    """Fixed random frequencies 2 pi scale N(0, 1), independent of the global generator.

    By default they are about 13 rad, within the range of ``sinusoidal``; a larger scale resolves
    finer differences of noise and makes the flow rougher. Raises ValueError unless width is even
    and positive. Fourier Features Let Networks Learn High Frequency Functions, arXiv 2006.10739,
    eq. 5.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(_pairs(width), generator=generator, dtype=torch.float64, device="cpu")
    return Sinusoids((2 * math.pi * scale * draws).float())


class Timesteps(nn.Module):
    """(sin(w c), cos(w c)) for n frequencies w_i = 10000^(-i / (n - 1)), (B,) -> (B, 2 n).

    c is a place in a table of levels, or 1000 t. The frequencies and the features are at least
    float32, since those of half precision would confuse neighbouring places. They are computed as
    in diffusers, ``Timesteps`` with ``downscale_freq_shift`` 1. DDPM, arXiv 2006.11239.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = _pairs(width)

    def forward(self, place: Tensor) -> Tensor:
        place = place.to(torch.promote_types(place.dtype, torch.float32))
        i = torch.arange(self.pairs, dtype=torch.float32, device=place.device)
        angle = place[:, None] * torch.exp(-math.log(1e4) * i / max(self.pairs - 1, 1))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def features_of(width: int, *, fourier: bool, indexed: bool) -> nn.Module:
    """Features of the noise level: ``Timesteps``, ``gaussian_fourier`` or ``sinusoidal``."""
    if indexed:
        return Timesteps(width)
    return gaussian_fourier(width) if fourier else sinusoidal(width)


class Conditioning(nn.Module):
    """One vector of noise, class, augmentation and embedding, (B, ...) each -> (B, out).

    A two-layer network of their summed features. Labels are 0..classes-1; the value ``classes``,
    or ``label=None`` for a whole batch, means no label. Augmentation and embedding enter through
    linear maps; zeros, or None, add nothing. EDM, arXiv 2206.00364, appendix F.
    """

    def __init__(
        self,
        features: int,
        out: int,
        *,
        fourier: bool = False,
        indexed: bool = False,
        classes: int | None = None,
        augments: int | None = None,
        embed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(classes, augments, embed)
        self.classes, self.wide_noise = classes, True
        self.features = features_of(features, fourier=fourier, indexed=indexed)
        self.labels = None if classes is None else nn.Embedding(classes + 1, features)
        self.augments = None if augments is None else nn.Linear(augments, features, bias=False)
        self.embed = None if embed is None else nn.Linear(embed, features, bias=False)
        self.hidden = nn.Linear(features, out)
        self.out = nn.Linear(out, out)

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        embed: Tensor | None = None,
    ) -> Tensor:
        """Raises ValueError for an input that the network was not built for."""
        features = self.features(noise).to(self.hidden.weight.dtype)
        features = labelled(features, self.labels, label)
        features = added(features, self.augments, augment, "augment")
        features = added(features, self.embed, embed, "embed")
        return F.silu(self.out(F.silu(self.hidden(features))))


class LateConditioning(nn.Module):
    """``Conditioning`` with class and embedding added after the two layers.

    Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3.1.
    """

    def __init__(
        self,
        features: int,
        out: int,
        *,
        fourier: bool = False,
        indexed: bool = False,
        classes: int | None = None,
        augments: int | None = None,
        embed: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(classes, augments, embed)
        self.classes, self.wide_noise = classes, True
        self.features = features_of(features, fourier=fourier, indexed=indexed)
        self.labels = None if classes is None else nn.Embedding(classes + 1, out)
        self.augments = None if augments is None else nn.Linear(augments, features, bias=False)
        self.embed = None if embed is None else nn.Linear(embed, out, bias=False)
        self.hidden = nn.Linear(features, out)
        self.out = nn.Linear(out, out)

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        embed: Tensor | None = None,
    ) -> Tensor:
        features = self.features(noise).to(self.hidden.weight.dtype)
        features = added(features, self.augments, augment, "augment")
        vector = labelled(self.out(F.silu(self.hidden(features))), self.labels, label)
        return F.silu(added(vector, self.embed, embed, "embed"))


def labelled(features: Tensor, labels: nn.Embedding | None, label: Tensor | None) -> Tensor:
    """The features plus the embedding of each label, or of no label.

    Raises ValueError for a label without an embedding.
    """
    if labels is not None:
        rows: Tensor = labels.weight[-1] if label is None else labels(label.long())
        return features + rows
    if label is not None:
        raise ValueError(
            "network built without classes: pass label=None or build it with classes=n"
        )
    return features


def added(features: Tensor, layer: nn.Module | None, given: Tensor | None, name: str) -> Tensor:
    """The features plus ``layer(given)``; unchanged if nothing is given.

    Raises ValueError if something is given that the network was not built for.
    """
    if given is None:
        return features
    if layer is None:
        built = {"augment": "augments", "embed": "embed"}[name]
        raise ValueError(
            f"network built without {built}: pass {name}=None or build it with {built}=n"
        )
    found: Tensor = layer(given)
    return features + found


def check_counts(classes: int | None, augments: int | None, embed: int | None) -> None:
    """Raise ValueError for numbers below 1."""
    if any(count is not None and count < 1 for count in (classes, augments, embed)):
        raise ValueError(
            f"need classes, augments and embed >= 1 or None, got classes={classes}, "
            f"augments={augments}, embed={embed}"
        )


def positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """Sines and cosines of rows and columns, (rows columns, width) for ``like`` (..., width).

    The frequencies are 10000^(-4 i / width), i < width / 4, for each coordinate; zeros fill up a
    width that is no multiple of 4. Attention Is All
    You Need, arXiv 1706.03762, section 3.5.
    """
    quarter = like.shape[-1] // 4
    wide = torch.promote_types(like.dtype, torch.float32)
    i, row, column = (
        torch.arange(n, device=like.device, dtype=wide) for n in (quarter, rows, columns)
    )
    w = torch.exp(-math.log(1e4) / max(quarter, 1) * i)
    at_row = row.repeat_interleave(columns)[:, None] * w
    at_column = column.repeat(rows)[:, None] * w
    parts = [at_row.sin(), at_row.cos(), at_column.sin(), at_column.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, like.shape[-1] - 4 * quarter)).to(like.dtype)


def _pairs(width: int) -> int:
    if width < 2 or width % 2:
        raise ValueError(f"need an even embedding width >= 2, got {width}")
    return width // 2
