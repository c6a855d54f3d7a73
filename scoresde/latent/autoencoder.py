"""Autoencoders: of Gaussian latents (KL), and of latents from a codebook (VQ)."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from scoresde.arguments import Count, Range, arguments, check
from scoresde.latent.codec import Codec, Encoded, wide
from scoresde.latent.laws import Gaussian, Law, Logistic
from scoresde.latent.networks import Decoder, Encoder
from scoresde.likelihood.divergence import sum_from

LAWS: dict[str, Law | None] = {"none": None, "gaussian": Gaussian(), "logistic": Logistic()}
LEAST, LARGEST = -30.0, 20.0
"""Range of the log variance of a latent."""
Widths = Annotated[tuple[Count, ...], Range(length=1)]


class Passed(NamedTuple):
    """What an autoencoder makes of pictures in training.

    ``output`` is that of the decoder, ``z`` the latents it was given, and ``penalty`` (B,) what
    the law of the latents costs: the KL divergence in nats, or the commitment.
    """

    output: Tensor
    z: Tensor
    penalty: Tensor


class Autoencoder(Codec):
    """A codec that is trained to reconstruct.

    ``penalty`` is the name of what the law of its latents costs, whose weight ``Loss`` has.
    """

    penalty: ClassVar[str]

    @abstractmethod
    def passed(self, x: Tensor, noise: Tensor) -> Passed:
        """Encode pictures (B, C, H, W) and decode latents drawn with ``noise`` (B, c, h, w)."""

    def report(self, z: Tensor, penalty: Tensor, numbers: int) -> dict[str, float]:
        """Numbers for the log by name, of the latents (N, c, h, w) of held-out pictures.

        ``penalty`` (N,) is that of ``passed``, and a picture has so many ``numbers``.
        """
        return {}


@final
class KLAutoencoder(Autoencoder):
    """A convolutional autoencoder whose latents are Gaussian, q(z | x) = N(mean, std^2).

    Its penalty is KL(q(z | x) | N(0, 1)). With ``patch`` 1 it is the AutoencoderKL of diffusers.
    High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, appendix G;
    Auto-Encoding Variational Bayes, arXiv 1312.6114.

    Args:
        channels: channels of the pictures.
        latent_channels: channels of the latents.
        widths: channels at each resolution, from the finest; each but the last halves the size.
        blocks: residual blocks at each resolution of the encoder; the decoder has one more.
        patch: side of the squares of pixels that are stacked as channels first; the size of the
            latents is that of the pictures over patch 2^(number of widths - 1).
        attention: attend over all places of the latents.
        groups: groups of the normalisations; it divides all widths.
        law: law of a picture given its latent, for likelihoods: none, gaussian or logistic.
        pad: lengthen pictures whose size does not divide by the factor; otherwise refuse them.

    Raises ValueError for groups that do not divide the widths.
    """

    kind = "kl"
    penalty = "kl"

    def __init__(
        self,
        channels: Count,
        latent_channels: Count = 4,
        *,
        widths: Widths = (48, 64),
        blocks: Count = 1,
        patch: Annotated[int, Range(ge=1, le=16)] = 2,
        attention: bool = False,
        groups: Count = 8,
        law: Literal["none", "gaussian", "logistic"] = "none",
        pad: bool = False,
    ) -> None:
        check(KLAutoencoder, given := locals())
        factor = patch * 2 ** (len(widths) - 1)
        super().__init__(channels, latent_channels, factor, law=LAWS[law], pad=pad)
        if stray := [width for width in widths if width % groups]:
            raise ValueError(f"groups={groups} does not divide the width {stray[0]}")
        self.arguments = {name: given[name] for name in arguments(KLAutoencoder)}
        shared: dict[str, Any] = {
            "blocks": blocks,
            "patch": patch,
            "attention": attention,
            "groups": groups,
        }
        outputs = channels * (1 if self.law is None else self.law.outputs)
        self.encoder = Encoder(channels, 2 * latent_channels, widths=widths, **shared)
        self.decoder = Decoder(latent_channels, outputs, widths=widths, **shared)
        # 1 x 1 convolutions between the networks and the latents, as diffusers has them.
        self.moments = torch.nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.entry = torch.nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> Encoded:
        found = wide(self.moments(self.encoder(self.padded(x))))
        mean, log_variance = found.chunk(2, 1)
        return Encoded(mean, (log_variance.clamp(LEAST, LARGEST) / 2).exp())

    def output(self, z: Tensor) -> Tensor:
        kind = z.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        # The decoder overflows in fp16.
        with torch.autocast(kind, enabled=False) if half else nullcontext():
            return wide(self.decoder(self.entry(z)))

    def report(self, z: Tensor, penalty: Tensor, numbers: int) -> dict[str, float]:
        """``kl`` in nats, and as ``rate`` in bits per dimension of the picture."""
        kl = float(penalty.mean())
        return {"kl": kl, "rate": kl / numbers / math.log(2)}

    def passed(self, x: Tensor, noise: Tensor) -> Passed:
        """Encode, draw z = mean + std noise, and decode."""
        mean, std = self.encode(x)
        z = mean + std * noise
        return Passed(self.output(z), z, gaussian_kl(mean, std))


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) | N(0, 1)) in nats (B,), summed over the numbers of a latent."""
    return sum_from(1, (mean.square() + std.square() - 1) / 2 - std.log())
