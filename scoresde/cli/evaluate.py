"""``scoresde evaluate``: samples against real data, with errors and what real data would get."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.build import LoadedRun, build_dataset, load_run
from scoresde.cli.choices import names
from scoresde.cli.console import pick_device, progress
from scoresde.cli.drawn import Samples, draw_samples, read_samples, sample_record
from scoresde.cli.evaluate_report import page, picture, require_free, write
from scoresde.cli.measures import (
    METRICS,
    Row,
    Sets,
    defaults,
    require_enough,
    require_packages,
    rows,
)
from scoresde.cli.options import EvaluateOptions
from scoresde.cli.sample import MOST
from scoresde.config import Config, ConfigError, load_config, override
from scoresde.config.problems import nearest
from scoresde.data import Dataset, Split
from scoresde.evaluation import (
    Extractor,
    Moments,
    classifier_features,
    fit_classifier,
    load_moments,
    moments,
    raw_features,
    save_moments,
    torchscript_features,
)
from scoresde.training.checkpoint import DataDescription
from scoresde.training.files import atomic_write, digest

DEFAULT_NUM = 1000
CHOICES = ("classifier", "pixels")


@dataclass(frozen=True)
class Job:
    """What is evaluated: the options, the data, and the model if samples are to be drawn."""

    options: EvaluateOptions
    config: Config
    dataset: Dataset
    loaded: LoadedRun | None
    metrics: list[str]

    @property
    def reference(self) -> Split:
        """The split that samples are compared with."""
        return self.dataset.test if self.options.against == "test" else self.dataset.train

    @property
    def other(self) -> Split:
        """The split that takes the samples' place, to show what real data would get."""
        return self.dataset.train if self.options.against == "test" else self.dataset.test


def run(options: EvaluateOptions, overrides: Mapping[str, Any]) -> int:
    """Measure everything, then print and write it: there is no half of a report."""
    _check(options)
    started = time.perf_counter()
    job = prepared(options, overrides)
    there = None if options.samples is None else _chosen(job, options.samples)
    n = _num(options) if there is None else len(there.x)
    require_enough(job.metrics, n, len(job.reference))
    extractor, about = chosen_features(job)
    reference, given = extractor.of(_input(extractor, job, job.reference.x)), None
    if options.statistics is not None:
        given = matching(options.statistics, reference, extractor)
    samples = _drawn(job) if there is None else there
    for note in samples.notes:
        print(note, file=sys.stderr)
    x = samples.x[_shuffled(len(samples.x), options.seed)]
    found = measured(job, extractor, x, reference, given)
    report = _report(job, samples, about, found)
    text = page(report, time.perf_counter() - started)
    # First what no disk can take away.
    print(json.dumps(report, indent=2) if options.json else text, flush=True)
    if options.save_statistics is not None:
        named = moments(reference, extractor.name)
        atomic_write(options.save_statistics, partial(save_moments, found=named))
    if options.out is not None:
        write(options.out, report, text, picture(job.dataset, job.reference.x, x))
    return 0


def prepared(options: EvaluateOptions, overrides: Mapping[str, Any]) -> Job:
    """The data and the model, with everything checked that can be before anything is computed."""
    given = None if options.metrics is None else names("--metrics", options.metrics, METRICS)
    require_packages(given or ())
    source = _source(options, overrides)
    loaded = None if source is None else load_run(source, ema=not options.no_ema)
    if loaded is None:
        config = load_config(None, overrides)
    else:
        for note in loaded.notes:
            print(note, file=sys.stderr)
        config = override(loaded.config, overrides)
        _require_same_split(config, loaded.config)
    dataset = build_dataset(config.data)
    if loaded is not None:
        _require_same_data(dataset, loaded.data)
        loaded.model.to(pick_device(options.device))
    metrics = given or defaults(images=len(dataset.shape) == 3)
    return Job(options, config, dataset, loaded, metrics)


