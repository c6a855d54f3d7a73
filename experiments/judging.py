"""What the experiments with images measure: train in memory, then bits, distances and errors."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.config import Config, build_model, build_plan, build_sampler
from scoresde.data import Dataset, Split
from scoresde.evaluation import (
    Classifier,
    by_halves,
    copies,
    copy_rate,
    fit_classifier,
    frechet_distance,
    moments,
    share,
)
from scoresde.parameterization import ScoreModel
from scoresde.registry import Scoring
from scoresde.runs.draw import draw
from scoresde.runs.score import score
from scoresde.training import TrainState, describe, fit

HALVES = 20
BATCH = 128


def trained(config: Config, dataset: Dataset) -> ScoreModel:
    """The averaged weights after the steps of a configuration, without a run folder."""
    model = build_model(config, dataset)
    plan = build_plan(config, dataset)
    state = TrainState.of(model, plan)
    for _ in fit(state, plan, dataset.train, dataset.scaling):
        pass
    model = state.ema.eval().requires_grad_(False)
    model.data = describe(dataset)
    return model


def bits(model: ScoreModel, split: Split, settings: Scoring) -> dict[str, float]:
    """Mean bits per dimension with its standard error over images."""
    found = score(model, split, settings=settings, check=0)
    return {"bits_per_dim": found.bits_per_dim, "standard_error": found.standard_error}


def drawn(
    model: ScoreModel, config: Config, dataset: Dataset, n: int, label: Tensor | None = None
) -> tuple[Tensor, float]:
    """The levels of n samples by the sampler of a configuration, from seeds 0, 1, ...; calls."""
    found = draw(
        model, n, sampler=build_sampler(config.sample, std=model.std), label=label, batch=BATCH
    )
    return found.x, found.nfe


def errors_by_level(
    model: ScoreModel, split: Split, dataset: Dataset, ratios: Tensor
) -> list[float]:
    """The mean of |eps - eps_hat|^2 per dimension where sigma / alpha is each of ``ratios``.

    The noise and the place of a pixel within its level are the same for all models.
    """
    generator = torch.Generator().manual_seed(0)
    x0 = dataset.scaling.encode(split.x, torch.rand(split.x.shape, generator=generator))
    eps, sde = torch.randn(x0.shape, generator=generator), model.sde
    denoiser, found = model.denoiser(), []
    for lam in -ratios.double().log():
        t = sde.time(lam)
        with torch.no_grad():
            each = [denoiser.eps(sde.perturb(a, t, e), t) - e for a, e in _parts(x0, eps)]
        found.append(float(torch.cat(each).square().mean()))
    return found


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(BATCH) for tensor in tensors), strict=True))


@dataclass(frozen=True)
class Judge:
    """A classifier fitted to the training split, and its features of the test split."""

    dataset: Dataset
    classifier: Classifier
    reference: Tensor

    def distance(self, levels: Tensor) -> dict[str, float]:
        """Frechet distance to the test split in the classifier's features, with its error."""
        generator = torch.Generator().manual_seed(0)
        features = self.classifier.features(levels)
        found = by_halves(_frechet, features, self.reference, HALVES, generator)
        return {"frechet": found.value, "frechet_error": found.error}

    def floor(self, n: int) -> float:
        """The distance that n training images in the samples' place would have."""
        return _frechet(self.classifier.features(some(self.dataset.train, n).x), self.reference)

    def accuracy(self) -> float:
        """The share of test images that it reads right."""
        test = self.dataset.test
        assert test.label is not None
        return self.classifier.accuracy(test.x, test.label)

    def copied(self, levels: Tensor) -> dict[str, float]:
        """Copy rate of samples with its error, and that of as many test images."""
        train = self.dataset.train.x
        found = share(copies(levels, train))
        real = copy_rate(some(self.dataset.test, len(levels)).x, train)
        return {"copy_rate": found.value, "copy_rate_error": found.error, "copy_rate_real": real}


def judge_of(dataset: Dataset) -> Judge:
    """The judge of a data set with classes: always the same."""
    train = dataset.train
    assert train.label is not None
    classifier = fit_classifier(train.x, train.label, len(dataset.classes or ()))
    return Judge(dataset, classifier, classifier.features(dataset.test.x))


def some(split: Split, n: int) -> Split:
    """n examples of a split at random (all, if it has fewer), always the same."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.take(order[:n])


def _frechet(x: Tensor, y: Tensor) -> float:
    return frechet_distance(moments(x), moments(y))


def surroundings() -> dict[str, Any]:
    """Hardware, versions and the commit, for the record."""
    return {
        "hardware": f"one thread of an {platform.machine()} CPU ({_processor()})",
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    """The model's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or None
