"""Autoencoders: of Gaussian latents (KL), and of latents from a codebook (VQ)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Natural, Open, Range, arguments, check
from scoresde.latent.codec import Codec, Encoded, wide
from scoresde.latent.laws import Gaussian, Law, Logistic
from scoresde.latent.networks import Decoder, Encoder
from scoresde.latent.quantise import Codebook, perplexity, shares
from scoresde.likelihood.divergence import sum_from
from scoresde.nn.blocks import zeroed
from scoresde.training.distributed import Rank

LAWS: dict[str, Law | None] = {"none": None, "gaussian": Gaussian(), "logistic": Logistic()}
LEAST, LARGEST = -30.0, 20.0
"""Range of the log variance of a latent."""
Widths = Annotated[tuple[Count, ...], Range(length=1)]
Patch = Annotated[int, Range(ge=1, le=16)]


class Passed(NamedTuple):
    """What an autoencoder makes of pictures in training.

    ``output`` is that of the decoder, ``z`` the latents it was given, and ``penalty`` (B,) what
    the law of the latents costs: the KL divergence in nats, or the commitment. ``observed`` is
    what ``Autoencoder.learn`` reads, None where only gradients teach; ``halved`` is the output of
    the decoder for latents of half the size, where the loss has it.
    """

    output: Tensor
    z: Tensor
    penalty: Tensor
    observed: Tensor | None = None
    halved: Tensor | None = None


class Autoencoder(Codec):
    """A codec that is trained to reconstruct.

    ``penalty`` is the name of what the law of its latents costs, whose weight ``Loss`` has.
    """

    penalty: ClassVar[str]

    @abstractmethod
    def passed(self, x: Tensor, noise: Tensor) -> Passed:
        """Encode pictures (B, C, H, W) and decode latents drawn with ``noise`` (B, c, h, w)."""

    @property
    def last(self) -> Tensor:
        """The weights of the last layer, where a discriminator balances gradients."""
        raise ValueError(
            f"discriminator: {type(self).__name__} does not say its last layer; give it ``last``"
        )

    def decoded(self, z: Tensor) -> Tensor:
        """The output of the decoder for latents as ``passed`` gives them."""
        return self.output(z)

    def learn(self, observed: Mapping[int, Tensor], rank: Rank) -> None:
        """Learn, after an update, from what the numbered parts of its batch have ``observed``."""

    def report(self, z: Tensor, penalty: Tensor, numbers: int) -> dict[str, float]:
        """Numbers for the log by name, of the latents (N, c, h, w) of held-out pictures.

        ``penalty`` (N,) is that of ``passed``, and a picture has so many ``numbers``.
        """
        return {}


class Convolutional(Autoencoder):
    """A codec of convolutions. With ``patch`` 1 it has the layers of diffusers.

    High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, appendix G.

    Args:
        channels: channels of the pictures.
        latent_channels: channels of the latents.
        widths: channels at each resolution, from the finest; each but the last halves the size.
        blocks: residual blocks at each resolution of the encoder; the decoder has one more.
        patch: side of the squares of pixels that are stacked as channels first; the size of the
            latents is that of the pictures over patch 2^(number of widths - 1).
        attention: attend over all places of the latents.
        groups: groups of the normalisations; it divides all widths.
        pad: lengthen pictures whose size does not divide by the factor; otherwise refuse them.

    Raises ValueError for groups that do not divide the widths.
    """

    def __init__(
        self,
        channels: int,
        latent_channels: int,
        moments: int,
        *,
        widths: tuple[int, ...],
        blocks: int,
        patch: int,
        attention: bool,
        groups: int,
        law: Law | None = None,
        pad: bool,
    ) -> None:
        factor = patch * 2 ** (len(widths) - 1)
        super().__init__(channels, latent_channels, factor, law=law, pad=pad)
        if stray := [width for width in widths if width % groups]:
            raise ValueError(f"groups={groups} does not divide the width {stray[0]}")
        shared: dict[str, Any] = {
            "blocks": blocks,
            "patch": patch,
            "attention": attention,
            "groups": groups,
        }
        outputs = channels * (1 if law is None else law.outputs)
        self.encoder = Encoder(channels, moments, widths=widths, **shared)
        self.decoder = Decoder(latent_channels, outputs, widths=widths, **shared)
        # 1 x 1 convolutions between the networks and the latents, as diffusers has them. They
        # start as the identity: random ones shrink the latents below their noise, and the KL
        # divergence then gives channels up before the decoder has learnt to use them.
        self.moments = _identity(moments)
        self.entry = _identity(latent_channels)

    @property
    def last(self) -> Tensor:
        return self.decoder.last.weight

    def decoded(self, z: Tensor) -> Tensor:
        kind = z.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        # The decoder overflows in fp16.
        with torch.autocast(kind, enabled=False) if half else nullcontext():
            return wide(self.decoder(self.entry(z)))


def _identity(channels: int) -> nn.Conv2d:
    layer = zeroed(nn.Conv2d(channels, channels, 1))
    nn.init.dirac_(layer.weight)
    return layer


@final
class KLAutoencoder(Convolutional):
    """A convolutional autoencoder whose latents are Gaussian, q(z | x) = N(mean, std^2).

    Its penalty is KL(q(z | x) | N(0, 1)). With ``patch`` 1 it is the AutoencoderKL of diffusers.
    High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, appendix G;
    Auto-Encoding Variational Bayes, arXiv 1312.6114.

    Args:
        law: law of a picture given its latent, for likelihoods: none, gaussian or logistic.
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
        patch: Patch = 2,
        attention: bool = False,
        groups: Count = 8,
        law: Literal["none", "gaussian", "logistic"] = "none",
        pad: bool = False,
    ) -> None:
        check(KLAutoencoder, given := locals())
        super().__init__(
            channels,
            latent_channels,
            2 * latent_channels,
            widths=widths,
            blocks=blocks,
            patch=patch,
            attention=attention,
            groups=groups,
            law=LAWS[law],
            pad=pad,
        )
        self.arguments = {name: given[name] for name in arguments(KLAutoencoder)}

    def encode(self, x: Tensor) -> Encoded:
        found = wide(self.moments(self.encoder(self.padded(x))))
        mean, log_variance = found.chunk(2, 1)
        return Encoded(mean, (log_variance.clamp(LEAST, LARGEST) / 2).exp())

    def output(self, z: Tensor) -> Tensor:
        return self.decoded(z)

    def report(self, z: Tensor, penalty: Tensor, numbers: int) -> dict[str, float]:
        """``kl`` in nats, and as ``rate`` in bits per dimension of the picture."""
        kl = float(penalty.mean())
        return {"kl": kl, "rate": kl / numbers / math.log(2)}

    def passed(self, x: Tensor, noise: Tensor) -> Passed:
        """Encode, draw z = mean + std noise, and decode."""
        mean, std = self.encode(x)
        z = mean + std * noise
        return Passed(self.decoded(z), z, gaussian_kl(mean, std))


