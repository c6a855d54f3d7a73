"""``scoresde train``: a run in its folder, from the configuration to exported weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.cli.console import progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.report import Report
from scoresde.config import (
    Config,
    build_dataset,
    build_model,
    build_plan,
    load_config,
    override,
    to_yaml,
)
from scoresde.runs.cost import flops, short
from scoresde.runs.processes import World, backend_of, jointly, rank_of, together
from scoresde.runs.stopping import Stopping
from scoresde.runs.train import parameters, train_run
from scoresde.runs.train_resume import stored_config
from scoresde.training.distributed import Rank


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """Train, resume, or with --dry-run only say what would be trained.

    After SIGINT or SIGTERM a checkpoint is saved, and SystemExit with 130 or 143 raised.
    """
    world = World.found()
    if options.dry_run:
        text = summary(_config(options, overrides), rank_of(world))
        if world.rank == 0:
            print(text)
        return 0
    if options.out is None:
        raise ValueError("--out is missing; name the run folder to write, such as --out runs/demo")
    with together(world, backend_of(options.device)), Stopping() as stopping:
        stopped = train_run(
            jointly(world, lambda: _config(options, overrides)),
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            world=world,
            listener=Report(),
            progress=progress,
            stop=lambda: stopping.signal or 0,
        )
    if stopped:
        raise SystemExit(128 + stopped)
    return 0


def summary(config: Config, rank: Rank) -> str:
    """What --dry-run prints: configuration, number of parameters, how the batch is split."""
    dataset = build_dataset(config.data, progress)
    plan = build_plan(config, dataset, rank)
    model = build_model(config, dataset)
    cost = flops(model, tuple(dataset.shape), plan.classes)
    part = plan.batch // (plan.accumulate * rank.size)
    processes = f"{rank.size} process{'es' * (rank.size > 1)}"
    return (
        f"{to_yaml(config)}# {parameters(model):,} parameters; data {dataset.name} "
        f"{tuple(dataset.shape)}\n"
        f"# {short(cost)}FLOP an example, forward and backward; {short(cost * plan.batch)}FLOP a "
        f"step, {short(cost * plan.batch * plan.steps)}FLOP in all\n"
        f"# batch {plan.batch}: {plan.accumulate} x {part} on each of {processes}"
    )


def _config(options: TrainOptions, overrides: Mapping[str, Any]) -> Config:
    """That of the file given, or the one the run to resume has stored, changed by the flags."""
    if options.config is None and options.resume and options.out is not None:
        return override(stored_config(options.out), overrides)
    return load_config(options.config, overrides)
