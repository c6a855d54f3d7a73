"""Grids optimised for a trained model, stored beside its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from scoresde.arguments import arguments
from scoresde.config import Section
from scoresde.convergence import draws_noise
from scoresde.denoiser import Denoiser
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, silent
from scoresde.registry import GRIDS, SELF_PACED, STEPS, build_step
from scoresde.registry.grid_files import StoredGrid, described, load_grid, save_grid
from scoresde.runs.said import require_said
from scoresde.samplers import Grid, Step, per_sample_noise, suited_grid
from scoresde.samplers.optimise import STANDARD, search_grid
from scoresde.training.checkpoint import fingerprint
from scoresde.training.snapshots import AVERAGES

DEFAULTS = {name: a.default for name, a in arguments(GRIDS["optimised"]).items()}


@dataclass(frozen=True)
class GridSearch:
    """Settings of a grid optimisation: the step and its name, the number of steps, the effort.

    The search spends ``budget`` network calls on paths from ``starts`` starting points. Raises
    ValueError for a step that draws noise.
    """

    name: str
    step: Step
    steps: int
    budget: int = DEFAULTS["budget"]
    starts: int = DEFAULTS["starts"]

    def __post_init__(self) -> None:
        if draws_noise(self.step):
            raise ValueError(
                f"grid optimised: {self.name} draws noise, and a grid is optimised on paths "
                "without; choose another grid, or a sampler such as dpmpp_2m"
            )


def configured_search(sample: Section, std: float | None = None) -> GridSearch | None:
    """The search that ``config.sample`` describes; None if its grid is not optimised.

    ``std`` is that of ``build_sampler``. Raises ValueError for a sampler that has no grid or draws
    noise.
    """
    if sample.grid.kind != "optimised":
        return None
    name = sample.sampler.kind
    if name not in STEPS or name in SELF_PACED:
        raise ValueError(f"grid optimised: {name} paces itself; leave the grid out")
    step = build_step(name, sample.sampler.values, sample.steps, std)
    return GridSearch(name, step, sample.steps, sample.grid.budget, sample.grid.starts)


def grid_folder(source: Path) -> Path:
    """Folder of stored grids: ``grids`` in the run folder, or beside a single checkpoint."""
    folder = source.parent
    return (folder.parent if folder.name in ("checkpoints", AVERAGES) else folder) / "grids"


def optimised_grid(
    model: ScoreModel,
    shape: tuple[int, ...],
    search: GridSearch,
    folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[Grid, str]:
    """Load the grid from the folder, or optimise and store it; also returns a line about it.

    The starting points use negative seeds, which no sample has.
    """
    path = None if folder is None else folder / _name(model, search)
    if path is not None:
        try:
            return load_grid(path), f"grid: {path}"
        except ValueError:  # missing or damaged
            pass
    noise = per_sample_noise([-1 - i for i in range(search.starts)])
    x = noise(torch.empty(search.starts, *shape, device=model.device))
    x = x * float(model.sde.prior().stddev)
    label = f"{search.name}: network calls to optimise the grid"
    with progress(search.budget, label) as advance:
        bases: tuple[Grid, ...] = suited_grid(search.step, model.std), *STANDARD[1:]
        found = search_grid(
            without_class(model, len(x)),
            search.step,
            search.steps,
            x,
            budget=search.budget,
            candidates=bases,
            advance=advance,
        )
    gain = math.exp(found.loss_before - found.loss)
    note = (
        f"grid: found in {found.calls} network calls, {gain:.2g} times the accuracy of the grid "
        f"arctan on {(search.starts + 1) // 2} other paths"
    )
    if path is None:
        lams = tuple(model.sde.lam(found.times).tolist())
        about = described(model.sde), described(search.step), "the grid found"
        return StoredGrid(tuple(found.times.tolist()), lams, *about), note
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = {
        "starts": search.starts,
        "budget": search.budget,
        "network_calls": found.calls,
        "log_error_before": found.loss_before,
        "log_error": found.loss,
    }
    save_grid(path, found.times, model.sde, search.step, notes)
    return load_grid(path), f"{note}: {path}"


def without_class(model: ScoreModel, n: int) -> Denoiser:
    """Unconditional denoiser; the n samples of a model that needs classes get them in turn.

    Raises ValueError for a model that never learned to do without a condition.
    """
    config, data = model.config, model.data
    require_said(model, remedy="; paths are drawn with nothing said")
    never = config is not None and config.conditional and not config.train.label_dropout
    if not (never or model.needs_label):
        return model.denoiser()
    if data is None or data.classes is None:
        raise ValueError("the network needs a class, and the model does not say which it has")
    return model.denoiser(label=torch.arange(n) % len(data.classes))


def _name(model: ScoreModel, search: GridSearch) -> str:
    """File name with a digest of everything the grid depends on."""
    about = {
        "process": described(model.sde),
        "step": described(search.step),
        "effort": f"{search.budget} {search.starts}",
    }
    weights = {name: w.cpu() for name, w in model.state_dict().items()}
    return f"{search.name}-{search.steps}-{fingerprint(about, weights)[:12]}.json"
