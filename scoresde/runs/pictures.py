"""Writes the folder of ``scoresde sample``: pictures, arrays and a record of settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.data import Scaling
from scoresde.data.foreign import RECORD
from scoresde.evaluation import sample_grid, save_film, save_png, scatter
from scoresde.evaluation.figures import MOST_ROWS
from scoresde.parameterization import ScoreModel
from scoresde.runs import space
from scoresde.runs.draw import Drawn
from scoresde.runs.instrument import NetworkCall
from scoresde.runs.recipe import KEY, VIEWERS, as_json, depth, in_words, parameters
from scoresde.runs.results import Make, ResultFolder, save_arrays
from scoresde.training.checkpoint import DataDescription

NAMES = re.compile(r"\d{6,}\.png|grid\.png|scatter\.png|samples\.npz|trajectory\.(npz|gif)")
PREVIEWS = "previews"


def sample_folder(folder: Path) -> ResultFolder:
    """The folder of samples, whose files ``sample.json`` lists."""
    return ResultFolder(folder, RECORD, NAMES)


def write_samples(
    folder: Path,
    drawn: Drawn,
    data: DataDescription,
    settings: Mapping[str, Any],
    *,
    title: str = "samples",
    npz: bool = False,
    extra: Mapping[str, Make] | None = None,
) -> None:
    """Replace the samples in the folder: images (N, C, H, W) as pictures, others as arrays.

    ``settings`` are recorded in ``sample.json`` and in every picture; ``extra`` are further files.
    Raises OSError if a write fails.
    """
    labels = None if drawn.label is None else drawn.label.tolist()
    names, said = data.classes, [_conditions(each) for each in drawn.said or [{}] * len(drawn)]
    group, rows, title = _rows(drawn, names, said, title)
    batch = int(settings.get("batch", len(drawn)))
    files: dict[str, Make] = {}
    arrays = drawn.x.numpy()
    if is_image(drawn.x):
        images = pixels(drawn.x, data.scaling)
        arrays = images.permute(0, 2, 3, 1).numpy()
        where = [
            {"row": i % batch, "rows": min(batch, len(images) - i + i % batch)}
            for i in range(len(images))
        ]
        files = picture_files(drawn, data, settings, where)
        grid = sample_grid(images, group, rows, title)
        files["grid.png"] = partial(save_picture, pixels=grid, settings=settings)
    elif drawn.x.ndim == 2 and drawn.x.shape[1] == 2:
        files["scatter.png"] = partial(scatter, panels={title: drawn.x}, label=group, classes=rows)
    if npz or not is_image(drawn.x):
        # The names of guided-diffusion: arr_0 the samples, arr_1 the labels.
        both = [arrays] if drawn.label is None else [arrays, drawn.label.numpy()]
        files["samples.npz"] = lambda path: save_arrays(path, *both)
    record = dict(settings) | {"seeds": list(drawn.seeds), "labels": labels}
    record["classes"] = None if labels is None else names
    if said[0]:  # without pictures
        flat = [{k: v for k, v in each.items() if depth(v) < 2} for each in said]
        record["conditions"] = flat
    sample_folder(folder).write(files | dict(extra or {}), record)


def picture_files(
    drawn: Drawn,
    data: DataDescription,
    settings: Mapping[str, Any],
    more: Sequence[Mapping[str, Any]],
) -> dict[str, Make]:
    """A PNG of every sample with its settings: those of all, ``more`` of each, seed and class."""
    labels = None if drawn.label is None else drawn.label.tolist()
    names, said = data.classes, [_conditions(each) for each in drawn.said or [{}] * len(drawn)]
    files: dict[str, Make] = {}
    for i, image in enumerate(pixels(drawn.x, data.scaling)):
        own: dict[str, Any] = {"seed": drawn.seeds[i] if drawn.seeds else None}
        own["label"] = None if labels is None else labels[i]
        own["class"] = None if labels is None or names is None else names[labels[i]]
        own["conditions"] = said[i]
        picture = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        files[f"{i:06d}.png"] = partial(
            save_picture, pixels=picture.numpy(), settings=dict(more[i]) | dict(settings) | own
        )
    return files


def _conditions(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of a sample apart from its class, as JSON values."""
    return {name: as_json(value) for name, value in said.items() if name != "label"}


