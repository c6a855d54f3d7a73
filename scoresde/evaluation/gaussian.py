"""The Frechet distance between the Gaussians of two sets of features."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.evaluation.finite import require_finite

PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of features, whose name is ``features`` if known.

    Raises ValueError for other shapes, NaN or infinity, or an asymmetric covariance.
    """

    mean: Tensor
    covariance: Tensor
    features: str | None = None

    def __post_init__(self) -> None:
        mean, covariance = self.mean, self.covariance
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(mean) == 0:
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"mean and covariance are {shapes}; expected (D,) and (D, D)")
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise ValueError("mean or covariance hold NaN or infinity")
        largest = float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > 1e-4 * largest:
            raise ValueError("the covariance is not symmetric")


def moments(x: Tensor, features: str | None = None) -> Moments:
    """The mean and the unbiased covariance of features ``x`` (N, D), in float64.

    Raises ValueError unless N >= 2, or for NaN or infinity.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features are {tuple(x.shape)}; expected (N, D) with at least 2 of them")
    require_finite(features=x)
    x = x.double()
    centred = x - x.mean(0)
    return Moments(x.mean(0), centred.T @ centred / (len(x) - 1), features)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance between two Gaussians: the square of their Wasserstein-2 distance.

        |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^1/2)

    The last trace is computed as the sum of the singular values of S_a^1/2 S_b^1/2, which also
    holds for singular covariances. Raises ValueError for moments of different dimensions. Heusel
    and others, GANs trained by a two time-scale update rule, arXiv 1706.08500, eq. 6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments are of {len(a.mean)} and {len(b.mean)} features; give alike")
    gap = (a.mean - b.mean).square().sum()
    common = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * common)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root, with eigenvalues below the rounding error set to 0."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    roots = torch.where(values > rounding, values, 0).sqrt()
    root: Tensor = (vectors * roots) @ vectors.T
    return root


def save_moments(path: Path, found: Moments) -> None:
    """Write an .npz of ``mu`` and ``sigma``, as pytorch-fid and EDM do, and the feature name."""
    arrays: dict[str, Any] = {
        "mu": found.mean.cpu().numpy(),
        "sigma": found.covariance.cpu().numpy(),
    }
    if found.features is not None:
        arrays["features"] = np.array(found.features)
    with path.open("wb") as file:  # given a path, numpy would append ".npz"
        np.savez(file, **arrays)


def load_moments(path: Path) -> Moments:
    """Read moments from an .npz of ``mu`` and ``sigma`` without unpickling.

    Raises ValueError, naming the file, for anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an .npz")
        with path.open("rb") as file, _loaded(file) as found:
            if any(entry.compress_type not in PACKED for entry in found.zip.infolist()):
                raise ValueError("packed otherwise than by numpy")  # size could be unlimited
            mean, covariance = (_numbers(found[k]) for k in ("mu", "sigma"))
            name = str(found["features"]) if "features" in found.files else None
        if name is not None and not name.isprintable():
            raise ValueError("features of no name")
        return Moments(mean, covariance, name)
    except Exception as error:  # numpy's parsers raise many types
        reason = ascii(str(error).partition("\n")[0] or type(error).__name__).strip("'\"")[:120]
        raise ValueError(
            f"{path}: no statistics ({reason}); give an .npz with mu (D,) and sigma (D, D)"
        ) from error


def _loaded(file: BinaryIO) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers written by Python 2
        return np.load(file, allow_pickle=False)


def _numbers(found: np.ndarray) -> Tensor:
    if found.dtype.kind not in "buif":
        raise ValueError(f"values are {found.dtype}")
    return torch.from_numpy(found.astype(float))
