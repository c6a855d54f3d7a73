"""What a training run is made of, whatever it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from scoresde.config import Schema, override
from scoresde.data import Dataset, Examples, Split, views
from scoresde.data.dataset import reading, spread
from scoresde.interop.native import inlined
from scoresde.runs.cost import memory
from scoresde.runs.folder import RunFolder
from scoresde.training import Best, Checkpoint, DataDescription, Metrics
from scoresde.training import checkpoint as checkpoints
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.plan import Records, Updates
from scoresde.training.precision import is_slow
from scoresde.training.state import State

Settings = TypeVar("Settings", bound=Schema)


@dataclass
class Run(ABC):
    """What a run is made of; ``best`` and what ``state`` holds change as it goes.

    Args:
        config: its configuration.
        folder: its folder.
        dataset: all data.
        split: examples that are trained on.
        held_out: examples that are not; None without.
        plan: settings of the updates.
        reporting: settings of records and checkpoints.
        state: what is trained.
        contents: digest of the training examples.
        best: step of the lowest held-out loss.
    """

    LEGEND: ClassVar[str]
    """A line that explains its records."""

    config: Schema
    folder: RunFolder
    dataset: Dataset
    split: Examples
    held_out: Split | None
    plan: Updates
    reporting: Records
    state: State[Any]
    contents: str
    best: Best | None = None

    @property
    def kind(self) -> str:
        """The kind of its checkpoints."""
        return checkpoints.KINDS[self.config.TRAINS]

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.plan.rank.index == 0

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the lowest held-out loss are the result."""
        return False

    def due(self, every: int) -> bool:
        """Whether something is to be done after this step that is done after every ``every``."""
        return self.state.step % every == 0 or self.state.step == self.plan.steps

    @abstractmethod
    def updates(self) -> Iterator[Metrics]:
        """Train to the end, yielding after each update."""

    @abstractmethod
    def measured(self) -> dict[str, float]:
        """Numbers of the average on held-out examples, ``held_out`` the loss; empty without."""

    def levels(self) -> LossByNoise | None:
        """Sums of the losses by noise level, where there are levels."""
        return None

    def costs(self, images_per_second: float) -> dict[str, float]:
        """Memory, and what else is known of the cost, for the records."""
        return {"memory": memory(self.state.device)}

    def noticed(self, record: Mapping[str, Any]) -> list[str]:
        """Remarks on a record, while it trains."""
        return []

    @abstractmethod
    def draw_picture(self) -> None:
        """Write a picture of what the average does, in the leading process."""

    # Not every run has something to do here, so that the method is neither abstract nor full.
    def save_more(  # noqa: B027
        self, save: Callable[[Callable[[Checkpoint], object]], bool]
    ) -> None:
        """Write what is due besides checkpoints, each through ``save``."""

    @abstractmethod
    def snapshot(self) -> Checkpoint:
        """The checkpoint of the run as it stands."""

    @abstractmethod
    def take_over(self, found: Checkpoint, path: Path) -> None:
        """Continue from a checkpoint. Raises CheckpointError if its tensors do not fit."""

    @abstractmethod
    def export(self, chosen: Checkpoint) -> Path:
        """Write the result of the run from a checkpoint; returns its file."""

    @abstractmethod
    def description(self) -> DataDescription:
        """What the result needs to know of the data."""

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of an example, and that of its latent if latents are trained on."""
        return [tuple(self.dataset.shape)]

    # The run of an autoencoder has no codec to compare.
    def require_same(self, found: Checkpoint, path: Path) -> None:  # noqa: B027
        """Raise ValueError if the run continues a checkpoint with another codec."""

    def results(self) -> list[str]:
        """Lines about what came out, after ``export``."""
        return []

    @abstractmethod
    def remarks(self, device: torch.device) -> list[str]:
        """Remarks on the data as they were read, and on settings that have another effect."""


def parameters(module: nn.Module) -> int:
    """The number of parameters, frozen ones included."""
    return sum(p.numel() for p in module.parameters())


def split_in_words(plan: Updates) -> str:
    """How a batch is split between microbatches and processes."""
    size = plan.rank.size
    part = plan.batch // (plan.accumulate * size)
    processes = f"{size} process{'es' * (size > 1)}"
    return f"batch {plan.batch}: {plan.accumulate} x {part} on each of {processes}"


def remarks_on(plan: Updates, module: nn.Module, device: torch.device) -> list[str]:
    """Remarks on the settings of any training."""
    found = []
    if frozen := sum(p.numel() for p in module.parameters() if not p.requires_grad):
        found.append(f"{frozen:,} of {parameters(module):,} parameters are frozen")
    if is_slow(plan.precision, device):
        found.append(
            f"train.precision={plan.precision} is slower than float32 on this CPU, which has no "
            "instructions for it"
        )
    if plan.warmup_steps < plan.warmup:
        found.append(
            f"train.warmup={plan.warmup} is longer than the {plan.steps} steps of the run: "
            f"shortened to {plan.warmup_steps}"
        )
    return found


def with_absolute_paths(config: Settings) -> Settings:
    """The configuration independent of the current folder, and of the file of a network."""
    paths = {f"data.{name}": config.data.values.get(name) for name in ("path", "cache")}
    found = {
        key: str(Path(path).expanduser().resolve())
        for key, path in (paths | {"codec": getattr(config, "codec", None)}).items()
        if path is not None
    }
    network = getattr(config, "network", None)
    if network is not None and network.kind == "diffusers":
        found["network.model"] = inlined(network.model)
    return override(config, found) if found else config


def splits(train: Split, holdout: float, seed: int, most: int) -> tuple[Examples, Split | None]:
    """Examples to train on, and at most ``most`` of those held out; None without."""
    if holdout == 0:
        return train, None
    with reading("train.holdout"):
        split, held_out = views(train, holdout, seed)
    # Every update on the whole of a large set would cost more than it tells.
    return split, held_out.take(spread(len(held_out), most))
