"""Snapshots of power-function averages, and synthesis of averages of other widths from them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

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
"""Largest error of a profile, relative to its norm, that counts as reached."""
LAST = 64
"""Latest snapshots that ``reachable`` uses; earlier ones add little and cost minutes."""
CANDIDATES = tuple(round(0.005 * k, 3) for k in range(1, 57))


class Snapshot(NamedTuple):
    """A stored average: its step, width and file."""

    step: int
    sigma_rel: float
    path: Path

    @property
    def profile(self) -> Profile:
        """The profile of the average."""
        return Profile(self.step, power(self.sigma_rel))


class Synthesis(NamedTuple):
    """Weights of a width, the relative error of their profile, and the number of files used."""

    weights: Weights
    error: float
    files: int


def snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, sorted by step and width."""
    named = ((path, NAME.fullmatch(path.name)) for path in folder.glob("*.safetensors"))
    found = [Snapshot(int(m[1]), float(m[2]), path) for path, m in named if m is not None]
    return sorted(found)


def save_snapshots(folder: Path, checkpoint: Checkpoint) -> None:
    """Export each average of a checkpoint to a file. Raises as ``export_weights`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, average in checkpoint.averages.items():
        file = folder / f"step-{checkpoint.step:08d}-width-{name}.safetensors"
        export_weights(file, replace(checkpoint, ema=average))


def synthesised(
    found: Sequence[Snapshot], sigma_rel: float, averaged: Collection[str]
) -> Synthesis:
    """Synthesise the average of a width at the step of the last snapshot.

        theta(sigma_rel) = sum_i x_i theta_i,   x = ``combination`` of the profiles

    ``averaged`` names the parameters; buffers come from the last snapshot. Raises ValueError for a
    width out of range, CheckpointError for no snapshots or damaged ones.
    """
    if not found:
        raise CheckpointError("no snapshots of averages; train with train.posthoc set")
    last = found[-1]
    target = Profile(last.step, power(sigma_rel))
    coefficients, error = combination([snapshot.profile for snapshot in found], target)
    weights = load_weights(last.path)
    total = {name: torch.zeros_like(weights.tensors[name]).double() for name in averaged}
    used = [(x, s) for x, s in zip(coefficients.tolist(), found, strict=True) if x != 0]
    for x, snapshot in used:
        tensors = load_weights(snapshot.path).tensors
        for name, value in total.items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise CheckpointError(f"{snapshot.path}: of another network ({name}); remove it")
            value.add_(tensors[name].double(), alpha=x)
    tensors = {k: total[k].to(v) if k in total else v for k, v in weights.tensors.items()}
    return Synthesis(replace(weights, tensors=tensors), error, len(used))


def reachable(found: Sequence[Snapshot]) -> list[tuple[float, float]]:
    """Ranges of widths, within ``CANDIDATES``, that the last snapshots reproduce to ``WITHIN``."""
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
