"""``scoresde train``: trains a model in a run folder and exports its weights."""

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
    measured,
    override,
    to_yaml,
)
from scoresde.runs.cost import flops, short
from scoresde.runs.processes import World, backend_of, jointly, rank_of, together
from scoresde.runs.run import parameters, split_in_words
from scoresde.runs.space import described_state
from scoresde.runs.stopping import Stopping
from scoresde.runs.train import train_run
from scoresde.runs.train_resume import stored_config
from scoresde.runs.train_setup import Task, codec_for
from scoresde.training import describe
from scoresde.training.distributed import Rank


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """Train or resume a run; with --dry-run, only print a summary.

    On SIGINT or SIGTERM, saves a checkpoint and raises SystemExit with code 130 or 143.
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
            stop=stopping.number,
        )
    if stopped:
        raise SystemExit(128 + stopped)
    return 0


def summary(config: Config, rank: Rank) -> str:
    """Output of --dry-run: configuration, number of parameters, operations and batch split."""
    dataset = build_dataset(config.data, progress)
    plan = build_plan(config, dataset, rank)
    codec = codec_for(Task(config))
    about = described_state(describe(dataset, measured(config, dataset, codec)), codec)
    model = build_model(config, about)
    cost = flops(model, about.shape, plan.classes)
    return (
        f"{to_yaml(config)}# {parameters(model):,} parameters; data {dataset.name} "
        f"{tuple(dataset.shape)}{'' if codec is None else f' as latents {about.shape}'}\n"
        f"# {short(cost)}FLOP per example, forward and backward; {short(cost * plan.batch)}FLOP "
        f"per step, {short(cost * plan.batch * plan.steps)}FLOP in all\n"
        f"# {split_in_words(plan)}"
    )


def _config(options: TrainOptions, overrides: Mapping[str, Any]) -> Config:
    """Configuration of --config, or of the run to resume, with the overrides applied."""
    if options.config is None and options.resume and options.out is not None:
        return override(stored_config(options.out), overrides)
    return load_config(options.config, overrides)
