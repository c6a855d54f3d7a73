"""What the commands that train have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from scoresde.cli.console import progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.report import Report
from scoresde.config import load_config, override
from scoresde.config.schema import Schema
from scoresde.runs.processes import World, backend_of, jointly, rank_of, together
from scoresde.runs.stopping import Stopping
from scoresde.runs.train_resume import stored_config
from scoresde.training.distributed import Rank

Kind = TypeVar("Kind", bound=Schema)


def train(
    options: TrainOptions,
    overrides: Mapping[str, Any],
    schema: type[Kind],
    summary: Callable[[Kind, Rank], str],
    train_run: Callable[..., int],
) -> int:
    """Train or resume a run of any kind; with --dry-run, only print its ``summary``.

    On SIGINT or SIGTERM, saves a checkpoint and raises SystemExit with code 130 or 143.
    """
    world = World.found()
    if options.dry_run:
        text = summary(_config(options, overrides, schema), rank_of(world))
        if world.rank == 0:
            print(text)
        return 0
    if options.out is None:
        raise ValueError("--out is missing; name the run folder to write, such as --out runs/demo")
    with together(world, backend_of(options.device)), Stopping(late=True) as stopping:
        stopped = train_run(
            jointly(world, lambda: _config(options, overrides, schema)),
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            world=world,
            listener=Report(),
            progress=progress,
            stop=stopping.number,
        )
    if stopped:
        raise SystemExit(128 + stopped)
    return 0


def _config(options: TrainOptions, overrides: Mapping[str, Any], schema: type[Kind]) -> Kind:
    """Configuration of --config, or of the run to resume, with the overrides applied."""
    if options.config is None and options.resume and options.out is not None:
        return override(stored_config(options.out, schema), overrides)
    return load_config(options.config, overrides, schema)
