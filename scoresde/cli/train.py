"""``scoresde train``: a run in its folder, from the configuration to exported weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.report import Report
from scoresde.config import (
    Config,
    Section,
    build_dataset,
    build_model,
    config_from,
    load_config,
    override,
    to_plain,
    to_yaml,
)
from scoresde.runs import folder as folders
from scoresde.runs.cost import flops, short
from scoresde.runs.folder import RunFolder, environment
from scoresde.runs.processes import (
    World,
    backend_of,
    jointly,
    own_device,
    require_same,
    share_of,
    together,
)
from scoresde.runs.train_loop import to_the_end
from scoresde.runs.train_resume import flat, restore
from scoresde.runs.train_setup import Run, planned, prepare
from scoresde.training import checkpoint as checkpoints
from scoresde.training.distributed import Share
from scoresde.training.precision import is_slow

EXAMPLES, SAME_DATA = "sha256 of the examples", "give all processes the same data"
SAME = "start all processes with the same options, configuration and folder"


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """The command: train, resume, or with --dry-run only say what would be trained."""
    world = World.found()
    if options.dry_run:
        text = summary(_config(options, overrides), share_of(world))
        if world.rank == 0:
            print(text)
        return 0
    if options.out is None:
        raise ValueError("--out is missing; name the run folder to write, such as --out runs/demo")
    with together(world, backend_of(options.device)):
        train_run(
            jointly(world, lambda: _config(options, overrides)),
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            world=world,
        )
    return 0


def train_run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    world: World | None = None,
) -> Path:
    """Train a configuration in the folder ``out`` and return that folder.

    Processes of a ``world``, whose process group exists, share every batch; the first one writes.

    Nothing on disk is touched before configuration, data and model are known to fit. Raises
    ValueError for bad input or while another process trains there, TrainingError for a failure on
    the way, and SystemExit with 130 or 143 after SIGINT or SIGTERM, a checkpoint being saved.
    """
    world = world or World()
    claim = partial(folders.claim, out, resume=resume, overwrite=overwrite)
    folder = jointly(world, lambda: claim() if world.rank == 0 else RunFolder(Path(out)))
    told = flat(to_plain(config)) | {"--resume": resume}
    jointly(world, lambda: require_same(world, told, SAME))
    where = own_device(pick_device(device), world)
    current = jointly(world, lambda: prepare(config, folder, where, share_of(world)))
    jointly(world, lambda: require_same(world, {EXAMPLES: current.contents}, SAME_DATA))
    with ExitStack() as stack:
        jointly(world, lambda: _lock(current, stack, claim))
        notes = jointly(world, lambda: restore(current)) if resume else []
        jointly(world, lambda: require_same(world, {"step": current.state.step}, SAME))
        _carry_out(current, where, notes)
    return folder.path


def _lock(run: Run, stack: ExitStack, claim: Callable[[], object]) -> None:
    """Keep others out of the folder until the stack ends, and see whether it is still free."""
    if run.leads:
        stack.enter_context(folders.locked(run.folder))
        claim()


def _carry_out(run: Run, device: torch.device, notes: Sequence[str]) -> None:
    """Write how the run starts, say what it is after the notes, and train."""
    if run.leads:
        _write_start(run, device)
    told = [*notes, introduction(run, device), *run.dataset.notes]
    told += cautions(run.config.train, device)
    step = run.state.step
    with Report(run.folder.log, run.plan.steps, step, quiet=not run.leads) as report:
        to_the_end(run, report, told)


def _write_start(run: Run, device: torch.device) -> None:
    """The configuration, and for a run from step 0 an empty folder and its environment."""
    begins = run.state.step == 0
    if begins:
        folders.clear(run.folder)
    found = environment(str(device)) if begins else None
    folders.write_start(run.folder, to_yaml(run.config), found)


def introduction(run: Run, device: torch.device) -> str:
    """What is trained on what, in a line."""
    held_out = 0 if run.held_out is None else len(run.held_out)
    return (
        f"{run.folder.path}: {parameters(run.state.model):,} parameters on {device}, "
        f"{run.dataset.name} {tuple(run.dataset.shape)}, {len(run.split)} training and {held_out} "
        f"held-out examples, steps {run.state.step} to {run.plan.steps}, "
        f"batches of {run.plan.batch}"
    )


def cautions(train: Section, device: torch.device) -> list[str]:
    """What does not help as it was meant to, a line each."""
    if not is_slow(train.precision, device):
        return []
    return [
        f"train.precision={train.precision} is slower than float32 on this CPU, which has no "
        "instructions for it"
    ]


def summary(config: Config, share: Share) -> str:
    """What --dry-run prints: configuration, number of parameters, how the batch is split."""
    dataset = build_dataset(config.data, progress)
    plan = planned(config, dataset, share)
    model = build_model(config, dataset)
    cost = flops(model, tuple(dataset.shape), plan.classes)
    part = plan.batch // (plan.accumulate * share.size)
    processes = f"{share.size} process{'es' * (share.size > 1)}"
    return (
        f"{to_yaml(config)}# {parameters(model):,} parameters; data {dataset.name} "
        f"{tuple(dataset.shape)}\n"
        f"# {short(cost)}FLOP an example, forward and backward; {short(cost * plan.batch)}FLOP a "
        f"step, {short(cost * plan.batch * plan.steps)}FLOP in all\n"
        f"# batch {plan.batch}: {plan.accumulate} x {part} on each of {processes}"
    )


def parameters(model: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(p.numel() for p in model.parameters())


def _config(options: TrainOptions, overrides: Mapping[str, Any]) -> Config:
    """That of the file given, or the one the run to resume has stored, changed by the flags."""
    if options.config is not None or not (options.resume and options.out):
        return load_config(options.config, overrides)
    folder = RunFolder(options.out)
    if folder.config.exists() or not folder.is_run():
        return load_config(folder.config if folder.is_run() else None, overrides)
    if not checkpoints.step_files(folder.checkpoints):
        raise ValueError(f"{folder.config}: missing, and no checkpoint has it; give --config")
    path, found, _ = checkpoints.newest(folder.checkpoints)
    return override(config_from(found.config, path), overrides)
