"""What a training run is made of: its data, its model and everything it is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.config import (
    Config,
    build_dataset,
    build_model,
    build_plan,
    build_reporting,
    measured,
    override,
    to_plain,
)
from scoresde.data import Dataset, Examples, Split, views
from scoresde.data.dataset import reading, spread
from scoresde.data.digest import digest
from scoresde.parameterization import OutputError, ScoreModel
from scoresde.progress import Progress
from scoresde.runs.cost import flops
from scoresde.runs.folder import RunFolder
from scoresde.runs.scalars import require_tensorboard
from scoresde.training import (
    Best,
    Checkpoint,
    Plan,
    Reporting,
    TrainState,
    describe,
    fsdp,
    held_out_loss,
)
from scoresde.training.distributed import Rank
from scoresde.training.held_out import evaluating
from scoresde.training.said import columns_read, words_of

# Enough for a held-out loss that ranks checkpoints: its numbers are the same at every step.
HELD_OUT_EVALUATIONS = 2048


@dataclass(frozen=True)
class Task:
    """What is to be trained on what: a configuration, and what a program gives in place of it."""

    config: Config
    model: ScoreModel | None = None
    dataset: Dataset | None = None


@dataclass
class Run:
    """What a run is made of; ``best`` and what ``state`` holds change as it goes."""

    config: Config
    folder: RunFolder
    dataset: Dataset
    split: Examples
    held_out: Split | None
    plan: Plan
    reporting: Reporting
    state: TrainState
    flops: int
    contents: str
    told: Mapping[str, Mapping[str, Any]]
    best: Best | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.plan.rank.index == 0

    def held_out_loss(self) -> float | None:
        """The held-out loss of the average; None without held-out examples."""
        if self.held_out is None:
            return None
        return held_out_loss(
            self.state.ema,
            self.held_out,
            self.dataset.scaling,
            conditional=self.plan.classes is not None,
            dither=self.plan.dither,
            draws=max(1, HELD_OUT_EVALUATIONS // len(self.held_out)),
            seed=self.plan.seed,
        )


def prepare(
    task: Task, folder: RunFolder, device: torch.device, rank: Rank, progress: Progress
) -> Run:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    config = with_absolute_paths(task.config)
    if config.own and task.model is None:
        raise ValueError(
            "the model of this run is one that a program made, which no configuration describes; "
            "train it from Python, with ss.train(model, data)"
        )
    reporting = build_reporting(config)
    if reporting.tensorboard:
        require_tensorboard()
    dataset = build_dataset(config.data, progress) if task.dataset is None else task.dataset
    plan = build_plan(config, dataset, rank)
    told = measured(config, dataset)
    if task.model is None:
        model = build_model(config, dataset)
    else:
        model = task.model
        if not any(p.requires_grad for p in model.parameters()):
            model.requires_grad_(True)  # of ``load``; a model that is frozen in part stays so
        require_fit(model, dataset, plan)
    train = columns_read(dataset.train, model.conditions, words_of(dataset))
    split, held_out = _splits(config, train)
    if not plan.shard:
        model.to(device)  # what is split never is there as a whole
    cost = flops(model, tuple(dataset.shape), plan.classes)
    state = TrainState.of(model, plan, device)
    contents = digest(dataset.train)
    return Run(
        config, folder, dataset, split, held_out, plan, reporting, state, cost, contents, told
    )


def with_absolute_paths(config: Config) -> Config:
    """The configuration with the places of its data independent of the current folder."""
    found = {
        f"data.{name}": str(Path(path).expanduser().resolve())
        for name in ("path", "cache")
        if (path := config.data.values.get(name)) is not None
    }
    return override(config, found) if found else config


def require_fit(model: ScoreModel, dataset: Dataset, plan: Plan) -> None:
    """Raise ValueError where a model of a program's own does not return what a loss needs."""
    classes = getattr(model.net, "classes", None)
    if plan.classes is not None and classes not in (None, plan.classes):
        raise ValueError(
            f"model: its network has {classes} classes, the data {plan.classes}; make them equal"
        )
    x = torch.zeros(2, *dataset.shape, device=model.device)
    t = torch.full((2,), model.sde.t_max, dtype=torch.float64)
    label = {} if plan.classes is None else {"label": torch.zeros(2, dtype=torch.long)}
    label = {name: value.to(model.device) for name, value in label.items()}
    if not any(p.numel() for p in model.parameters()):
        raise ValueError("model: its network has no parameters to train")
    try:
        with evaluating(model), torch.no_grad():
            model(x, t, **label)
    except OutputError:
        raise
    except Exception as error:  # a network raises whatever it stumbles over
        also = "".join(f" and {name}" for name in label)
        raise ValueError(
            f"model: its network fails for x of shape {tuple(x.shape)}, noise of shape "
            f"(2,){also}: {type(error).__name__}: {error}"
        ) from error


def takes_labels(net: nn.Module) -> bool:
    """Whether a network can be conditional: its ``forward`` takes ``label``, or any keyword."""
    taken = signature(net.forward).parameters
    return "label" in taken or any(p.kind is Parameter.VAR_KEYWORD for p in taken.values())


def snapshot(run: Run) -> Checkpoint:
    """The checkpoint of the run as it stands.

    Where weights are split all processes take part; it is whole in the one that writes.
    """
    state = run.state

    def whole(part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
        return fsdp.gathered(part.state_dict(), keep=run.leads)

    return Checkpoint(
        config=to_plain(run.config),
        data=describe(run.dataset, run.told),
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
        history={} if state.history is None else state.history.state_dict(),
    )


def described(counts: Mapping[str, int], most: int = 12) -> list[str]:
    """The classes of the training examples with the number of each, in a line; none without."""
    if not counts:
        return []
    listed = [f"{name} ({n})" for name, n in list(counts.items())[:most]]
    rest = list(counts.values())[most:]
    more = f", and {len(rest)} more of {min(rest)} to {max(rest)}" if rest else ""
    return [f"{len(counts)} classes (training examples): {', '.join(listed)}{more}"]


def _splits(config: Config, train: Split) -> tuple[Examples, Split | None]:
    if config.train.holdout == 0:
        return train, None
    with reading("train.holdout"):
        split, held_out = views(train, config.train.holdout, config.seed)
    # Every update on the whole of a large set would cost more than it tells.
    return split, held_out.take(spread(len(held_out), HELD_OUT_EVALUATIONS))
