"""Latents: codecs between pictures and what is modelled of them, and the law of a picture."""

from scoresde.latent.autoencoder import KLAutoencoder
from scoresde.latent.codec import Codec, Encoded
from scoresde.latent.laws import Gaussian, Law, Logistic

__all__ = ["Codec", "Encoded", "Gaussian", "KLAutoencoder", "Law", "Logistic"]
