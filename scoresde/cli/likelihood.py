"""``scoresde likelihood``: computes log p of every example, and its mean with errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import LikelihoodOptions
from scoresde.cli.weights import load_chosen
from scoresde.config import build, build_dataset, override
from scoresde.progress import silent
from scoresde.runs import score
from scoresde.runs.compatibility import require_same_split
from scoresde.runs.load import LoadedRun
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.score import Scores, Stopped
from scoresde.runs.score_report import (
    csv_text,
    page,
    report_of,
    require_csv,
    write_csv,
    write_report,
)
from scoresde.runs.scoring import Job, Partial
from scoresde.runs.stopping import Stopping


def run(options: LikelihoodOptions, overrides: Mapping[str, Any]) -> int:
    """Score the examples, print the report and write it.

    On SIGINT or SIGTERM, writes the values so far to the folder of the report and raises
    SystemExit with code 130 or 143. With several processes, the first one reports.
    """
    world = World.found()
    _check(options, overrides, world)
    loaded = load_chosen(options.checkpoint, options)
    if world.rank == 0:
        for note in loaded.notes:
            print(note, file=sys.stderr)
    job, against = _jobs(options, overrides, loaded)
    loaded.model.to(own_device(pick_device(options.device), world))
    part = None
    if options.out is not None:
        part = score.kept(
            job, options.out, world.rank, resume=options.resume, overwrite=options.overwrite
        )
    with together(world) as barrier:
        found = _scored(job, part, world, barrier)
        if world.rank == 0:
            other = None if against is None else _other(against, part)
            _conclude(options, found, other)
            if part is not None:
                part.remove()
        barrier()
    return 0


def _jobs(
    options: LikelihoodOptions, overrides: Mapping[str, Any], loaded: LoadedRun
) -> tuple[Job, Job | None]:
    """Jobs for the examples to score and for those of --against."""
    config = override(loaded.config, overrides)
    require_same_split(config, loaded.config)
    settings = build(config.likelihood)
    data = options.images or build_dataset(config.data, progress)
    job = score.prepared(
        loaded.model,
        data,
        settings,
        split=options.split,
        num=options.num,
        conditional=options.conditional,
        bound=options.bound,
        seed=options.seed,
    )
    if options.against is None:
        return job, None
    plain = replace(settings, check=0)
    return job, score.prepared(
        loaded.model, options.against, plain, conditional=False, seed=options.seed
    )


def _scored(job: Job, part: Partial | None, world: World, barrier: Any) -> Scores:
    """Score the examples of a job. Raises SystemExit when a signal stops it."""
    shown = progress if world.rank == 0 else silent
    with Stopping() as stop:
        try:
            return score.scored(
                job, part, world, barrier, shown, stopping=lambda: stop.signal is not None
            )
        except Stopped as left:
            assert stop.signal is not None
            text = str(left).replace("without out", "without --out")
            text = text.replace("resume=True", "--resume")
            print(f"{stop.signal.name}: {text}", file=sys.stderr)
            raise SystemExit(128 + stop.signal) from None


def _other(job: Job, part: Partial | None) -> Scores:
    """Score --against; an interruption loses these values, but not those of the data."""
    try:
        return _scored(job, None, World(), lambda: None)
    except SystemExit:
        if part is not None:
            line = f"those of the data are kept in {part.folder}; go on with --resume"
            print(line, file=sys.stderr)
        raise


def _conclude(options: LikelihoodOptions, found: Scores, other: Scores | None) -> None:
    """Print the report before writing it, so that a full disk does not lose the result."""
    report = report_of(found, other)
    print(json.dumps(report, indent=2) if options.json else page(report), flush=True)
    if options.csv is not None:
        if options.csv.exists() and os.path.samestat(options.csv.stat(), os.fstat(1)):
            # Opening the file of standard output again would delete its contents.
            print(csv_text(found), end="", flush=True)
        else:
            write_csv(options.csv, found)
    if options.out is not None:
        write_report(options.out, found, report, other)


def _check(options: LikelihoodOptions, overrides: Mapping[str, Any], world: World) -> None:
    """Raise ValueError or OSError for inconsistent options and for files that exist already."""
    if options.images is not None:
        asked = ["--split train"] if options.split == "train" else []
        asked += [f"--{key}" for key in overrides if key.startswith("data.")]
        if asked:
            raise ValueError(f"{asked[0]}: --images are scored instead; leave one of them out")
    if options.csv is not None and world.rank == 0:
        require_csv(options.csv)
    if options.out is not None:
        score.require_room(options.out, resume=options.resume, overwrite=options.overwrite)
    elif options.resume:
        raise ValueError("--resume: give the --out folder of the run that was interrupted")
    elif world.size > 1:
        raise ValueError("--out is missing: several processes exchange their values in its folder")
