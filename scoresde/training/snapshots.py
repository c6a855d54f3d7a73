"""Snapshots of power-function averages: a file each, and the average of any width from them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.training.averages import Profile, combination, power
from scoresde.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    Weights,
    export_weights,
    load_weights,
)

AVERAGES = "averages"
NAME = re.compile(r"step-(\d{8,})-width-(0\.\d+)\.safetensors")

WITHIN = 0.02
"""The distance of a profile from the one that is meant, relative to its norm, that is small."""
LAST = 64
"""Snapshots that are enough to tell: earlier ones add little, and all would take minutes."""
CANDIDATES = tuple(round(0.005 * k, 3) for k in range(1, 57))


class Snapshot(NamedTuple):
    """A stored average: the step, its width and its file."""

    step: int
    sigma_rel: float
    path: Path

    @property
    def profile(self) -> Profile:
        """What it is an average of."""
        return Profile(self.step, power(self.sigma_rel))


class Synthesis(NamedTuple):
    """Weights of a width, and the distance of their profile from it, relative to its norm."""

    weights: Weights
    error: float
    files: int


def snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, by step and width."""
    named = ((path, NAME.fullmatch(path.name)) for path in folder.glob("*.safetensors"))
    found = [Snapshot(int(m[1]), float(m[2]), path) for path, m in named if m is not None]
    return sorted(found)


def save_snapshots(folder: Path, checkpoint: Checkpoint) -> None:
    """Write every average of a checkpoint as exported weights of its own.

    Raises as ``export_weights`` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, average in checkpoint.averages.items():
        file = folder / f"step-{checkpoint.step:08d}-width-{name}.safetensors"
        export_weights(file, replace(checkpoint, ema=average))


def synthesised(
    found: Sequence[Snapshot], sigma_rel: float, averaged: Collection[str]
) -> Synthesis:
    """The average of a width at the last step there is a snapshot of.

        theta(sigma_rel) = sum_i x_i theta_i,   x = ``combination`` of the profiles

    ``averaged`` names the parameters; buffers are those of the last snapshot. Raises ValueError
    for a width out of range, CheckpointError for no snapshots and for damaged ones.
    """
    if not found:
        raise CheckpointError("no snapshots of averages; train with train.posthoc set")
    last = found[-1]
    target = Profile(last.step, power(sigma_rel))
    shares, error = combination([snapshot.profile for snapshot in found], target)
    weights = load_weights(last.path)
    total = {name: torch.zeros_like(weights.tensors[name]).double() for name in averaged}
    used = [(x, s) for x, s in zip(shares.tolist(), found, strict=True) if x != 0]
    for share, snapshot in used:
        _add(total, share, load_weights(snapshot.path).tensors, snapshot.path)
    tensors = {k: total[k].to(v) if k in total else v for k, v in weights.tensors.items()}
    return Synthesis(replace(weights, tensors=tensors), error, len(used))


def reachable(found: Sequence[Snapshot]) -> list[tuple[float, float]]:
    """Ranges of the widths whose profile the last snapshots come within ``WITHIN`` of.

    Every width in ``CANDIDATES`` between the ends of a range is.
    """
    profiles = [snapshot.profile for snapshot in found[-LAST:]]
    ranges: list[tuple[float, float]] = []
    open_range = False
    for sigma_rel in CANDIDATES if profiles else ():
        near = combination(profiles, Profile(found[-1].step, power(sigma_rel)))[1] <= WITHIN
        if near:
            low = ranges.pop()[0] if open_range else sigma_rel
            ranges.append((low, sigma_rel))
        open_range = near
    return ranges


def _add(total: dict[str, Tensor], share: float, tensors: dict[str, Tensor], source: Path) -> None:
    """total <- total + share tensors."""
    for name, value in total.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise CheckpointError(f"{source}: of another network ({name}); remove it")
        value.add_(tensors[name].double(), alpha=share)
