"""Networks ``net(x, noise, label=None)``, which know a noise coordinate and no process."""

from scoresde.nn.embeddings import Conditioning, Sinusoids, gaussian_fourier, sinusoidal
from scoresde.nn.levels import LevelMean
from scoresde.nn.mlp import MLP
from scoresde.nn.unet import UNet

__all__ = [
    "MLP",
    "Conditioning",
    "LevelMean",
    "Sinusoids",
    "UNet",
    "gaussian_fourier",
    "sinusoidal",
]
