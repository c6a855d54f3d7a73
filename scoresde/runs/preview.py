"""Pictures of a model during training, drawn by a cheap sampler from fixed noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.data import Captions, Dataset
from scoresde.evaluation import sample_grid, save_png, scatter
from scoresde.parameterization import ScoreModel
from scoresde.runs.space import pictures, state_shape
from scoresde.samplers import Heun, per_sample_noise, sample, starting_noise
from scoresde.samplers.grids import karras
from scoresde.training.said import columns_read, said, words_of

STEPS = 12
ROWS, COLUMNS, POINTS = 8, 8, 1000


def save_preview(
    path: Path | None, model: ScoreModel, dataset: Dataset, classes: int | None
) -> bool:
    """Write samples of a model as a picture: a grid with one row per class, or a scatter plot.

    A model with conditions is told those of the first test examples, a row of samples for each.
    Returns False for data of other shapes, which have no picture. Without a path, samples are
    drawn but not written; a sharded model needs all processes to draw.
    """
    shape = tuple(dataset.shape)
    state = state_shape(model, shape)
    if shape == (2,):
        label = None if classes is None else torch.arange(POINTS) % classes
        told = _told(model, dataset, torch.arange(POINTS), label)
        x = dataset.scaling.decode(draw(model, POINTS, shape, told))
        points = {"data": dataset.train.x[:POINTS], "samples": x}
        into(path, lambda file: scatter(file, points))
        return True
    if len(shape) == 3 and shape[0] in (1, 3):
        rows = ROWS if classes is None else min(classes, 10)
        row = torch.arange(rows).repeat_interleave(COLUMNS)
        label, names = (None, None) if classes is None else (row, dataset.classes)
        told = _told(model, dataset, row, label)
        states = draw(model, len(row), state, told)
        with torch.no_grad():
            images = dataset.scaling.to_uint8(pictures(model, states, shape))
        if label is None and (sentences := _sentences(model, dataset, rows)):
            label, names = row, tuple(sentences)
        grid = sample_grid(images, label, names, f"{dataset.name}: samples")
        into(path, lambda file: save_png(file, grid))
        return True
    return False


def draw(
    model: ScoreModel, n: int, shape: tuple[int, ...], told: dict[str, Tensor | None]
) -> Tensor:
    """Draw samples (n, *shape) on the host; each depends on its index and what is told alone."""
    device = model.device
    noise = per_sample_noise(range(n))
    x = starting_noise(model.sde, torch.empty(n, *shape, device=device), noise)
    ts = karras()(model.sde, STEPS)
    return sample(model.bound(told), x, ts, Heun(), noise).cpu()


def _told(
    model: ScoreModel, dataset: Dataset, row: Tensor, label: Tensor | None
) -> dict[str, Tensor | None]:
    """The class of each sample, and what the test examples in these rows say of it."""
    told: dict[str, Tensor | None] = {} if label is None else {"label": label}
    if model.conditions:
        some = dataset.test.take(row % len(dataset.test))
        x0 = dataset.scaling.encode(some.x)
        some = columns_read(some, model.conditions, words_of(dataset))
        told |= said(some, x0, model.conditions)
    return told


def _sentences(model: ScoreModel, dataset: Dataset, rows: int) -> list[str]:
    """The first sentences of the test examples; empty if the model reads none."""
    test = dataset.test
    for name, condition in model.conditions.items():
        if condition.sentences and isinstance(column := test.conditions[name], Captions):
            return column.take(torch.arange(rows) % len(test)).pick()
    return []


def into(path: Path | None, write: Callable[[Path], None]) -> None:
    """Write a picture, whose folder is made; none without a path."""
    if path is None:
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
