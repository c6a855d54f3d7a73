"""A training run from its folder to its end, whatever it trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from scoresde.config import Schema, to_plain, to_yaml
from scoresde.runs import folder as folders
from scoresde.runs.folder import RunFolder, environment
from scoresde.runs.log import Listener, Log, Quiet
from scoresde.runs.processes import (
    World,
    jointly,
    own_device,
    pick_device,
    rank_of,
    require_same,
)
from scoresde.runs.run import Run, parameters
from scoresde.runs.train_loop import Stop, to_the_end
from scoresde.runs.train_resume import flat, restore
from scoresde.training.distributed import Rank

EXAMPLES, SAME_DATA = "sha256 of the examples", "give all processes the same data"
SAME = "start all processes with the same options, configuration and folder"


def run_in(
    out: str | Path,
    prepare: Callable[[RunFolder, torch.device, Rank], Run],
    config: Schema,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    world: World | None = None,
    listener: Listener | None = None,
    stop: Stop = lambda: 0,
) -> int:
    """Train in the folder ``out``; the signal that stopped it, or 0 when it came to its end.

    Processes of a ``world``, whose process group exists, share every batch; the first one writes.
    Nothing on disk is touched before ``prepare`` has found configuration, data and model to fit.
    Raises ValueError for bad input or while another process trains there, TrainingError for a
    failure on the way.

    Args:
        out: run folder.
        prepare: reads the data and builds everything.
        config: the configuration, which all processes must share.
        resume: go on with the run in ``out``.
        overwrite: start anew in a folder that holds a run.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
        world: this process and all processes.
        listener: receives what the run reports.
        stop: called after every step; returns the signal to stop on, or 0.
    """
    world = world or World()
    claim = partial(folders.claim, out, resume=resume, overwrite=overwrite, trains=config.TRAINS)
    values = {**flat(to_plain(config)), "resume": resume}
    folder = jointly(world, lambda: claim() if world.rank == 0 else RunFolder(Path(out)))
    jointly(world, lambda: require_same(world, values, SAME))
    where = own_device(pick_device(device), world)
    run = jointly(world, lambda: prepare(folder, where, rank_of(world)))
    jointly(world, lambda: require_same(world, {EXAMPLES: run.contents}, SAME_DATA))
    with ExitStack() as stack:
        jointly(world, lambda: _lock(run, stack, claim))
        notes = jointly(world, lambda: restore(run)) if resume else []
        jointly(world, lambda: require_same(world, {"step": run.state.step}, SAME))
        if run.leads:
            _write_start(run, where)
        log = Log(run.folder.log, listener or Quiet(), run.plan, quiet=not run.leads)
        with log:
            for line in [*notes, introduction(run, where), *run.remarks(where), run.LEGEND]:
                log.say(line)
            return to_the_end(run, log, stop)


def introduction(run: Run, device: torch.device) -> str:
    """One-line summary of model, data and steps."""
    held_out = 0 if run.held_out is None else len(run.held_out)
    shape = " as latents ".join(map(str, run.shapes()))
    return (
        f"{run.folder.path}: {parameters(run.state.model):,} parameters on {device}, "
        f"{run.dataset.name} {shape}, {len(run.split)} training and {held_out} "
        f"held-out examples, steps {run.state.step} to {run.plan.steps}, "
        f"batches of {run.plan.batch}"
    )


def _lock(run: Run, stack: ExitStack, claim: Callable[[], object]) -> None:
    """Keep others out of the folder until the stack ends, and see whether it is still free."""
    if run.leads:
        stack.enter_context(folders.locked(run.folder))
        claim()


def _write_start(run: Run, device: torch.device) -> None:
    """The configuration, and for a run from step 0 an empty folder and its environment."""
    begins = run.state.step == 0
    if begins:
        folders.clear(run.folder)
    found = environment(str(device), run.config.TRAINS) if begins else None
    folders.write_start(run.folder, to_yaml(run.config), found)
