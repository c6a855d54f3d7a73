"""From images or points to features (N, D), in which distributions are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.evaluation.classifier import Classifier

CHUNK = 100
SIDE = 299
"""Pixels of the images that Inception networks take."""


@dataclass(frozen=True)
class Extractor:
    """Features of examples, with their name.

    ``of`` takes (N, ...) and returns (N, D); ``pictures`` says that it takes uint8 (N, C, H, W)
    with C = 1 or 3, else the levels or numbers of the data set. ``inception`` says that it is the
    network whose distances are called FID and KID.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    pictures: bool = False
    inception: bool = False


def classifier_features(judge: Classifier, data: str) -> Extractor:
    """The features that a classifier fitted on ``data`` decides by, averaged over the image."""
    return Extractor(f"classifier features of {data}", judge.features)


def raw_features(train: Tensor, data: str) -> Extractor:
    """The numbers themselves, centred and divided by one deviation: geometry is kept.

        (x - mean) / sqrt(mean_d var_d)

    Mean (D,) and variances over the examples ``train`` (N, ...).
    """
    flat = train.flatten(1).double()
    mean, scale = flat.mean(0), flat.var(0, correction=0).mean().sqrt().clamp_min(1e-12)
    kind = "pixels" if train.ndim == 4 else "values"
    name = f"standardised {kind} of {data}"
    return Extractor(name, lambda x: (x.flatten(1).double() - mean) / scale)


def torchscript_features(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """The features of a network in a TorchScript file, which is a program: it is run.

    A file whose forward takes ``return_features``, as the Inception of StyleGAN and EDM does, is
    given uint8 colour images of any size, which it resizes itself, and counts as that network if
    its features are 2048. Another is given numbers in [0, 1], resized to 299 x 299, and returns a
    tensor, or a list of one. Grey images are given three times. Raises ValueError, naming the
    file, unless it can be read and returns features (N, D), which are finite.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            net = torch.jit.load(path, map_location=device).eval()
        inception = any(a.name == "return_features" for a in net.forward.schema.arguments)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).strip().partition(".")[0][:120]
        raise ValueError(f"{path}: no TorchScript file ({reason}); save one with jit") from error

    def batch(x: Tensor) -> Tensor:
        colour = x.expand(-1, 3, -1, -1)
        found = net(colour, return_features=True) if inception else net(_resized(colour))
        return _checked(path, len(x), found)

    def of(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [batch(part.to(device)) for part in x.split(CHUNK)]
        return torch.cat(parts)

    return Extractor(f"features of {path.name}", of, pictures=True, inception=inception)


def _resized(x: Tensor) -> Tensor:
    size = (SIDE, SIDE)
    return F.interpolate(x.float() / 255, size, mode="bilinear", align_corners=False)


def _checked(path: Path, n: int, found: object) -> Tensor:
    """Features (N, D) of what the network returned for n images; (N, D, 1, 1) are taken too."""
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor) or found.shape[:1] != (n,) or found.ndim < 2:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path}: returns {kind} for {n} images; expected (N, D) features")
    if found.flatten(1).shape[1] != found.shape[1]:
        raise ValueError(f"{path}: returns maps {tuple(found.shape)}; average them over the image")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{path}: features hold NaN or infinity; check the network")
    return found.flatten(1).double().cpu()
