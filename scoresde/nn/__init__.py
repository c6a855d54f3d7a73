"""Networks ``net(x, noise, **told)`` of a noise coordinate, independent of the process."""

from scoresde.nn.classifiers import ImageClassifier, VectorClassifier
from scoresde.nn.concat import ConcatUNet
from scoresde.nn.cross import CrossAttention
from scoresde.nn.dit import DIT_SIZES, DiT
from scoresde.nn.edm2 import EDM2, EDM2_WIDTHS
from scoresde.nn.embeddings import (
    Conditioning,
    LateConditioning,
    Sinusoids,
    Timesteps,
    gaussian_fourier,
    sinusoidal,
)
from scoresde.nn.levels import LevelMean
from scoresde.nn.mlp import MLP
from scoresde.nn.presets import adm, ddpmpp, ncsnpp
from scoresde.nn.published import ImageV1, LucidUNet
from scoresde.nn.unet import UNet

__all__ = [
    "DIT_SIZES",
    "EDM2",
    "EDM2_WIDTHS",
    "MLP",
    "ConcatUNet",
    "Conditioning",
    "CrossAttention",
    "DiT",
    "ImageClassifier",
    "ImageV1",
    "LateConditioning",
    "LevelMean",
    "LucidUNet",
    "Sinusoids",
    "Timesteps",
    "UNet",
    "VectorClassifier",
    "adm",
    "ddpmpp",
    "gaussian_fourier",
    "ncsnpp",
    "sinusoidal",
]
