"""The metrics by name, with their standard errors and their values for real data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import MappingProxyType

import torch
from torch import Tensor

from scoresde.evaluation.copying import copies, copy_rate
from scoresde.evaluation.gaussian import Moments, frechet_distance, moments
from scoresde.evaluation.kernels import gaussian_mmd2, kid
from scoresde.evaluation.neighbours import coverage, density, precision, recall
from scoresde.evaluation.resampling import Estimate, Measure, by_halves, share
from scoresde.evaluation.transport import directions, sliced_wasserstein, wasserstein
from scoresde.evaluation.two_sample import LEAST as TESTED
from scoresde.evaluation.two_sample import two_sample_test

RESAMPLES = 50
"""Random halves from which an error is estimated."""
LINES = 256
"""Random lines of the sliced distance, from a fixed seed."""

NEGATIVE = "unbiased, so a value below 0 is an estimate of a distance near 0"

Tick = Callable[[], object]
Compare = Callable[[Tensor, Tensor, int, torch.Generator, Tick], Estimate]
"""Takes samples (N, D), references (M, D), the number of halves for the error, a generator, and
a function that is called after each half."""


@dataclass(frozen=True)
class Metric:
    """A comparison of two sets.

    Args:
        title: name in a report.
        better: which values are better.
        compare: computes the value and its error.
        documented: the function whose docstring defines the metric.
        least: fewest items of each set.
        most: items of each set that are used; None uses all.
    """

    title: str
    better: str
    compare: Compare
    documented: Callable[..., object]
    least: int = 4
    most: int | None = None


@dataclass(frozen=True)
class Row:
    """The result of a metric; None if unknown or meaningless.

    Args:
        title: name in a report.
        better: which values are better.
        value: value of the metric.
        error: standard error of the value.
        real: value with other real data in place of the samples.
        halves: value between two halves of the references.
        extrapolated: value for an infinite number of items.
        samples: number of samples.
        references: number of references.
        notes: remarks for the report.
    """

    title: str
    better: str
    value: float
    error: float | None
    real: float | None
    halves: float | None
    extrapolated: float | None
    samples: int
    references: int | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sets:
    """Features (N, D) of the samples, the references, and optional other real data."""

    samples: Tensor
    references: Tensor
    others: Tensor | None = None


def _silent() -> None:
    """Ignore a tick."""


def halved(measure: Measure) -> Compare:
    """Compare by ``measure``, with an error from random halves."""

    def compare(
        x: Tensor, y: Tensor, resamples: int, generator: torch.Generator, tick: Tick = _silent
    ) -> Estimate:
        return by_halves(measure, x, y, resamples, generator, tick)

    return compare


def _frechet(x: Tensor, y: Tensor) -> float:
    return frechet_distance(moments(x), moments(y))


def _wasserstein(x: Tensor, y: Tensor) -> float:
    n = min(len(x), len(y))
    return wasserstein(x[:n], y[:n])


def _sliced(x: Tensor, y: Tensor) -> float:
    lines = directions(LINES, x.shape[1], torch.Generator().manual_seed(0))
    return sliced_wasserstein(x, y, lines)


def _tested(
    x: Tensor, y: Tensor, resamples: int, generator: torch.Generator, tick: Tick = _silent
) -> Estimate:
    return two_sample_test(x, y, generator)


def _copied(
    x: Tensor, y: Tensor, resamples: int, generator: torch.Generator, tick: Tick = _silent
) -> Estimate:
    return share(copies(x, y))


METRICS = {
    "frechet": Metric("Frechet distance", "lower", halved(_frechet), frechet_distance),
    "kid": Metric("kernel distance", "lower", halved(kid), kid),
    "precision": Metric("precision", "higher", halved(precision), precision, 8, 10_000),
    "recall": Metric("recall", "higher", halved(recall), recall, 8, 10_000),
    "density": Metric("density", "near 1", halved(density), density, 12, 10_000),
    "coverage": Metric("coverage", "higher", halved(coverage), coverage, 12, 10_000),
    "wasserstein": Metric("Wasserstein-2", "lower", halved(_wasserstein), wasserstein, 4, 1000),
    "sliced": Metric("sliced Wasserstein-2", "lower", halved(_sliced), sliced_wasserstein),
    "mmd": Metric("Gaussian MMD^2", "lower", halved(gaussian_mmd2), gaussian_mmd2, 4, 5000),
    "two_sample": Metric("two-sample test", "near 0.5", _tested, two_sample_test, TESTED, 10_000),
    "copies": Metric("copy rate", "near real", _copied, copy_rate, 2),
}
COPIES = "copies"
OF_IMAGES = (
    "frechet",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "two_sample",
    "copies",
)
OF_POINTS = ("wasserstein", "sliced", "mmd", "precision", "recall", "two_sample", "copies")


def require_enough(names: Iterable[str], samples: int, references: int) -> None:
    """Raise ValueError for a metric that needs more items."""
    for name in names:
        least = METRICS[name].least
        if min(samples, references) < least:
            raise ValueError(
                f"metrics: {name} needs {least} samples and as many references, got {samples} "
                f"and {references}; give more, or leave it out"
            )


def rows(
    names: Iterable[str],
    features: Sets,
    raw: Sets,
    *,
    given: Moments | None = None,
    titles: Mapping[str, str] = MappingProxyType({}),
    resamples: int = RESAMPLES,
    seed: int = 0,
    advance: Callable[[int, str], None] = lambda n, name: None,
) -> Iterator[tuple[str, Row]]:
    """Compute metrics one after the other, each with its own random numbers.

    Args:
        names: keys of ``METRICS``.
        features: features that all metrics but the copy rate compare.
        raw: examples that the copy rate compares; its references are the training examples.
        given: moments that replace those of the references.
        titles: titles by name that replace those of ``METRICS``.
        resamples: random halves for the errors.
        seed: seed of the random numbers.
        advance: progress callback, called with 0 or 1 finished metrics and the name.
    """
    for name in names:

        def tick(name: str = name) -> None:
            advance(0, name)

        metric = METRICS[name]
        metric = replace(metric, title=titles.get(name, metric.title))
        if name == COPIES:
            yield name, _copies_row(metric, raw)
        elif name == "frechet":
            yield name, _frechet_row(metric, features, given, resamples, seed, tick)
        else:
            yield name, _row(metric, features, resamples, seed, tick)[0]
        advance(1, name)


def _row(
    metric: Metric, sets: Sets, resamples: int, seed: int, tick: Tick
) -> tuple[Row, Estimate]:
    x, y = sets.samples[: metric.most], sets.references[: metric.most]

    def plain(a: Tensor | None, b: Tensor) -> float | None:
        """The value without an error; None if there are too few items."""
        if a is None or min(len(a), len(b)) < metric.least:
            return None
        return metric.compare(a, b, 0, torch.Generator().manual_seed(seed), _silent).value

    found = metric.compare(x, y, resamples, torch.Generator().manual_seed(seed), tick)
    row = Row(
        title=metric.title,
        better=metric.better,
        value=found.value,
        error=_known(found.error),
        real=plain(None if sets.others is None else sets.others[: len(x)], y),
        halves=plain(y[: len(y) // 2], y[len(y) // 2 :]),
        extrapolated=None,
        samples=len(x),
        references=len(y),
    )
    if any(value is not None and value < 0 for value in (row.value, row.real, row.halves)):
        row = replace(row, notes=[NEGATIVE])
    return row, found


def _frechet_row(
    metric: Metric, sets: Sets, given: Moments | None, resamples: int, seed: int, tick: Tick
) -> Row:
    """Add a note if the covariance is rank-deficient, or else the extrapolated value."""
    if given is not None:
        metric = replace(metric, compare=halved(lambda a, b: frechet_distance(moments(a), given)))
    row, found = _row(metric, sets, resamples, seed, tick)
    dimensions = sets.samples.shape[1]
    fewest = row.samples if given is not None else min(row.samples, len(sets.references))
    if given is not None:
        row = replace(row, halves=None, references=None)
    if fewest <= dimensions:
        return replace(
            row, notes=[*row.notes, f"rank-deficient: {fewest} items in {dimensions} dimensions"]
        )
    full = fewest // 2 > dimensions
    return replace(row, extrapolated=_known(found.extrapolated) if full else None)


def _copies_row(metric: Metric, sets: Sets) -> Row:
    """The fraction of samples, and of other real data, that copy a training example."""
    found = share(copies(sets.samples, sets.references))
    return Row(
        title=metric.title,
        better=metric.better,
        value=found.value,
        error=found.error,
        real=None if sets.others is None else copy_rate(sets.others, sets.references),
        halves=None,
        extrapolated=None,
        samples=len(sets.samples),
        references=len(sets.references),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def defaults(images: bool) -> list[str]:
    """The default metrics in the order of ``METRICS``, without those that lack a package."""
    wanted = OF_IMAGES if images else OF_POINTS
    return [name for name in METRICS if name in wanted and _missing(name) is None]


def require_packages(names: Iterable[str]) -> None:
    """Raise ValueError for a metric that needs a missing package."""
    for name in names:
        if (package := _missing(name)) is not None:
            raise ValueError(f"metrics: {name} needs {package}; pip install {package}")


def _missing(name: str) -> str | None:
    absent = name == "wasserstein" and find_spec("scipy") is None
    return "scipy" if absent else None
