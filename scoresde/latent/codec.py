"""What maps pictures to latents and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.latent.laws import Law


class Encoded(NamedTuple):
    """The law of the latents of pictures, q(z | x) = N(mean, std^2), of independent numbers.

    The std of a map without noise is 0.
    """

    mean: Tensor
    std: Tensor


class Codec(nn.Module, ABC):
    """An encoder and a decoder between pictures x (B, C, H, W) and latents z (B, c, H / f, W / f).

    Pictures are in model units, those of the scaling of ``data``. A score model sees the
    standardised latents

        w = (z - latents_mean) / latents_std

    with the mean and the deviation of each channel over the training pictures, which are buffers
    (c,). ``data`` describes the pictures, None where nobody has said; ``law`` is the law of x
    given the output of the decoder, None for a decoder whose output is a picture and no more;
    ``adversarial`` says that a discriminator shaped its pictures, and ``isotropic`` that all
    channels have the same deviation, the root of their mean variance. ``kind`` and ``arguments``
    are its name in the table of autoencoders and the arguments of its constructor as JSON values,
    None for a codec that only its program can build.

    Args:
        channels: channels C of the pictures.
        latent_channels: channels c of the latents.
        factor: f, the ratio of the sizes.
        law: law of x given z.
        pad: lengthen pictures whose size f does not divide, at their right and lower edge,
            by copies of that edge.
    """

    latents_mean: Tensor
    latents_std: Tensor
    kind: str | None = None
    arguments: Mapping[str, Any] | None = None
    data: Any = None
    adversarial: bool = False
    isotropic: bool = False

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        factor: int,
        *,
        law: Law | None = None,
        pad: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.latent_channels, self.factor = channels, latent_channels, factor
        self.law, self.pad = law, pad
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))

    @abstractmethod
    def encode(self, x: Tensor) -> Encoded:
        """q(z | x) of pictures (B, C, H, W). Raises ValueError for a size that does not fit."""

    @abstractmethod
    def output(self, z: Tensor) -> Tensor:
        """The output of the decoder for latents (B, c, h, w), which ``law`` reads."""

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, f h, f w) of latents: the mean of x given z."""
        found = self.output(z)
        return found if self.law is None else self.law.mean(found)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latent of one picture (C, H, W). Raises ValueError as ``encode``."""
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(
                f"codec: encodes pictures of {self.channels} channels, got examples "
                f"{tuple(shape)}; give it others, or train a codec on these"
            )
        height, width = (-(-side // self.factor) for side in shape[1:])
        if not self.pad and (height * self.factor, width * self.factor) != tuple(shape[1:]):
            raise ValueError(
                f"codec: pictures of {shape[1]} x {shape[2]} pixels do not divide by its factor "
                f"{self.factor}; train one with pad=true, or give pictures of another size"
            )
        return (self.latent_channels, height, width)

    def padded(self, x: Tensor) -> Tensor:
        """Pictures with a size that the factor divides. Raises ValueError as ``encode``."""
        _, height, width = self.latent_shape(tuple(x.shape[1:]))
        down, across = (
            side * self.factor - now
            for side, now in zip((height, width), x.shape[2:], strict=True)
        )
        return F.pad(x, (0, across, 0, down), "replicate") if down or across else x

    def standardised(self, z: Tensor) -> Tensor:
        """w = (z - latents_mean) / latents_std."""
        return (z - _along(self.latents_mean, z)) / _along(self.latents_std, z)

    def unstandardised(self, w: Tensor) -> Tensor:
        """z = latents_std w + latents_mean."""
        return w * _along(self.latents_std, w) + _along(self.latents_mean, w)


def wide(x: Tensor) -> Tensor:
    """Numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _along(each: Tensor, z: Tensor) -> Tensor:
    """One number a channel (c,), for latents (B, c, h, w)."""
    return each.to(z).view(-1, *[1] * (z.ndim - 2))
