"""``scoresde likelihood``: log P of every example, and how sure its mean is."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.cli.console import pick_device, progress
from scoresde.cli.likelihood_report import (
    FILES,
    Prepared,
    page,
    report_of,
    with_error,
    write_files,
)
from scoresde.cli.options import LikelihoodOptions
from scoresde.cli.weights import load_chosen
from scoresde.config import Config, Section, build_dataset, override, to_plain
from scoresde.data import Scaling, Split, examples
from scoresde.likelihood import mean
from scoresde.parameterization import ScoreModel
from scoresde.registry import bound_of, build_estimator
from scoresde.runs import scoring
from scoresde.runs.compatibility import require_same_data, require_same_split
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.results import require_writable
from scoresde.runs.scoring import Job, Partial, Values
from scoresde.runs.stopping import Stopping
from scoresde.sde import SDE
from scoresde.training.checkpoint import DataDescription, fingerprint

KEEP_SECONDS = 5.0


@dataclass(frozen=True)
class Scores:
    """Of every example (N,): log P in nats and its bits per dimension.

    ``nfe`` is the mean number of network calls a draw, ``offset`` the part of the bits that only
    reflects the units, -log2(step).
    """

    nats: Tensor
    bits: Tensor
    nfe: float
    offset: float

    @property
    def mean(self) -> float:
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float:
        """Over examples; NaN for a single one."""
        return mean(self.bits).error


def run(options: LikelihoodOptions, overrides: Mapping[str, Any]) -> int:
    """Score and report.

    After SIGINT or SIGTERM the values so far are kept in the folder of the report, and SystemExit
    with 130 or 143 raised. Of several processes the first reports.
    """
    world = World.found()
    _check(options, overrides, world)
    ready = prepared(options, overrides, world)
    job = ready.job
    part = None if options.out is None else _partial(ready, options.out, world)
    started = time.perf_counter()
    with together(world) as barrier:
        barrier()  # what --overwrite forgets is gone
        values = Values.empty(len(job.split)) if part is None else part.read(len(job.split))
        barrier()  # all have read what there was before any adds to it
        if part is not None and world.rank == 0 and len(values.done):
            # Of another number of processes: the files of the others are about to be replaced.
            part.write(values, values.done)
        barrier()
        score_rows(job, values, part, world)
        barrier()
        if world.rank == 0:
            _conclude(ready, values, part, started, options.json)
        barrier()
    return 0


def _conclude(
    ready: Prepared, values: Values, part: Partial | None, started: float, as_json: bool
) -> None:
    """The report of the whole, printed and written."""
    if part is not None:
        values = part.read(len(ready.job.split)).joined(values)
    if missing := len(ready.job.split) - len(values.done):
        raise RuntimeError(f"{missing} examples have no value; go on with --resume")
    other = None if ready.against is None else _all_of(ready.against, part)
    report = report_of(ready, values, other, time.perf_counter() - started)
    # First what no disk can take away.
    print(json.dumps(report, indent=2) if as_json else page(report), flush=True)
    write_files(ready, values, other, report)
    if part is not None:
        part.remove()


def _all_of(job: Job, kept: Partial | None) -> Values:
    """The values of the other set, of which an interruption keeps nothing."""
    values = Values.empty(len(job.split))
    try:
        score_rows(job, values, None, World())
    except SystemExit:
        if kept is not None:
            print(f"those of the data are kept in {kept.folder}; --resume", file=sys.stderr)
        raise
    return values


def score_split(
    model: ScoreModel,
    split: Split,
    scaling: Scaling,
    settings: Section,
    *,
    conditional: bool = False,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> Scores:
    """Score every example of a split, as ``scoresde likelihood`` does, without its checks.

    Raises SolverError as the solvers do, RuntimeError for values that are not finite.
    """
    job = _job(model, split, scaling, settings, conditional=conditional, seed=seed)
    job = replace(job, check=0)
    values = Values.empty(len(split))
    for rows, found in scoring.score(job, torch.arange(len(split))):
        values.put(rows, found)
        advance(len(rows))
    nats = values.columns["nats"]
    nfe = float(values.columns["nfe"].mean())
    return Scores(nats, scoring.bits(job, nats), nfe, -math.log2(scaling.step))


def score_rows(job: Job, values: Values, part: Partial | None, world: World) -> None:
    """Fill in the rows of this process that have no value yet. Raises SystemExit when stopped."""
    n, before = len(job.split), values.done
    everything = torch.arange(n)
    rows = world.share(everything[~torch.isin(everything, before)])
    own = torch.cat([before, rows]) if world.rank == 0 else rows
    shown = progress(len(own), "scored") if world.rank == 0 else nullcontext(_silent)
    last = time.monotonic()
    with Stopping() as stop, shown as advance:
        advance(len(own) - len(rows))
        for some, found in scoring.score(job, rows):
            values.put(some, found)
            advance(len(some), _running(job, values))
            due = stop.signal is not None or time.monotonic() - last >= KEEP_SECONDS
            if part is not None and due:
                part.write(values, own)
                last = time.monotonic()
            if stop.signal is not None and len(values.done) < n:
                raise _stopped(stop.signal, values, part)
    if part is not None and world.size > 1:
        part.write(values, own)


def _silent(n: int, note: str = "") -> None:
    """The progress of a process whose terminal another one has."""


def _running(job: Job, values: Values) -> str:
    found = mean(scoring.bits(job, values.columns["nats"][values.done]))
    return with_error(found.value, found.error) + " bits/dim so far"


def _stopped(stop: signal.Signals, values: Values, part: Partial | None) -> SystemExit:
    where = "nothing is kept without --out"
    if part is not None:
        where = f"kept in {part.folder}; go on with --resume"
    n = len(values.columns["nats"])
    print(f"{stop.name}: {len(values.done)} of {n} examples scored, {where}", file=sys.stderr)
    return SystemExit(128 + stop)


# --- before anything is computed ----------------------------------------------------------------


def prepared(options: LikelihoodOptions, overrides: Mapping[str, Any], world: World) -> Prepared:
    """The model on its device and what it is to score, checked."""
    loaded = load_chosen(options.checkpoint, options)
    if world.rank == 0:
        for note in loaded.notes:
            print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    require_same_split(config, loaded.config)
    split, name, classes = _chosen(options, config, loaded.data)
    if options.conditional:
        _require_classes(config, name, classes, split, loaded.data)
    elif config.conditional and config.train.label_dropout == 0:
        raise ValueError(
            "this model never learned to do without a class (train.label_dropout=0); "
            "give --conditional"
        )
    loaded.model.to(own_device(pick_device(options.device), world))
    _require_start(config.likelihood.t0, loaded.model.sde)
    make = partial(
        _job,
        loaded.model,
        scaling=loaded.data.scaling,
        settings=config.likelihood,
        seed=options.seed,
        bound=options.bound,
    )
    job = make(split=_first(split, options.num), conditional=options.conditional)
    against = None
    if options.against is not None:
        other = examples(options.against, loaded.data.shape, loaded.data.scaling)
        against = replace(make(split=other), beside=None, check=0)
    return Prepared(options, loaded, config, job, name, against)


def _job(
    model: ScoreModel,
    split: Split,
    scaling: Scaling,
    settings: Section,
    *,
    conditional: bool = False,
    seed: int = 0,
    bound: bool = False,
) -> Job:
    return Job(
        model,
        split,
        scaling,
        build_estimator(settings, scaling),
        bound_of(settings, scaling) if bound else None,
        settings.repeats,
        settings.importance,
        settings.check,
        conditional,
        settings.batch,
        seed,
    )


def _chosen(
    options: LikelihoodOptions, config: Config, data: DataDescription
) -> tuple[Split, str, tuple[str, ...] | None]:
    """The examples to score, their name, and the names of their classes."""
    if options.images is not None:
        found = examples(options.images, data.shape, data.scaling)
        return found, str(options.images), data.classes
    dataset = build_dataset(config.data)
    require_same_data(dataset, data)
    split = dataset.train if options.split == "train" else dataset.test
    return split, f"{dataset.name}, {options.split} split", dataset.classes


def _check(options: LikelihoodOptions, overrides: Mapping[str, Any], world: World) -> None:
    _require_one_set(options, overrides)
    if options.seed < 0:
        raise ValueError(f"--seed: need at least 0, got {options.seed}")
    if options.num is not None and options.num < 1:
        raise ValueError(f"--num: need at least 1, got {options.num}")
    if options.resume and options.overwrite:
        raise ValueError("--resume and --overwrite exclude each other; give one of them")
    if options.csv is not None and world.rank == 0:
        _require_writable(options.csv)
    if options.out is None:
        if options.resume:
            raise ValueError("--resume: give the --out folder of the run that was interrupted")
        if world.size > 1:
            raise ValueError("--out is missing: several processes meet in its folder")
        return
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: a file; give a folder")
    _require_room(options, options.out)


def _require_one_set(options: LikelihoodOptions, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError where --images and options of the data set name two sets to score."""
    if options.images is None:
        return
    asked = ["--split train"] if options.split == "train" else []
    asked += [f"--{key}" for key in overrides if key.startswith("data.")]
    if asked:
        raise ValueError(f"{asked[0]}: --images are scored instead; leave one of them out")


