"""``scoresde evaluate``: compares samples with real data by metrics with error estimates."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from scoresde.atomic import atomic_write
from scoresde.cli import calibration
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import EvaluateOptions
from scoresde.cli.weights import chosen_flags, described_choice, load_chosen
from scoresde.config import Config, build_dataset, load_config, override
from scoresde.data.foreign import sample_record
from scoresde.evaluation import moments, save_moments
from scoresde.evaluation.metrics import require_enough
from scoresde.progress import silent
from scoresde.runs.compatibility import require_same_data, require_same_split
from scoresde.runs.draw import MOST
from scoresde.runs.evaluate import (
    Judgement,
    Reference,
    chosen_metrics,
    chosen_moments,
    judged,
    named_metrics,
    shuffled,
)
from scoresde.runs.evaluate_report import page, picture, require_free, write
from scoresde.runs.load import LoadedRun
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.samples import Samples, draw_samples, read_samples

DEFAULT_NUM = 1000


def run(options: EvaluateOptions, overrides: Mapping[str, Any]) -> int:
    """Compute every metric, then print and write the report.

    With several processes, all draw samples and the first one evaluates them. With --posterior
    it judges posteriors instead.
    """
    if options.posterior is not None:
        return calibration.run(options, overrides)
    _check(options, overrides)
    started, world = time.perf_counter(), World.found()
    asked = None if options.metrics is None else named_metrics(options.metrics)
    shown = progress if world.rank == 0 else silent
    loaded, config = _loaded(options, overrides, world)
    reference = Reference.of(build_dataset(config.data, shown), options.against)
    if loaded is not None:
        require_same_data(reference.dataset, loaded.data)
        loaded.model.to(own_device(pick_device(options.device), world))
    metrics = chosen_metrics(asked, reference.dataset)
    chosen_moments(options.statistics, metrics)
    with together(world) as barrier:
        samples = _samples(options, config, loaded, reference, metrics, world)
        if world.rank == 0:
            _conclude(options, samples, reference, metrics, started)
        barrier()
    return 0


def _conclude(
    options: EvaluateOptions,
    samples: Samples,
    reference: Reference,
    metrics: list[str],
    started: float,
) -> None:
    """Evaluate and print before writing, so that a full disk does not lose the result."""
    for note in samples.notes:
        print(note, file=sys.stderr)
    x = samples.x[shuffled(len(samples.x), options.seed)][: options.num or len(samples.x)]
    found = judged(
        x,
        reference,
        metrics,
        features=options.features,
        statistics=options.statistics,
        resamples=options.resamples,
        seed=options.seed,
        device=pick_device(options.device),
        progress=progress,
    )
    report = _report(options, samples, len(x), reference, found)
    text = page(report, time.perf_counter() - started)
    print(json.dumps(report, indent=2) if options.json else text, flush=True)
    if options.save_statistics is not None:
        named = moments(found.references, found.extractor.name)
        atomic_write(options.save_statistics, partial(save_moments, found=named))
    if options.out is not None:
        write(options.out, report, text, picture(reference.dataset, reference.split.x, x))


def _loaded(
    options: EvaluateOptions, overrides: Mapping[str, Any], world: World
) -> tuple[LoadedRun | None, Config]:
    """The run whose data set is the reference (None without one), and the configuration."""
    source = options.checkpoint
    if source is None and not any(key.startswith("data.") for key in overrides):
        assert options.samples is not None
        noted = sample_record(options.samples).get("checkpoint")
        if not isinstance(noted, str) or not Path(noted).exists():
            raise ValueError(
                f"--samples {options.samples}: no record of the data set; give "
                "--checkpoint, or --data and --data.path"
            )
        source = Path(noted)
    if source is None:
        return None, load_config(None, overrides)
    loaded = load_chosen(source, options)
    for note in loaded.notes if world.rank == 0 else ():
        print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    require_same_split(config, loaded.config)
    return loaded, config


def _samples(
    options: EvaluateOptions,
    config: Config,
    loaded: LoadedRun | None,
    reference: Reference,
    metrics: list[str],
    world: World,
) -> Samples:
    """Read the samples of --samples, or draw them from the model.

    A model that is told classes draws with those of the reference examples.
    """
    if options.samples is not None:
        found = read_samples(options.samples, reference.dataset)
        if options.num is not None and options.num > len(found.x):
            held = f"{options.samples} holds {len(found.x)} samples"
            raise ValueError(f"--num {options.num}: {held}; ask for fewer")
        return found
    assert loaded is not None
    n, label, dataset = options.num or DEFAULT_NUM, None, reference.dataset
    require_enough(metrics, n, len(reference.split))
    if loaded.classed:
        if dataset.classes != loaded.data.classes or reference.split.label is None:
            raise ValueError(f"{dataset.name} has other classes than {loaded.data.name}")
        label = reference.split.label[shuffled(len(reference.split), options.seed)]
    found = draw_samples(
        loaded,
        config,
        n,
        options.seed,
        options.batch,
        label,
        compile=options.compile,
        world=world,
        progress=progress if world.rank == 0 else silent,
    )
    classes = {"classes": None if label is None else f"as in the {options.against} split"}
    settings = {**found.settings, **described_choice(options), **classes}
    return Samples(found.x, settings, found.notes)


def _check(options: EvaluateOptions, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for inconsistent options and for files that exist already."""
    if options.samples is None and options.checkpoint is None:
        raise ValueError("give --samples FOLDER, or --checkpoint RUN to draw them now")
    how = [f"--{key}" for key in overrides if key.startswith("sample.")] + chosen_flags(options)
    how += ["--compile"] if options.compile else []
    if options.samples is not None and how:
        raise ValueError(
            f"{how[0]} has no effect with --samples, which are drawn already; leave it out"
        )
    if given := [name for name in calibration.OWN if getattr(options, name) not in (None, ())]:
        raise ValueError(f"--{given[0]}: is for --posterior METHOD; leave it out")
    if options.num is not None and not 1 <= options.num <= MOST:
        raise ValueError(f"--num: need 1 to {MOST:,}, got {options.num}")
    if options.resamples == 1:
        raise ValueError("--resamples: need 0, or at least 2, got 1")
    folder, file = options.out, options.save_statistics
    if folder is not None:
        require_free(folder, options.overwrite)
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"--save-statistics {file}: no such folder; make it first")
    if file is not None and file.exists() and not options.overwrite:
        raise ValueError(
            f"--save-statistics {file}: exists already; give another file, or --overwrite"
        )


def _report(
    options: EvaluateOptions, samples: Samples, n: int, reference: Reference, found: Judgement
) -> dict[str, Any]:
    """Contents of evaluate.json: a function of the options and the files alone."""
    return {
        "data": reference.dataset.name,
        "against": options.against,
        "references": len(reference.split),
        "statistics": None if options.statistics is None else str(options.statistics),
        "features": dict(found.features),
        "samples": n,
        "real": 0 if reference.other is None else min(n, len(reference.other)),
        "source": dict(samples.settings),
        "seed": options.seed,
        "resamples": options.resamples,
        "metrics": {name: asdict(row) for name, row in found.rows.items()},
    }
