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

from scoresde.atomic import atomic_write
from scoresde.cli.choices import names
from scoresde.cli.console import pick_device, progress
from scoresde.cli.evaluate_report import page, picture, require_free, write
from scoresde.cli.options import EvaluateOptions
from scoresde.cli.sample import MOST
from scoresde.cli.weights import chosen_flags, described_choice, load_chosen
from scoresde.config import Config, build_dataset, load_config, override
from scoresde.data import Dataset, Split
from scoresde.data.foreign import sample_record
from scoresde.evaluation import (
    Extractor,
    Moments,
    load_moments,
    moments,
    save_moments,
)
from scoresde.runs.compatibility import require_same_data, require_same_split
from scoresde.runs.features import (
    chosen_features,
    features_of,
    require_matching,
    titles,
)
from scoresde.runs.load import LoadedRun
from scoresde.runs.metrics import (
    METRICS,
    Row,
    Sets,
    defaults,
    require_enough,
    require_packages,
    rows,
)
from scoresde.runs.samples import Samples, draw_samples, read_samples

DEFAULT_NUM = 1000


@dataclass(frozen=True)
class Job:
    """What is evaluated: the options, the data, and the model if samples are to be drawn."""

    options: EvaluateOptions
    config: Config
    dataset: Dataset
    loaded: LoadedRun | None
    metrics: list[str]
    given: Moments | None

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
    _check(options, overrides)
    started = time.perf_counter()
    job = prepared(options, overrides)
    there = None if options.samples is None else read_samples(options.samples, job.dataset)
    n = options.num or (DEFAULT_NUM if there is None else len(there.x))
    if there is not None and n > len(there.x):
        held = f"{options.samples} holds {len(there.x)} samples"
        raise ValueError(f"--num {n}: {held}; ask for fewer")
    require_enough(job.metrics, n, len(job.reference))
    extractor, about = chosen_features(options.features, job.dataset, pick_device(options.device))
    reference = features_of(extractor, job.dataset, job.reference.x)
    if options.statistics is not None and job.given is not None:
        require_matching(options.statistics, job.given, reference, extractor)
    samples = _drawn(job, n) if there is None else there
    for note in samples.notes:
        print(note, file=sys.stderr)
    x = samples.x[_shuffled(len(samples.x), options.seed)][:n]
    found = measured(job, extractor, x, reference)
    report = _report(job, samples, len(x), about, found)
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
    asked = None if options.metrics is None else names("--metrics", options.metrics, METRICS)
    require_packages(asked or ())
    source = _source(options, overrides)
    loaded = None if source is None else load_chosen(source, options)
    if loaded is None:
        config = load_config(None, overrides)
    else:
        for note in loaded.notes:
            print(note, file=sys.stderr)
        config = override(loaded.config, overrides)
        require_same_split(config, loaded.config)
    dataset = build_dataset(config.data)
    if loaded is not None:
        require_same_data(dataset, loaded.data)
        loaded.model.to(pick_device(options.device))
    metrics = asked or defaults(images=len(dataset.shape) == 3)
    given = None if options.statistics is None else load_moments(options.statistics)
    if given is not None and "frechet" not in metrics:
        raise ValueError("--statistics: only frechet uses them; add it to --metrics")
    return Job(options, config, dataset, loaded, metrics, given)


def measured(job: Job, extractor: Extractor, x: Tensor, reference: Tensor) -> dict[str, Row]:
    """Every metric of shuffled samples ``x``; the real data are shuffled alike."""
    options, train, test = job.options, job.dataset.train.x, job.dataset.test.x
    other = job.other.x[_shuffled(len(job.other), options.seed)][: len(x)]
    features = Sets(
        features_of(extractor, job.dataset, x),
        reference[_shuffled(len(reference), options.seed)],
        features_of(extractor, job.dataset, other),
    )
    with progress(len(job.metrics), "metrics") as advance:
        found = rows(
            job.metrics,
            features,
            Sets(x, train, test),
            given=job.given,
            titles=titles(extractor, reference.shape[1]),
            resamples=options.resamples,
            seed=options.seed,
            advance=advance,
        )
        return dict(found)


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


def _drawn(job: Job, n: int) -> Samples:
    """So many samples of the run, a model with classes given those of the references."""
    assert job.loaded is not None
    label = None
    if job.config.conditional:
        if job.dataset.classes != job.loaded.data.classes or job.reference.label is None:
            raise ValueError(f"{job.dataset.name} has other classes than {job.loaded.data.name}")
        label = job.reference.label[_shuffled(len(job.reference), job.options.seed)]
    found = draw_samples(job.loaded, job.config, n, job.options.seed, job.options.batch, label)
    weights = described_choice(job.options)
    classes = {"classes": None if label is None else f"as in the {job.options.against} split"}
    return Samples(found.x, {**found.settings, **weights, **classes})


# Checks ---------------------------------------------------------------------------------------


def _check(options: EvaluateOptions, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for options that cannot be used, and for files in use."""
    if options.samples is None and options.checkpoint is None:
        raise ValueError("give --samples FOLDER, or --checkpoint RUN to draw them now")
    how = [key for key in overrides if key.startswith("sample.")]
    if options.samples is not None and how:
        raise ValueError(f"--{how[0]}: the samples of --samples are drawn; leave it out")
    if options.samples is not None and (weights := chosen_flags(options)):
        raise ValueError(f"{weights[0]}: the samples of --samples are drawn; leave it out")
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


def _report(
    job: Job, samples: Samples, n: int, about: Mapping[str, Any], found: Mapping[str, Row]
) -> dict[str, Any]:
    """Everything but the time it took: a function of the options and the files."""
    statistics = job.options.statistics
    return {
        "data": job.dataset.name,
        "against": job.options.against,
        "references": len(job.reference),
        "statistics": None if statistics is None else str(statistics),
        "features": dict(about),
        "samples": n,
        "real": min(n, len(job.other)),
        "source": dict(samples.settings),
        "seed": job.options.seed,
        "resamples": job.options.resamples,
        "metrics": {name: asdict(row) for name, row in found.items()},
    }