def _require_room(options: LikelihoodOptions, out: Path) -> None:
    if options.overwrite:
        return
    if options.resume:
        if not list(out.glob("partial-*.npz")):
            raise ValueError(f"--resume: {out} holds nothing to go on with; leave it out")
        return
    if taken := [name for name in FILES if (out / name).exists()]:
        raise ValueError(f"--out {out}: holds {taken[0]}; give another --out, or --overwrite")
    if list(out.glob("partial-*.npz")):
        raise ValueError(
            f"--out {out}: holds an interrupted evaluation; go on with --resume, or --overwrite"
        )


def _partial(ready: Prepared, out: Path, world: World) -> Partial:
    """Where the values so far are kept, with nothing of other jobs there."""
    require_writable(out)
    plain = to_plain(ready.config)
    parts = {name: plain[name] for name in ("likelihood", "sde", "parameterization", "network")}
    settings = parts.pop("likelihood") | parts
    state = {k: v.cpu().contiguous() for k, v in ready.loaded.model.state_dict().items()}
    part = Partial(out, scoring.key(ready.job, fingerprint({}, state), settings), world.rank)
    if ready.options.overwrite and not ready.options.resume and world.rank == 0:
        part.remove()
    return part


def _require_start(t0: float | None, sde: SDE) -> None:
    """Raise ValueError for a time that the model was not trained at."""
    if t0 is not None and not sde.t_min <= t0 < sde.t_max:
        raise ValueError(
            f"--likelihood.t0: need {sde.t_min:g} to below {sde.t_max:g}, where the model was "
            f"trained, got {t0:g}"
        )


def _first(split: Split, num: int | None) -> Split:
    if num is None:
        return split
    if num > len(split):
        raise ValueError(f"--num: there are {len(split)} examples, got {num}")
    return split.take(torch.arange(num))


def _require_classes(
    config: Config,
    name: str,
    classes: tuple[str, ...] | None,
    split: Split,
    trained: DataDescription,
) -> None:
    if not config.conditional:
        raise ValueError("--conditional: this model was trained without classes; leave it out")
    if classes != trained.classes or split.label is None:
        raise ValueError(
            f"--conditional: {name} has not the classes of {trained.name}; leave it out"
        )


def _require_writable(path: Path) -> None:
    """Raise ValueError or OSError, before anything is computed, unless the file can be written."""
    if not path.parent.is_dir():
        raise ValueError(f"--csv {path}: no such folder; make it first")
    new = not path.exists()
    with writing(path):
        path.open("a").close()
    if new:
        path.unlink()
