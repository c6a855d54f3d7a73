"""What a training run is made of: its data, its model and everything it is trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from scoresde.cli.console import progress
from scoresde.runs.cost import flops
from scoresde.runs.folder import RunFolder
from scoresde.runs.scalars import require_tensorboard
from scoresde.config import Config, Section, build_dataset, build_model, build_optimizer, build_plan, to_plain
from scoresde.data import Dataset, Examples, Split, views
from scoresde.data.digest import digest
from scoresde.data.dataset import reading, spread
from scoresde.parameterization import ScoreModel
from scoresde.training import Best, Checkpoint, Plan, TrainState, describe, start
from scoresde.training import fsdp
from scoresde.training.precision import lay_out
from scoresde.training.distributed import Share
from scoresde.training.uncertainty import LearnedWeight

# Enough for a held-out loss that ranks checkpoints: its numbers are the same at every step.
HELD_OUT_EVALUATIONS = 2048


@dataclass
class Run:
    """What a run is made of; ``best`` and what ``state`` holds change as it goes."""

    config: Config
    folder: RunFolder
    dataset: Dataset
    split: Examples
    held_out: Split | None
    plan: Plan
    state: TrainState
    flops: int
    contents: str
    best: Best | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.plan.share.rank == 0


def prepare(
    config: Config, folder: RunFolder, device: torch.device, share: Share | None = None
) -> Run:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    if config.train.tensorboard:
        require_tensorboard()
    dataset = build_dataset(config.data, progress)
    plan = planned(config, dataset, share or Share())
    split, held_out = _splits(config, dataset)
    model = build_model(config, dataset)
    if not config.train.shard:
        model.to(device)  # what is split never is there as a whole
    cost = flops(model, tuple(dataset.shape), plan.classes)
    state = started(config.train, model, plan.share, device)
    contents = digest(dataset.train)
    return Run(config, folder, dataset, split, held_out, plan, state, cost, contents)


def planned(config: Config, dataset: Dataset, share: Share) -> Plan:
    """The plan of the process that has this share. Raises ValueError where it cannot have one."""
    if config.train.shard and share.size == 1:
        raise ValueError(
            "train.shard=true splits the weights between processes, and there is one; start "
            "several with torchrun, or give --train.no-shard"
        )
    return replace(build_plan(config, dataset), share=share)


def started(train: Section, model: ScoreModel, share: Share, device: torch.device) -> TrainState:
    """The state before the first update, in the layout ``train`` asks for."""
    if train.channels_last:
        lay_out(model)
    make = partial(build_optimizer, train)
    state = start(model, make(model.parameters()), train.posthoc, train.ema[1:])
    if train.shard:
        for each in state.models:
            fsdp.split(each.net, share, device)
        state.optimizer = make(model.parameters())
    if train.learned_weight:
        state.learned = LearnedWeight(device)
    if train.compile:
        model.net.compile()  # the averages are copies that are not
    return state


def snapshot(run: Run) -> Checkpoint:
    """The checkpoint of the run as it stands.

    Where weights are split all processes take part; it is whole in the one that writes.
    """
    state = run.state

    def whole(part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
        return fsdp.gathered(part.state_dict(), keep=run.leads)

    return Checkpoint(
        config=to_plain(run.config),
        data=describe(run.dataset),
        step=state.step,
        model=whole(state.model),
        ema=whole(state.ema),
        optimizer=whole(state.optimizer),
        best=run.best,
        averages={str(width): whole(average) for width, average in state.averages.items()},
        scale=state.scale,
        contents=run.contents,
        decays={str(decay): whole(average) for decay, average in state.decays.items()},
        learned={} if state.learned is None else state.learned.state_dict(),
    )


def _splits(config: Config, dataset: Dataset) -> tuple[Examples, Split | None]:
    if config.train.holdout == 0:
        return dataset.train, None
    with reading("train.holdout"):
        split, held_out = views(dataset.train, config.train.holdout, config.seed)
    # Every update on the whole of a large set would cost more than it tells.
    return split, held_out.take(spread(len(held_out), HELD_OUT_EVALUATIONS))