def chosen_features(job: Job) -> tuple[Extractor, dict[str, Any]]:
    """The features of ``--features``, and facts about them for the report."""
    train, device = job.dataset.train, pick_device(job.options.device)
    labelled = len(job.dataset.shape) == 3 and train.label is not None
    kind = job.options.features or ("classifier" if labelled else "pixels")
    if kind == "pixels":
        extractor = raw_features(train.x, job.dataset.name)
        return extractor, {"name": extractor.name}
    if kind == "classifier":
        if not labelled or train.label is None:
            raise ValueError(
                f"--features classifier: {job.dataset.name} has no images with classes; "
                "give --features pixels"
            )
        print(f"fitting a classifier to {len(train)} training images", file=sys.stderr)
        classes = len(job.dataset.classes or ())
        judge = fit_classifier(train.x.to(device), train.label.to(device), classes)
        extractor, test = classifier_features(judge, job.dataset.name), job.dataset.test
        label = test.label if test.label is not None else torch.empty(0)
        accuracy = judge.accuracy(test.x.to(device), label.to(device))
        return extractor, {"name": extractor.name, "test_accuracy": accuracy}
    path = Path(kind)
    if not path.is_file():
        raise ValueError(f"--features {kind}: no such file; {nearest(kind, CHOICES)}")
    if len(job.dataset.shape) != 3 or job.dataset.shape[0] not in (1, 3):
        raise ValueError(f"--features {kind}: takes grey or colour images; give pixels")
    extractor = torchscript_features(path, device)
    return extractor, {"name": extractor.name, "file": kind, "sha256": digest(path)}


def matching(path: Path, reference: Tensor, extractor: Extractor) -> Moments:
    """Statistics of the same features. Raises ValueError for those of others."""
    found, dimensions = load_moments(path), reference.shape[1]
    if len(found.mean) != dimensions:
        raise ValueError(
            f"--statistics {path}: of {len(found.mean)} features, but the {extractor.name} are "
            f"{dimensions}; give --features as they were made with"
        )
    if found.features not in (None, extractor.name):
        raise ValueError(
            f"--statistics {path}: made with {found.features}, not {extractor.name}; "
            "give --features as they were made with"
        )
    return found


def measured(
    job: Job, extractor: Extractor, x: Tensor, reference: Tensor, given: Moments | None
) -> dict[str, Row]:
    """Every metric of shuffled samples ``x``; the real data are shuffled alike."""
    options, train, test = job.options, job.dataset.train.x, job.dataset.test.x
    other = job.other.x[_shuffled(len(job.other), options.seed)][: len(x)]
    features = Sets(
        extractor.of(_input(extractor, job, x)),
        reference[_shuffled(len(reference), options.seed)],
        extractor.of(_input(extractor, job, other)),
    )
    with progress(len(job.metrics), "metrics") as advance:
        found = rows(
            job.metrics,
            features,
            Sets(x, train, test),
            given=given,
            title=_frechet_title(extractor, reference),
            resamples=options.resamples,
            seed=options.seed,
            advance=advance,
        )
        return dict(found)


def _frechet_title(extractor: Extractor, reference: Tensor) -> str:
    """FID is the distance in the 2048 features of the one network that gave it its name."""
    return extractor.frechet if reference.shape[1] == 2048 else "Frechet distance"


def _input(extractor: Extractor, job: Job, x: Tensor) -> Tensor:
    """Examples as the features take them: levels or numbers, or pictures."""
    scaling = job.dataset.scaling
    return scaling.to_uint8(scaling.encode(x)) if extractor.pictures else x


