"""Latents: codecs between pictures and what is modelled of them, and the law of a picture."""

from scoresde.latent.autoencoder import Autoencoder, KLAutoencoder, Passed, VQAutoencoder
from scoresde.latent.codec import Codec, Encoded
from scoresde.latent.discriminator import PatchDiscriminator
from scoresde.latent.laws import Gaussian, Law, Logistic
from scoresde.latent.losses import Loss

__all__ = [
    "Autoencoder",
    "Codec",
    "Encoded",
    "Gaussian",
    "KLAutoencoder",
    "Law",
    "Logistic",
    "Loss",
    "Passed",
    "PatchDiscriminator",
    "VQAutoencoder",
]
