"""What a training run is made of: its data, its model and everything it is trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from scoresde.build import build_dataset, build_model, build_optimizer, build_plan
from scoresde.cli.cost import flops
from scoresde.cli.folder import RunFolder
from scoresde.config import Config, to_plain
from scoresde.data import Dataset, Split, holdout
from scoresde.data.dataset import reading
from scoresde.training import Best, Checkpoint, Plan, TrainState, describe, start
from scoresde.training.precision import lay_out
from scoresde.training.shares import Share

# Enough for a held-out loss that ranks checkpoints: its numbers are the same at every step.
HELD_OUT_EVALUATIONS = 2048


@dataclass
class Run:
    """What a run is made of; ``best`` and what ``state`` holds change as it goes."""

    config: Config
    folder: RunFolder
    dataset: Dataset
    split: Split
    held_out: Split | None
    plan: Plan
    state: TrainState
    flops: int
    best: Best | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.plan.share.rank == 0


def prepare(
    config: Config, folder: RunFolder, device: torch.device, share: Share | None = None
) -> Run:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    dataset = build_dataset(config.data)
    plan = replace(build_plan(config, dataset), share=share or Share())
    split, held_out = _splits(config, dataset)
    model = build_model(config, dataset).to(device)
    cost = flops(model, tuple(dataset.shape), plan.classes)
    if config.train.channels_last:
        lay_out(model)
    optimizer = build_optimizer(config.train, model.parameters())
    state = start(model, optimizer, config.train.posthoc, config.train.ema[1:])
    if config.train.compile:
        model.net.compile()  # the averages are copies that are not
    return Run(config, folder, dataset, split, held_out, plan, state, cost)


def snapshot(run: Run) -> Checkpoint:
    """The checkpoint of the run as it stands."""
    state = run.state
    return Checkpoint(
        config=to_plain(run.config),
        data=describe(run.dataset),
        step=state.step,
        model=state.model.state_dict(),
        ema=state.ema.state_dict(),
        optimizer=state.optimizer.state_dict(),
        best=run.best,
        averages={str(width): a.state_dict() for width, a in state.averages.items()},
        scale=state.scale,
        decays={str(decay): a.state_dict() for decay, a in state.decays.items()},
    )


def _splits(config: Config, dataset: Dataset) -> tuple[Split, Split | None]:
    if config.train.holdout == 0:
        return dataset.train, None
    with reading("train.holdout"):
        split, held_out = holdout(dataset.train, config.train.holdout, config.seed)
    # Every update on the whole of a large set would cost more than it tells.
    return split, held_out.take(torch.arange(min(len(held_out), HELD_OUT_EVALUATIONS)))
