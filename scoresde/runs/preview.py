"""Pictures of a model during training, drawn by a cheap sampler from fixed noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.data import Dataset
from scoresde.evaluation import sample_grid, save_png, scatter
from scoresde.parameterization import ScoreModel
from scoresde.samplers import Heun, per_sample_noise, sample, starting_noise
from scoresde.samplers.grids import karras

STEPS = 12
ROWS, COLUMNS, POINTS = 8, 8, 1000


def save_preview(
    path: Path | None, model: ScoreModel, dataset: Dataset, classes: int | None
) -> bool:
    """Write samples of a model as a picture: a grid with one row per class, or a scatter plot.

    Returns False for data of other shapes, which have no picture. Without a path, samples are
    drawn but not written; a sharded model needs all processes to draw.
    """
    shape = tuple(dataset.shape)
    if shape == (2,):
        label = None if classes is None else torch.arange(POINTS) % classes
        x = dataset.scaling.decode(draw(model, POINTS, shape, label))
        points = {"data": dataset.train.x[:POINTS], "samples": x}
        _into(path, lambda file: scatter(file, points))
        return True
    if len(shape) == 3 and shape[0] in (1, 3):
        rows = ROWS if classes is None else min(classes, 10)
        label = None if classes is None else torch.arange(rows).repeat_interleave(COLUMNS)
        images = dataset.scaling.to_uint8(draw(model, rows * COLUMNS, shape, label))
        grid = sample_grid(images, label, dataset.classes, f"{dataset.name}: samples")
        _into(path, lambda file: save_png(file, grid))
        return True
    return False


def draw(model: ScoreModel, n: int, shape: tuple[int, ...], label: Tensor | None) -> Tensor:
    """Draw samples (n, *shape) on the host; each depends on its index and label alone."""
    device = model.device
    noise = per_sample_noise(range(n))
    x = starting_noise(model.sde, torch.empty(n, *shape, device=device), noise)
    condition = {} if label is None else {"label": label.to(device)}
    ts = karras()(model.sde, STEPS)
    return sample(model.denoiser(**condition), x, ts, Heun(), noise).cpu()


def _into(path: Path | None, write: Callable[[Path], None]) -> None:
    if path is None:
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
