"""``scoresde evaluate --posterior``: judges the posteriors of a method on test examples."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import EvaluateOptions
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import build_dataset, override
from scoresde.evaluation.calibration import Calibration
from scoresde.runs.calibrate import EXAMPLES, MOST_PRIOR, calibrate, picture_operator
from scoresde.runs.compatibility import require_same_data, require_same_split
from scoresde.runs.draw import DEFAULT_NUM
from scoresde.runs.edit import NOISES
from scoresde.runs.evaluate import shuffled
from scoresde.runs.evaluate_report import CALIBRATION, calibration_page, require_free, write
from scoresde.runs.infer import NFE, method_of
from scoresde.runs.processes import World
from scoresde.runs.stopping import Stopping

SETTINGS = ("mask", "box", "factor", "blur")
OWN = ("operator", *SETTINGS, "noise", "draws", "nfe")
"""Options that need --posterior."""
SHARED = ("checkpoint", "posterior", "num", "seed", "batch", "out", "overwrite", "json")


def run(options: EvaluateOptions, overrides: Mapping[str, Any]) -> int:
    """Compare test examples with posterior draws, then print and write the report.

    On SIGINT or SIGTERM, reports the examples that are done and raises SystemExit with code 130
    or 143.
    """
    _check(options, overrides)
    assert options.checkpoint is not None
    assert options.posterior is not None
    assert options.operator is not None
    started = time.perf_counter()
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    model = loaded.model
    method = method_of(options.posterior, model.std)
    settings = {name: getattr(options, name) or None for name in SETTINGS}
    operator = picture_operator(model, options.operator, **settings)
    config = override(loaded.config, overrides)
    require_same_split(config, loaded.config)
    dataset = build_dataset(config.data, progress)
    require_same_data(dataset, loaded.data)
    held = len(dataset.test)
    if (options.num or 2) > held:
        raise ValueError(f"--num: the test split has {held} examples, got {options.num}")
    split = dataset.test.take(shuffled(held, options.seed)[: options.num or EXAMPLES])
    label = None
    if loaded.classed:
        if (
            dataset.classes is None
            or dataset.classes != loaded.data.classes
            or split.label is None
        ):
            raise ValueError(f"{dataset.name} has other classes than {loaded.data.name}")
        label = [dataset.classes[k] for k in split.label.tolist()]
    noise = NOISES[options.operator] if options.noise is None else options.noise
    prior = dataset.train.x[shuffled(len(dataset.train), options.seed)[:MOST_PRIOR]]
    model.to(pick_device(options.device))
    with Stopping() as stop:
        try:
            found = calibrate(
                model,
                operator,
                split.x,
                noise,
                method=method,
                num=options.draws or DEFAULT_NUM,
                nfe=options.nfe or NFE,
                examples=len(split),
                prior=prior,
                label=label,
                seed=options.seed,
                batch=options.batch,
                progress=progress,
                stopping=lambda: stop.signal is not None,
            )
        except RuntimeError as error:
            if stop.signal is None:
                raise
            print(f"{stop.signal.name}: {error}; nothing written", file=sys.stderr)
            raise SystemExit(128 + stop.signal) from None
    report = {
        "data": dataset.name,
        "posterior": options.posterior,
        "operator": options.operator,
        "settings": {
            name: str(value) if name == "mask" else value
            for name, value in settings.items()
            if value is not None
        },
        "noise": noise,
        "prior": len(prior),
        "checkpoint": str(loaded.source.resolve()),
        "step": loaded.step,
        **described_choice(options),
        "classes": None if label is None else "as in the test split",
        "seed": options.seed,
        **found.record(),
    }
    stopped = stop.signal if len(found) < found.asked else None
    _conclude(options, found, report, time.perf_counter() - started)
    if stopped is not None:
        print(f"{stopped.name}: {len(found)} of {found.asked} examples", file=sys.stderr)
        raise SystemExit(128 + stopped)
    return 0


def _conclude(
    options: EvaluateOptions, found: Calibration, report: Mapping[str, Any], seconds: float
) -> None:
    """Print before writing, so that a full disk does not lose the result."""
    text = calibration_page(report, seconds)
    print(json.dumps(report, indent=2) if options.json else text, flush=True)
    if options.out is not None:
        title = f"{report['data']}: {options.posterior} of {options.operator}"
        write(options.out, report, text, {CALIBRATION: partial(found.plot, title=title)})


def _check(options: EvaluateOptions, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for inconsistent options and for files that exist already."""
    if options.checkpoint is None or options.operator is None:
        missing = "operator" if options.operator is None else "checkpoint"
        raise ValueError(f"--{missing} is missing: --posterior needs --checkpoint and --operator")
    common = {f.name for kind in EvaluateOptions.__mro__[1:-1] for f in fields(kind)}
    for field in fields(options):
        if field.name in {*common, *SHARED, *OWN}:
            continue
        if getattr(options, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise ValueError(f"--{name}: is for samples, not for --posterior; leave it out")
    if options.num == 1:
        raise ValueError("--num: need 2 or more examples, got 1")
    if given := [key for key in overrides if key.startswith("sample.")]:
        raise ValueError(f"--{given[0]}: --posterior draws by its own sampler; leave it out")
    if World.found().size > 1:
        raise ValueError("--posterior: one process judges posteriors; start it without torchrun")
    if options.out is not None:
        require_free(options.out, options.overwrite)
