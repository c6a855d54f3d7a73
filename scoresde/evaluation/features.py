"""Features (N, D) of images or points, in which distributions are compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.evaluation.classifier import Classifier
from scoresde.evaluation.finite import require_finite
from scoresde.nn.lite0 import Lite0

CHUNK = 100
SIDE = 299
"""Height and width of the images that Inception networks take."""
LEAST = 64
"""Least height and width of the images that EfficientNet-Lite0 takes here."""


@dataclass(frozen=True)
class Extractor:
    """A named map ``of`` from examples (N, ...) to features (N, D).

    If ``pictures``, it takes uint8 images (N, C, H, W) with C = 1 or 3, otherwise the pixel levels
    or real numbers of the data set. ``inception`` marks the network of FID and KID.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    pictures: bool = False
    inception: bool = False


def classifier_features(judge: Classifier, data: str) -> Extractor:
    """The features of a classifier fitted on ``data``, averaged over the image."""
    return Extractor(f"classifier features of {data}", judge.features)


def raw_features(train: Tensor, data: str) -> Extractor:
    """The data, standardised by their mean and one common deviation over ``train`` (N, ...).

    (x - mean) / sqrt(mean_d var_d), which preserves the geometry. Raises ValueError for NaN or
    infinity in ``train``.
    """
    require_finite(examples=train)
    flat = train.flatten(1).double()
    mean, scale = flat.mean(0), flat.var(0, correction=0).mean().sqrt().clamp_min(1e-12)
    kind = "pixels" if train.ndim == 4 else "values"
    name = f"standardised {kind} of {data}"
    return Extractor(name, lambda x: (x.flatten(1).double() - mean) / scale)


def lite0_features(device: torch.device | str = "cpu") -> Extractor:
    """The 1280 features of EfficientNet-Lite0 with its ImageNet weights, averaged over the image.

    Images with a shorter side below 64 pixels are enlarged to it: the network halves the size five
    times, so that at 32 pixels one place would be left, which sees its zeros beyond the edges more
    than the image. Raises ValueError without the packages of the network.
    """
    net = Lite0().to(device)

    def of(x: Tensor) -> Tensor:
        found = []
        for part in x.split(CHUNK):
            colour = part.to(device).expand(-1, 3, -1, -1).float() / 255
            if (side := min(x.shape[2:])) < LEAST:
                size = [round(length * LEAST / side) for length in x.shape[2:]]
                colour = F.interpolate(colour, size, mode="bilinear", align_corners=False)
            with torch.no_grad():
                found.append(net.pooled(colour).double().cpu())
        return torch.cat(found)

    return Extractor("EfficientNet-Lite0 features", of, pictures=True)


def torchscript_features(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """The features of the network in a TorchScript file. The file is a program and will be run.

    If its forward has the argument ``return_features``, as the Inception of StyleGAN and EDM has,
    it gets uint8 colour images of any size and is taken for that network. Any other gets numbers
    in [0, 1], resized to 299 x 299, and returns a tensor or a list of one. Grey images are
    repeated to three channels. Raises ValueError, naming the file, if the file cannot be read or
    does not return finite features (N, D).
    """
    net = read_torchscript(path, device)
    try:
        inception = any(a.name == "return_features" for a in net.forward.schema.arguments)
    except AttributeError as error:
        raise ValueError(f"{path}: has no forward; save a module with jit") from error

    def batch(x: Tensor) -> Tensor:
        colour = x.expand(-1, 3, -1, -1)
        if inception:
            return _checked(path, len(x), net(colour, return_features=True))
        size = (SIDE, SIDE)
        resized = F.interpolate(colour.float() / 255, size, mode="bilinear", align_corners=False)
        return _checked(path, len(x), net(resized))

    def of(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [batch(part.to(device)) for part in x.split(CHUNK)]
        return torch.cat(parts)

    return Extractor(f"features of {path.name}", of, pictures=True, inception=inception)


def read_torchscript(path: Path, device: torch.device | str = "cpu") -> Any:
    """The network in a TorchScript file, in evaluation mode. Raises ValueError if it has none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition(".")[0][:120]
        raise ValueError(f"{path}: no TorchScript file ({reason}); save one with jit") from error


def _checked(path: Path, n: int, found: object) -> Tensor:
    """The output of the network for n images, (N, D) or (N, D, 1, 1), as features (N, D)."""
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor) or found.shape[:1] != (n,) or found.ndim < 2:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path}: returns {kind} for {n} images; expected (N, D) features")
    if found.flatten(1).shape[1] != found.shape[1]:
        raise ValueError(f"{path}: returns maps {tuple(found.shape)}; average them over the image")
    if bad := int((~found.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{path}: {bad} of {n} features are not finite; check the network")
    return found.flatten(1).double().cpu()
