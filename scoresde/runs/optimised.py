"""Grids optimised for a trained model, kept beside its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.config import ConfigError, Section
from scoresde.convergence import draws_noise
from scoresde.denoiser import Denoiser
from scoresde.registry.steps import SELF_PACED, STEPS, build_step
from scoresde.runs.load import LoadedRun
from scoresde.samplers import Grid, Step, per_sample_noise
from scoresde.registry.grid_files import described, load_grid, save_grid
from scoresde.samplers.optimise import search_grid
from scoresde.training.checkpoint import fingerprint
from scoresde.training.snapshots import AVERAGES


@dataclass(frozen=True)
class Wanted:
    """A grid to find: for a step of this name, in so many steps, with so much effort."""

    kind: str
    step: Step
    steps: int
    settings: Section


def wanted(sample: Section) -> Wanted | None:
    """What ``config.sample`` asks to optimise, None where it names another grid.

    Raises ConfigError for a sampler that has no grid, or draws noise.
    """
    if sample.grid.kind != "optimised":
        return None
    kind = sample.sampler.kind
    if kind not in STEPS or kind in SELF_PACED:
        raise ConfigError(f"sample.grid optimised: {kind} paces itself; leave the grid out")
    step = build_step(kind, sample.sampler.values, sample.steps)
    return checked(Wanted(kind, step, sample.steps, sample.grid))


def checked(want: Wanted) -> Wanted:
    """The same. Raises ConfigError for a step that draws noise."""
    if draws_noise(want.step):
        raise ConfigError(
            f"sample.grid optimised: {want.kind} draws noise, and a grid is optimised on paths "
            "without; choose another grid, or a sampler such as dpmpp_2m"
        )
    return want


def grid_file(loaded: LoadedRun, want: Wanted) -> Path:
    """Where the grid is kept: in ``grids`` of the run folder, or beside a lone checkpoint."""
    folder = loaded.source.parent
    run = folder.parent if folder.name in ("checkpoints", AVERAGES) else folder
    return run / "grids" / f"{want.kind}-{want.steps}-{_key(loaded, want)}.json"


def _key(loaded: LoadedRun, want: Wanted) -> str:
    """A digest of all that a grid depends on: the weights, the process, the step, the effort."""
    told = {
        "process": described(loaded.model.sde),
        "step": described(want.step),
        "settings": repr(want.settings),
    }
    weights = {name: w.cpu() for name, w in loaded.model.state_dict().items()}
    return fingerprint(told, weights)[:12]


def kept_grid(loaded: LoadedRun, want: Wanted) -> Grid | None:
    """The grid found earlier for these very weights and settings, if it can be read."""
    try:
        return load_grid(grid_file(loaded, want))
    except ValueError:
        return None


def find_grid(
    loaded: LoadedRun, want: Wanted, advance: Callable[[int], None] = lambda n: None
) -> tuple[Grid, dict[str, Any]]:
    """The grid found now and kept, with how it was found; ``advance`` is told every call.

    Its starts are those of negative seeds, which no sample has.
    """
    model, want = loaded.model, checked(want)
    weight = next(model.parameters())
    noise = per_sample_noise([-1 - i for i in range(want.settings.starts)])
    x = noise(torch.empty(want.settings.starts, *loaded.data.shape, device=weight.device))
    denoiser = _told(_unguided(loaded, len(x)), advance)
    found = search_grid(
        denoiser,
        want.step,
        want.steps,
        x * float(model.sde.prior().stddev),
        budget=want.settings.budget,
    )
    notes = {
        "checkpoint_step": loaded.step,
        "starts": want.settings.starts,
        "budget": want.settings.budget,
        "network_calls": found.calls,
        "log_error_before": found.loss_before,
        "log_error": found.loss,
    }
    path = grid_file(loaded, want)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, found.times, model.sde, want.step, notes)
    return load_grid(path), notes


def _unguided(loaded: LoadedRun, n: int) -> Denoiser:
    """Without classes where the model knows how, else over all of them in turn."""
    classes = loaded.data.classes if loaded.config.conditional else None
    if classes is None or loaded.config.train.label_dropout:
        return loaded.model.denoiser()
    device = loaded.model.device
    return loaded.model.denoiser(label=torch.arange(n, device=device) % len(classes))


def _told(denoiser: Denoiser, advance: Callable[[int], None]) -> Denoiser:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        advance(1)
        return denoiser(x, t)

    return replace(denoiser, predict=predict)
