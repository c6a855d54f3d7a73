"""One picture of a table of drawings, each under a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.evaluation import captioned, image_grid, save_png, scatter
from scoresde.runs.pictures import is_image, pixels

LEAST, WHITE = 260, 255
"""Pixels of the width of a cell, and the background."""


class Cell(NamedTuple):
    """Samples (N, ...) in units of the data, or None, under a text."""

    text: str
    x: Tensor | None
    scaling: Scaling


def save_table(path: Path, cells: Sequence[Cell], columns: int) -> None:
    """Write the cells row by row as a PNG.

    Raises ValueError for other data than pictures and points in the plane.
    """
    drawn = [cell.x for cell in cells if cell.x is not None]
    if drawn and all(x.ndim == 2 and x.shape[1] == 2 for x in drawn):
        nothing = torch.full((1, 2), torch.nan)
        panels = {cell.text: nothing if cell.x is None else cell.x for cell in cells}
        scatter(path, panels, frame=torch.cat(drawn), columns=columns)
        return
    if not all(map(is_image, drawn)):
        raise ValueError("model: a table is drawn of pictures and of points in the plane")
    pictures = [captioned(_grid(cell), cell.text) for cell in cells]
    height, width = (max(picture.shape[k] for picture in pictures) for k in (0, 1))
    blank = np.full((height, width, 3), WHITE, np.uint8)
    pictures += [blank] * (-len(pictures) % columns)
    padded = [_padded(picture, height, width) for picture in pictures]
    rows = [np.concatenate(padded[k : k + columns], 1) for k in range(0, len(padded), columns)]
    save_png(path, np.concatenate(rows, 0))


def _grid(cell: Cell) -> np.ndarray:
    """The pictures of a cell in a square, wide enough for its text."""
    if cell.x is None:
        return np.full((1, LEAST, 3), WHITE, np.uint8)
    grid = image_grid(pixels(cell.x, cell.scaling), math.ceil(math.sqrt(len(cell.x))))
    return _padded(grid, grid.shape[0], max(LEAST, grid.shape[1]))


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w, _ = picture.shape
    room = ((0, height - h), (0, width - w), (0, 0))
    return np.pad(picture, room, constant_values=WHITE)