@final
class VQAutoencoder(Convolutional):
    """A convolutional autoencoder whose decoder sees the nearest codes of a ``Codebook``.

    ``encode`` gives the latents before they are quantised, which a score model sees, and
    ``output`` quantises them. In training the gradient to a code goes to its latent unchanged,
    and the penalty is the commitment |z - e|^2. With ``patch`` 1 it has the layers of the VQModel
    of diffusers. Neural Discrete Representation Learning, arXiv 1711.00937, eq. 3;
    High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, section 3.1.

    Args:
        codes: number of codes.
        decay: decay of the averages of a code, for each step.
        restart: use of a code, relative to the mean of all, below which it starts anew from a
            latent of the batch.
        wait: steps before the codes start, in which the decoder sees the latents as they are.
        isotropic: standardise the latents by one deviation for all channels, as folders of
            diffusers need it.
    """

    kind = "vq"
    penalty = "commitment"

    def __init__(
        self,
        channels: Count,
        latent_channels: Count = 4,
        *,
        codes: Count = 512,
        decay: Open = 0.99,
        restart: Open = 0.1,
        wait: Natural = 100,
        widths: Widths = (48, 64),
        blocks: Count = 1,
        patch: Patch = 2,
        attention: bool = False,
        groups: Count = 8,
        pad: bool = False,
        isotropic: bool = False,
    ) -> None:
        check(VQAutoencoder, given := locals())
        super().__init__(
            channels,
            latent_channels,
            latent_channels,
            widths=widths,
            blocks=blocks,
            patch=patch,
            attention=attention,
            groups=groups,
            pad=pad,
        )
        self.arguments = {name: given[name] for name in arguments(VQAutoencoder)}
        self.isotropic = isotropic
        self.codebook = Codebook(codes, latent_channels, decay=decay, restart=restart, wait=wait)

    def encode(self, x: Tensor) -> Encoded:
        z = wide(self.moments(self.encoder(self.padded(x))))
        return Encoded(z, torch.zeros_like(z))

    def output(self, z: Tensor) -> Tensor:
        return self.decoded(self.codebook(z).z)

    def passed(self, x: Tensor, noise: Tensor) -> Passed:
        """Encode, quantise and decode; the ``noise`` draws the latents that codes restart from."""
        z = self.encode(x).mean
        found = self.codebook(z)
        straight = z + (found.z - z).detach()
        penalty = sum_from(1, (z - found.z.detach()).square())
        observed = self.codebook.observed(z, found.number, noise[:, 0])
        return Passed(self.decoded(straight), straight, penalty, observed)

    def learn(self, observed: Mapping[int, Tensor], rank: Rank) -> None:
        """Update the codes; those that start anew are drawn from the first part of the batch."""
        total = torch.zeros_like(next(iter(observed.values())))
        for number, told in observed.items():
            counted = total.shape[1] - self.latent_channels * (number > 0)
            total[:, :counted] += told[:, :counted]
        rank.add([total])
        self.codebook.update(total)

    def report(self, z: Tensor, penalty: Tensor, numbers: int) -> dict[str, float]:
        """``codes`` that are used, their ``perplexity``, and its log2 as ``rate`` in bits/dim."""
        if not self.codebook.started:
            return {"codes": 0.0}
        number = self.codebook(z.to(self.latents_mean)).number
        share = shares(number, len(self.codebook.codes))
        found = float(perplexity(share))
        rate = math.log2(found) * number[0].numel() / numbers
        return {"codes": float((share > 0).sum()), "perplexity": found, "rate": rate}


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) | N(0, 1)) in nats (B,), summed over the numbers of a latent."""
    return sum_from(1, (mean.square() + std.square() - 1) / 2 - std.log())
