"""Judging samples against real data, by metrics with errors."""

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

    ``split`` holds the references; ``other``, where there is one, real data that take the place
    of the samples, to show the values that a perfect model would have.
    """

    dataset: Dataset
    split: Split
    other: Split | None

    @staticmethod
    def of(dataset: Dataset, against: str = "test") -> Reference:
        """One split of a data set, the other one in place of the samples."""
        train, test = dataset.train, dataset.test
        return Reference(dataset, *((test, train) if against == "test" else (train, test)))


@dataclass(frozen=True)
class Judgement:
    """The rows of the metrics, and facts about the features they were found in."""

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
            Split, or a path; of all but a Dataset every example is taken.
        metrics: names in ``evaluation.metrics.METRICS``, also between commas; by default those
            for images or points.
        against: part of a Dataset that is compared with.
        features: what images are compared by: classifier, pixels, or a TorchScript file.
        statistics: .npz of mu and sigma that replaces the reference in the Frechet distance.
        resamples: random halves that an error is found from; 0 finds no errors.
        seed: seed of the random draws.
        device: where features are computed.
        progress: shows how many metrics are done.

    Raises ValueError for samples and references that do not fit, or are not finite.
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
    """Every metric of shuffled samples ``x``; the real data are shuffled alike.

    Arguments as of ``evaluate``. Raises ValueError as it does.
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
    """An order independent of the classes: data and samples may come class by class."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def chosen_metrics(
    metrics: str | Iterable[str] | None, dataset: Dataset, copied: bool = True
) -> list[str]:
    """The names of metrics, or the default ones for such data. Raises ValueError for others."""
    if metrics is None:
        names = defaults(images=len(dataset.shape) == 3)
        return [name for name in names if copied or name != COPIES]
    return named_metrics(metrics)


def named_metrics(metrics: str | Iterable[str]) -> list[str]:
    """Names of metrics, each once, that can be computed here. Raises ValueError for others."""
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
    """The moments in a file. Raises ValueError where no metric uses them."""
    if statistics is None:
        return None
    if "frechet" not in metrics:
        raise ValueError("statistics: only frechet uses them; add it to metrics")
    return load_moments(statistics)


def _reference(source: Any, against: str) -> Reference:
    """The references of a source; of anything but a Dataset, all examples."""
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
