"""The loss of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.arguments import Natural, NonNegative, check_fields
from scoresde.data import Scaling
from scoresde.latent.autoencoder import Autoencoder, Passed
from scoresde.latent.codec import wide
from scoresde.latent.perceptual import Perceptual
from scoresde.likelihood.divergence import sum_from


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The weights of the terms of the loss of an autoencoder, each a mean over D numbers.

        -log p(x | z) / D + l1 |x - x_hat| / D + l2 (x - x_hat)^2 / D + kl KL / D

    The first term is that of an autoencoder with a law, which has nats per dimension: with kl 1
    the loss is then the negative evidence lower bound. Latents from a codebook have the
    commitment, a mean over their own numbers, in place of the divergence. ``perceptual`` is a
    distance in the maps of a network (``Perceptual``), and ``scale`` the sum of the absolute and
    the squared error of the picture that is decoded from latents of half the size: Improving the
    Diffusability of Autoencoders, arXiv 2502.14831.

    Args:
        l1: weight of the absolute error; null is 1, or 0 for an autoencoder with a law
        l2: weight of the squared error; null is 1, or 0 for an autoencoder with a law
        kl: weight of the KL divergence of the latents from a standard normal law; null is 0.1
        kl_warmup: steps over which the weight kl rises from 0, so that no channel of the latents
            is given up before the decoder has learnt to use it (Ladder Variational Autoencoders,
            arXiv 1602.02282)
        commitment: weight of the squared distance of latents from their codes; null is 0.25
        perceptual: weight of the distance in the maps of ``features``
        features: network of the perceptual distance: lite0 (EfficientNet-Lite0 with ImageNet
            weights), or a TorchScript file or its folder, which is run; null without
        scale: weight of the errors at half the size, such as 0.25; a quarter of a decoder more
    """

    l1: NonNegative | None = None
    l2: NonNegative | None = None
    kl: NonNegative | None = None
    kl_warmup: Natural = 0
    commitment: NonNegative | None = None
    perceptual: NonNegative = 0.0
    features: str | None = None
    scale: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.perceptual > 0) != (self.features is not None):
            raise ValueError(
                f"perceptual={self.perceptual:g} and features={self.features}; give both, such as "
                "perceptual=0.1 and features=lite0, or none"
            )

    def weights(self, codec: Autoencoder) -> dict[str, float]:
        """The weights by term for an autoencoder.

        Raises ValueError for a weight that has no effect on it, or if nothing reconstructs.
        """
        error = 0.0 if codec.law is not None else 1.0
        found = {"nll": 1.0 - error}
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            found[name] = error if value is None else value
        if not any(found.values()):
            raise ValueError("loss: l1=0 and l2=0 reconstruct nothing; raise one of them")
        if codec.penalty not in PENALTIES:
            raise ValueError(
                f"codec: its penalty {codec.penalty!r} has no weight; call it one of "
                f"{', '.join(PENALTIES)}"
            )
        for name, default in PENALTIES.items():
            value = getattr(self, name)
            if name == codec.penalty:
                found[name] = default if value is None else value
            elif value is not None:
                raise ValueError(
                    f"loss.{name}={value:g} has no effect on latents with a penalty "
                    f"{codec.penalty}; leave it out"
                )
        if self.kl_warmup and not found.get("kl"):
            raise ValueError(f"loss.kl_warmup={self.kl_warmup} has no effect without loss.kl")
        found |= {"perceptual": self.perceptual, "scale": self.scale}
        return {name: weight for name, weight in found.items() if weight}


PENALTIES = {"kl": 0.1, "commitment": 0.25}
"""The default weights of what the law of the latents costs."""


class Criterion:
    """The loss of an autoencoder on pictures of a scaling; ``perceptual`` is a distance of them.

    Raises ValueError as ``Loss`` does.
    """

    def __init__(
        self,
        loss: Loss,
        codec: Autoencoder,
        scaling: Scaling,
        perceptual: Perceptual | None = None,
    ) -> None:
        self.weights, self._warmup = loss.weights(codec), loss.kl_warmup
        self._law, self._scaling, self._perceptual = codec.law, scaling, perceptual

    def require_fit(self, codec: Autoencoder, shape: tuple[int, ...]) -> None:
        """Raise ValueError for pictures (C, H, W) that a term does not take."""
        if self._perceptual is not None:
            self._perceptual.require_fit(shape)
        if "scale" in self.weights and min(codec.latent_shape(shape)[1:]) < 2:
            raise ValueError("loss.scale: latents of one place have no half size; set it to 0")

    def passed(self, codec: Autoencoder, x: Tensor, noise: Tensor) -> Passed:
        """``codec.passed``, and what the decoder makes of latents of half the size if needed."""
        found = codec.passed(x, noise)
        if "scale" in self.weights:
            found = found._replace(halved=codec.decoded(halved(found.z)))
        return found

    def picture(self, output: Tensor, x: Tensor) -> Tensor:
        """The pictures of an output of the decoder, of the size of x, in float32 at least."""
        found = cropped(wide(output), x)
        return found if self._law is None else self._law.mean(found)

    def terms(self, passed: Passed, x: Tensor, data: Tensor) -> dict[str, Tensor]:
        """The terms (B,) by name, without their weights, in float32 at least.

        ``x`` are the pictures in model units, ``data`` the same in units of the data.
        """
        each, found = x[0].numel(), dict[str, Tensor]()
        picture = self.picture(passed.output, x)
        for name in self.weights:
            if name == "nll":
                output = cropped(wide(passed.output), x)
                assert self._law is not None
                found[name] = -self._law.log_prob(output, data, self._scaling) / each
            elif name == "l1":
                found[name] = sum_from(1, (picture - x).abs()) / each
            elif name == "l2":
                found[name] = sum_from(1, (picture - x).square()) / each
            elif name == "perceptual":
                assert self._perceptual is not None
                found[name] = self._perceptual(picture, x)
            elif name == "scale":
                assert passed.halved is not None
                small = self.picture(passed.halved, halved(x))
                error = small - cropped(halved(x), small)
                found[name] = sum_from(1, error.abs() + error.square()) / error[0].numel()
            else:
                numbers = each if name == "kl" else passed.z[0].numel()
                found[name] = wide(passed.penalty) / numbers
        return found

    def total(self, terms: Mapping[str, Tensor], step: int | None = None) -> Tensor:
        """The loss (B,): the sum of the terms with their weights, those of update ``step``."""
        weights = dict(self.weights)
        if step is not None and step < self._warmup:
            weights["kl"] *= step / self._warmup
        return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum(0)


def halved(x: Tensor) -> Tensor:
    """Pictures or latents of half the size, bilinear: the means of 2 x 2 places."""
    return F.avg_pool2d(x, 2)


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """The upper left part of pictures, no larger than others."""
    return x[..., : like.shape[-2], : like.shape[-1]]