def _rows(
    drawn: Drawn, classes: Sequence[str] | None, said: Sequence[Mapping[str, Any]], title: str
) -> tuple[Tensor | None, Sequence[str] | None, str]:
    """What tells the samples apart, as places (N,) and names, and a title with what does not."""
    words = ["; ".join(map(in_words, each.values())) for each in said]
    different = list(dict.fromkeys(words))
    if len(different) == 1 and different[0]:
        return drawn.label, classes, f"{title}: {different[0]}"
    if drawn.label is not None or not 1 < len(different) <= MOST_ROWS:
        return drawn.label, classes, title
    return torch.tensor([different.index(each) for each in words]), different, title


def is_image(x: Tensor) -> bool:
    """True if examples (N, ...) are grey or colour images."""
    return x.ndim == 4 and x.shape[1] in (1, 3)


def pixels(x: Tensor, scaling: Scaling) -> Tensor:
    """Convert images in units of the data to uint8."""
    return scaling.to_uint8(scaling.encode(x))


def save_picture(path: Path, pixels: np.ndarray, settings: Mapping[str, Any]) -> None:
    """Write a PNG that carries its settings, for viewers and to draw it again (``recipe``)."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    height, width = pixels.shape[:2]
    info.add_text(VIEWERS, parameters(settings, width, height))
    info.add_text(KEY, json.dumps(settings))
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", pnginfo=info)


@dataclass
class Recorder:
    """Callback ``look`` of ``draw`` that records and previews the calls of the first batch.

    Args:
        data: description of the data, with their scaling and classes.
        label: class of every sample.
        folder: folder for previews.
        preview_every: network calls between two previews; None draws none.
        keep: store the calls for the film and the arrays.
        model: model whose latents are decoded in pictures; the arrays hold latents.
    """

    data: DataDescription
    label: Tensor | None = None
    folder: Path | None = None
    preview_every: int | None = None
    keep: bool = True
    model: ScoreModel | None = None
    calls: list[NetworkCall] = field(default_factory=list)

    def __call__(self, first: int, call: NetworkCall) -> None:
        """Preview and store a network call."""
        if first:
            return
        every = self.preview_every
        if self.folder is not None and every is not None and call.number % every == 0:
            self._save_preview(self.folder / PREVIEWS / f"call-{call.number:04d}.png", call)
        if self.keep:
            t = call.t.double().cpu()
            self.calls.append(NetworkCall(call.number, t, call.x.cpu(), call.x0.cpu()))

    def files(self) -> dict[str, Make]:
        """Arrays of all calls, t (N,), x and x0 (N, B, ...); for images also a film of x0."""
        if not self.calls:
            return {}
        t = torch.stack([call.t.flatten()[0] for call in self.calls]).numpy()
        x = torch.stack([call.x for call in self.calls]).numpy()
        x0 = torch.stack([call.x0 for call in self.calls]).numpy()
        files: dict[str, Make] = {"trajectory.npz": partial(save_arrays, t=t, x=x, x0=x0)}
        if is_image(self._shown(self.calls[0].x0[:1])):
            files["trajectory.gif"] = self.save_film
        return files

    def save_film(self, path: Path | str) -> None:
        """Write a film of the denoised images of the stored calls."""
        estimates = [self.data.scaling.to_uint8(self._shown(call.x0)) for call in self.calls]
        save_film(path, estimates, self._label(self.calls[0].x0), self.data.classes)

    def _shown(self, x0: Tensor) -> Tensor:
        """A state in model units of the data."""
        with torch.no_grad():
            return x0 if self.model is None else space.pictures(self.model, x0)

    def _label(self, x: Tensor) -> Tensor | None:
        return None if self.label is None else self.label[: len(x)]

    def _save_preview(self, target: Path, call: NetworkCall) -> None:
        """Write the denoised estimate of a call as a picture, atomically."""
        x0, title = self._shown(call.x0.cpu()), f"denoised estimate, network call {call.number}"
        make: Make
        if is_image(x0):
            images = self.data.scaling.to_uint8(x0)
            grid = sample_grid(images, self._label(x0), self.data.classes, title)
            make = partial(save_png, picture=grid)
        elif x0.ndim == 2 and x0.shape[1] == 2:
            panels = {title: self.data.scaling.decode(x0)}
            label, classes = self._label(x0), self.data.classes
            make = partial(scatter, panels=panels, label=label, classes=classes)
        else:
            return
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part.png")
            make(part)
            os.replace(part, target)
