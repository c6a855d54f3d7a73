"""Feature extractors that samples and data are compared in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.arguments import nearest
from scoresde.atomic import digest
from scoresde.data import Dataset
from scoresde.evaluation import (
    Extractor,
    Moments,
    classifier_features,
    fit_classifier,
    lite0_features,
    raw_features,
    torchscript_features,
)
from scoresde.progress import Progress, silent

FIT_STEPS = 400
CHOICES = ("classifier", "pixels", "lite0")
INCEPTION = 2048
TITLES = {"frechet": "FID", "kid": "KID"}


def chosen_features(
    choice: str | None, dataset: Dataset, device: torch.device, progress: Progress = silent
) -> tuple[Extractor, dict[str, Any]]:
    """The extractor of a name or a file, and a description of it for the report.

    The default is a classifier for images with classes, and otherwise the raw values. Raises
    ValueError for features that do not apply to the data.
    """
    train = dataset.train
    labelled = len(dataset.shape) == 3 and train.label is not None
    kind = choice or ("classifier" if labelled else "pixels")
    if kind == "pixels":
        extractor = raw_features(train.x, dataset.name)
        return extractor, {"name": extractor.name}
    if kind == "classifier":
        if not labelled or train.label is None:
            raise ValueError(
                f"features: {dataset.name} has no images with classes for a classifier; "
                "give pixels"
            )
        classes, x, label = len(dataset.classes or ()), train.x.to(device), train.label.to(device)
        with progress(FIT_STEPS, f"classifier of {len(train)} training images") as advance:
            judge = fit_classifier(x, label, classes, steps=FIT_STEPS, advance=advance)
        extractor, test = classifier_features(judge, dataset.name), dataset.test
        held = test.label if test.label is not None else torch.empty(0)
        accuracy = judge.accuracy(test.x.to(device), held.to(device))
        return extractor, {"name": extractor.name, "test_accuracy": accuracy}
    path = Path(kind)
    if kind != "lite0" and not path.is_file():
        raise ValueError(f"features: {kind}: no such file; {nearest(kind, CHOICES)}")
    if len(dataset.shape) != 3 or dataset.shape[0] not in (1, 3):
        raise ValueError(f"features: {kind} takes grey or colour images; give pixels")
    if kind == "lite0":
        extractor = lite0_features(device)
        return extractor, {"name": extractor.name}
    extractor = torchscript_features(path, device)
    return extractor, {"name": extractor.name, "file": kind, "sha256": digest(path)}


def require_matching(path: Path, found: Moments, reference: Tensor, extractor: Extractor) -> None:
    """Raise ValueError if the statistics in ``path`` belong to other features."""
    dimensions = reference.shape[1]
    if len(found.mean) != dimensions:
        raise ValueError(
            f"statistics: {path} has {len(found.mean)} features, but {extractor.name} has "
            f"{dimensions}; give the features that they were made with"
        )
    if found.features not in (None, extractor.name):
        raise ValueError(
            f"statistics: {path} was made with {found.features}, not {extractor.name}; "
            "give the features that they were made with"
        )


def features_of(extractor: Extractor, dataset: Dataset, x: Tensor) -> Tensor:
    """Compute features (N, D) of examples in the units of the data."""
    scaling = dataset.scaling
    return extractor.of(scaling.to_uint8(scaling.encode(x)) if extractor.pictures else x)


def titles(extractor: Extractor, dimensions: int) -> dict[str, str]:
    """Titles of metrics; the names FID and KID are reserved for 2048 Inception features."""
    return TITLES if extractor.inception and dimensions == INCEPTION else {}