def _shuffled(n: int, seed: int) -> Tensor:
    """An order that knows no class: data and samples may come class by class."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# Samples --------------------------------------------------------------------------------------


def _source(options: EvaluateOptions, overrides: Mapping[str, Any]) -> Path | None:
    """The run whose data are meant: that of --checkpoint, or the one the samples came from."""
    if options.checkpoint is not None or options.samples is None:
        return options.checkpoint
    if any(key.startswith("data.") for key in overrides):
        return None
    noted = sample_record(options.samples).get("checkpoint")
    if isinstance(noted, str) and Path(noted).exists():
        return Path(noted)
    raise ValueError(
        f"--samples {options.samples}: of which data? give --checkpoint, or --data and --data.path"
    )


def _chosen(job: Job, path: Path) -> Samples:
    """The samples that are there, or as many of them as asked for, at random."""
    found, num = read_samples(path, job.dataset), job.options.num
    if num is None:
        return found
    if num > len(found.x):
        raise ValueError(f"--num {num}: {path} holds {len(found.x)} samples; ask for fewer")
    some = _shuffled(len(found.x), job.options.seed)[:num]
    return Samples(found.x[some], found.settings, found.notes)


def _drawn(job: Job) -> Samples:
    """Samples of the run, a model with classes given those of the references."""
    assert job.loaded is not None
    label = None
    if job.config.conditional:
        if job.dataset.classes != job.loaded.data.classes or job.reference.label is None:
            raise ValueError(f"{job.dataset.name} has other classes than {job.loaded.data.name}")
        label = job.reference.label[_shuffled(len(job.reference), job.options.seed)]
    found = draw_samples(
        job.loaded, job.config, _num(job.options), job.options.seed, job.options.batch, label
    )
    weights = {"weights": "raw" if job.options.no_ema else "ema"}
    classes = {"classes": None if label is None else f"as in the {job.options.against} split"}
    return Samples(found.x, {**found.settings, **weights, **classes})


def _num(options: EvaluateOptions) -> int:
    return options.num or DEFAULT_NUM


# Checks ---------------------------------------------------------------------------------------


def _check(options: EvaluateOptions) -> None:
    """Raise ValueError for options that cannot be used, and for files in use."""
    if options.samples is None and options.checkpoint is None:
        raise ValueError("give --samples FOLDER, or --checkpoint RUN to draw them now")
    if options.num is not None and not 1 <= options.num <= MOST:
        raise ValueError(f"--num: need 1 to {MOST:,}, got {options.num}")
    if options.seed < 0:
        raise ValueError(f"--seed: need at least 0, got {options.seed}")
    if options.resamples < 0 or options.resamples == 1:
        raise ValueError(f"--resamples: need 0, or at least 2, got {options.resamples}")
    folder, file = options.out, options.save_statistics
    if folder is not None:
        require_free(folder, options.overwrite)
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"--save-statistics {file}: no such folder; make it first")
    if file is not None and file.exists() and not options.overwrite:
        raise ValueError(f"--save-statistics {file}: exists; give another, or --overwrite")


def _require_same_split(config: Config, trained: Config) -> None:
    """In another split of the same files the test examples were trained on."""
    asked, known = config.data.model_dump(), trained.data.model_dump()
    if (asked["kind"], asked.get("path")) != (known["kind"], known.get("path")):
        return
    for key in ("seed", "holdout"):
        if asked.get(key) != known.get(key):
            raise ValueError(
                f"--data.{key} {asked[key]}: it was {known[key]} in training, and another split "
                "would pass training examples for new ones; leave it out"
            )


def _require_same_data(dataset: Dataset, trained: DataDescription) -> None:
    """Samples of one data set say nothing about another of other shapes or levels."""
    found, expected = (
        (tuple(d.shape), d.scaling.levels, d.scaling.low, d.scaling.high)
        for d in (dataset, trained)
    )
    if found != expected:
        raise ConfigError(
            f"data {dataset.name} has (shape, levels, low, high) = {found}, the model was trained "
            f"on {expected}; give the same data with --data.kind and --data.path"
        )


def _report(
    job: Job, samples: Samples, about: Mapping[str, Any], found: Mapping[str, Row]
) -> dict[str, Any]:
    """Everything but the time it took: a function of the options and the files."""
    statistics = job.options.statistics
    return {
        "data": job.dataset.name,
        "against": job.options.against,
        "references": len(job.reference),
        "statistics": None if statistics is None else str(statistics),
        "features": dict(about),
        "samples": len(samples.x),
        "source": dict(samples.settings),
        "seed": job.options.seed,
        "resamples": job.options.resamples,
        "metrics": {name: asdict(row) for name, row in found.items()},
    }
