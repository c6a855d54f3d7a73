"""Compares samples with real data by metrics with error estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde.arguments import Natural, check, nearest
from scoresde.data import Dataset, Split, dataset_of, examples
from scoresde.evaluation import Extractor, Moments, load_moments
from scoresde.evaluation.metrics import (
    COPIES,
    METRICS,
    RESAMPLES,
    Row,
    Sets,
    defaults,
    require_enough,
    require_packages,
    rows,
)
from scoresde.progress import Progress, silent
from scoresde.runs.features import chosen_features, features_of, require_matching, titles

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reference:
    """Real data to compare samples with.

    ``split`` holds the references. ``other`` holds further real data or None; the metrics of
    ``other`` in place of the samples are the values of a perfect model.
    """

    dataset: Dataset
    split: Split
    other: Split | None

    @staticmethod
    def of(dataset: Dataset, against: str = "test") -> Reference:
        """Take one split of a data set as references and the other split as ``other``."""
        train, test = dataset.train, dataset.test
        return Reference(dataset, *((test, train) if against == "test" else (train, test)))


@dataclass(frozen=True)
class Judgement:
    """Metrics of a set of samples, and the features that they were computed in."""

    rows: Mapping[str, Row]
    features: Mapping[str, Any]
    extractor: Extractor
    references: Tensor


def evaluate(
    samples: Any,
    reference: Any,
    metrics: str | Iterable[str] | None = None,
    *,
    against: Literal["test", "train"] = "test",
    features: str | None = None,
    statistics: Path | str | None = None,
    resamples: Natural = RESAMPLES,
    seed: Natural = 0,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> dict[str, Row]:
    """Compare samples with real data: for each metric an object with ``.value`` and ``.error``.

    Args:
        samples: samples in units of the data: a tensor, a Split, a path, or what ``draw`` returns.
        reference: real data: a Dataset, a tensor, a pair (x, label) of images and classes, a
            Split, or a path; every example is used, except of a Dataset.
        metrics: names in ``evaluation.metrics.METRICS``, as a list or separated by commas; the
            default depends on whether the data are images.
        against: part of a Dataset that the samples are compared with.
        features: features that images are compared in: classifier, pixels, lite0, or a
            TorchScript file.
        statistics: .npz of mu and sigma that replaces the reference in the Frechet distance.
        resamples: number of random halves that each error is estimated from; 0 for no errors.
        seed: seed of the random draws.
        device: device that computes the features.
        progress: shows how many metrics are done.

    Raises ValueError for samples or references of the wrong shape, or with NaN or infinity.
    """
    check(evaluate, locals())
    real = _reference(reference, against)
    dataset = real.dataset
    names = chosen_metrics(metrics, dataset, copied=real.other is not None)
    given = samples if isinstance(samples, str | Path | Split) else getattr(samples, "x", samples)
    x = examples(given, tuple(dataset.shape), dataset.scaling).x
    file = None if statistics is None else Path(statistics)
    return dict(
        judged(
            x[shuffled(len(x), seed)],
            real,
            names,
            features=features,
            statistics=file,
            resamples=resamples,
            seed=seed,
            device=device,
            progress=progress,
        ).rows
    )


def judged(
    x: Tensor,
    reference: Reference,
    metrics: Iterable[str],
    *,
    features: str | None = None,
    statistics: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Judgement:
    """Compute every metric of shuffled samples ``x``; shuffles the real data itself.

    Takes the arguments of ``evaluate``, and raises ValueError in the same cases.
    """
    names, dataset = list(metrics), reference.dataset
    if resamples < 0 or resamples == 1:
        raise ValueError(f"resamples: need 0, or at least 2, got {resamples}")
    require_enough(names, len(x), len(reference.split))
    moments = chosen_moments(statistics, names)
    extractor, about = chosen_features(features, dataset, device, progress)
    found = features_of(extractor, dataset, reference.split.x)
    if statistics is not None and moments is not None:
        require_matching(statistics, moments, found, extractor)
    other = None
    if reference.other is not None:
        other = reference.other.x[shuffled(len(reference.other), seed)][: len(x)]
    sets = Sets(
        features_of(extractor, dataset, x),
        found[shuffled(len(found), seed)],
        None if other is None else features_of(extractor, dataset, other),
    )
    held = None if reference.other is None else dataset.test.x
    with progress(len(names), "metrics") as advance:
        every = rows(
            names,
            sets,
            Sets(x, dataset.train.x, held),
            given=moments,
            titles=titles(extractor, found.shape[1]),
            resamples=resamples,
            seed=seed,
            advance=advance,
        )
        return Judgement(dict(every), about, extractor, found)


def shuffled(n: int, seed: int) -> Tensor:
    """A random permutation of n; data and samples may be sorted by class."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def chosen_metrics(
    metrics: str | Iterable[str] | None, dataset: Dataset, copied: bool = True
) -> list[str]:
    """Names of metrics, by default those for the data. Raises ValueError for unknown names."""
    if metrics is None:
        names = defaults(images=len(dataset.shape) == 3)
        return [name for name in names if copied or name != COPIES]
    return named_metrics(metrics)


def named_metrics(metrics: str | Iterable[str]) -> list[str]:
    """Names of metrics without duplicates. Raises ValueError for unknown or missing ones."""
    parts = metrics.split(",") if isinstance(metrics, str) else metrics
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise ValueError(f"metrics: names nothing; choose from {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            meant = "frechet" if name.lower() == "fid" else name
            raise ValueError(f"metrics: unknown name {name!r}; {nearest(meant, METRICS)}")
    require_packages(names)
    return names


def chosen_moments(statistics: Path | None, metrics: Iterable[str]) -> Moments | None:
    """Load moments from a file. Raises ValueError if no metric uses them."""
    if statistics is None:
        return None
    if "frechet" not in metrics:
        raise ValueError("statistics: only frechet uses them; add it to metrics")
    return load_moments(statistics)


def _reference(source: Any, against: str) -> Reference:
    """Build the references; all examples are used, except of a Dataset."""
    if isinstance(source, Dataset):
        return Reference.of(source, against)
    if isinstance(source, Split):
        source = source.x if source.label is None else (source.x, source.label)
    path = isinstance(source, str | Path)
    name, holdout = "the reference", 0.1 if path else 0
    found = dataset_of(source, name=name, standardise=False, holdout=holdout)
    parts = (found.train, found.test) if path else (found.train,)
    labels = [part.label for part in parts if part.label is not None]
    split = Split(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)
    whole = Dataset(found.name, split, split, found.scaling, found.classes)
    return Reference(whole, split, None)
