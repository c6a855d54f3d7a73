"""Likelihoods through a codec: of a picture, by the law of the decoder, and of its latent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.latent.codec import Codec
from scoresde.latent.latents import latent_scaling
from scoresde.latent.laws import Law
from scoresde.likelihood.dequantise import Quantisation, middles
from scoresde.likelihood.divergence import sum_from
from scoresde.likelihood.estimators import Estimate, Estimator
from scoresde.samplers import Noise
from scoresde.sde import SDE
from scoresde.training.held_out import evaluating


@final
@dataclass(frozen=True)
class LatentEstimator(Estimator):
    """The bound of the log-probability of a picture, or log p(z) of its latent alone.

        log P(k) >= E_q [log P(k | z) + log p(z) - log q(z | x)],   z = mean(x) + std(x) eps (17)

    with x the middles of the levels k, and p(z) = p_w((z - m) / s) / prod s. p_w is the density
    of states of the model at t_0: what is bounded is the probability of a picture that is decoded
    from such a state, whatever noise the state has. Without ``picture`` the value is log p(z), of
    z from q. Auto-Encoding Variational Bayes, arXiv 1312.6114, eq. 2.

    Args:
        codec: the codec.
        density: estimator of the log-density of real numbers, which latents are.
        picture: bound the log-probability of the picture.

    Raises ValueError for a codec without a law of pictures or of latents, as ``law_of``.
    """

    codec: Codec
    density: Estimator
    picture: bool = True

    def __call__(
        self, denoiser: Denoiser, x: Tensor, scaling: Quantisation, noise: Noise
    ) -> Estimate:
        codec, like = self.codec, self.codec.latents_mean
        with evaluating(codec), torch.no_grad():
            mean, std = (part.double() for part in codec.encode(middles(x, scaling).to(like)))
            eps = noise(mean)
            z = mean + std * eps
            found = self.density(denoiser, z, latent_scaling(codec), noise)
            if not self.picture:
                return found
            law = law_of(codec, std)
            output = codec.output(z.to(like))[..., : x.shape[2], : x.shape[3]]
            distortion = -law.log_prob(output, x, scaling)
        entropy = sum_from(1, eps.square() / 2 + std.log() + math.log(2 * math.pi) / 2)
        bound = found.log_prob + entropy - distortion
        return found._replace(log_prob=bound, distortion=distortion, entropy=entropy)

    @property
    def bounds(self) -> str:
        what = "lower bound of log p of the picture; of its latents: " if self.picture else ""
        return what + self.density.bounds

    def start(self, sde: SDE, scaling: Quantisation) -> float:
        return self.density.start(sde, latent_scaling(self.codec))

    def halved(self) -> tuple[LatentEstimator, LatentEstimator] | None:
        if (pair := self.density.halved()) is None:
            return None
        return replace(self, density=pair[0]), replace(self, density=pair[1])


def law_of(codec: Codec, std: Tensor) -> Law:
    """The law of pictures of a codec with latents of deviation ``std``.

    Raises ValueError if a latent has no noise and so no density q(z | x), or without such a law.
    """
    if not bool((std > 0).all()):
        raise ValueError(
            "this codec encodes without noise, so that its latents have no density q(z | x); "
            "take a KL autoencoder, or score with of=latents"
        )
    if codec.law is None:
        raise ValueError(
            "this codec has no law of a picture given its latent, so that no picture has a "
            "probability; train one with autoencoder.law logistic, or score with of=latents"
        )
    return codec.law
