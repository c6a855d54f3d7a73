"""``scoresde train``: trains a model in a run folder and exports its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.cli.console import progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.training import train
from scoresde.config import (
    Config,
    build_dataset,
    build_model,
    build_plan,
    measured,
    to_yaml,
)
from scoresde.runs.cost import flops, short
from scoresde.runs.run import parameters, split_in_words
from scoresde.runs.space import described_state
from scoresde.runs.train import train_run
from scoresde.runs.train_setup import Task, codec_for
from scoresde.training import describe
from scoresde.training.distributed import Rank


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """Train or resume the run of a model, as ``train``."""
    return train(options, overrides, Config, summary, train_run)


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
