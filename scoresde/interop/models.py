"""What the models of all pipelines of diffusers are made of: process, network and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scoresde.data import Scaling
from scoresde.interop.codecs import Autoencoder
from scoresde.interop.folder import SCHEDULER, Folder, FolderError
from scoresde.interop.schedulers import Schedule, schedule_of
from scoresde.parameterization import ScoreModel
from scoresde.training.checkpoint import DataDescription

SIGNED = Scaling(256, -1 - 1 / 255, 1 + 1 / 255)
"""Pictures k / 127.5 - 1, the middles of the bins."""
UNSIGNED = Scaling(256, -1 / 510, 1 + 1 / 510)
"""Pictures k / 255."""


def scheduled(folder: Folder, nearest: bool) -> Schedule:
    """What the scheduler of a folder says. Raises FolderError."""
    config = folder.json(SCHEDULER)
    try:
        return schedule_of(config, nearest, str(folder.path / SCHEDULER))
    except ValueError as error:
        raise FolderError(str(error)) from error


def modelled(
    folder: Folder, net: nn.Module, config: Mapping[str, Any], part: str, nearest: bool, **own: Any
) -> ScoreModel:
    """The model of a network with the channels that its configuration says.

    Twice as many channels out as in are a learned variance. Raises FolderError. ``own`` are
    further arguments of ScoreModel.
    """
    schedule = scheduled(folder, nearest)
    few, many = config["in_channels"], config["out_channels"] or config["in_channels"]
    if many not in (few, 2 * few):
        raise FolderError(
            f"{folder.path / part / 'config.json'}: out_channels={many} of in_channels={few}; "
            "need as many, or twice as many with a learned variance"
        )
    if schedule.variance and many == few:
        raise FolderError(
            f"{folder.path / SCHEDULER}: variance_type says that the variance is learned, and "
            f"{part} has no channels for it"
        )
    try:
        model = ScoreModel(
            net, schedule.sde, schedule.parameterization, variance=many == 2 * few, **own
        )
    except ValueError as error:
        raise FolderError(f"{folder.path}: {error}") from error
    model.normalised = not schedule.distilled
    return model


def sides(config: Mapping[str, Any], where: Path) -> tuple[int, int]:
    """Height and width of what a network sees, from ``sample_size``. Raises FolderError."""
    size = config.get("sample_size")
    found = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(found) != 2 or not all(isinstance(n, int) and n > 0 for n in found):
        raise FolderError(f"{where}: sample_size is {size!r}; write the side of a picture there")
    return found


def described(
    folder: Folder,
    shape: tuple[int, int, int],
    codec: Autoencoder | None,
    classes: tuple[str, ...] | None = None,
    scaling: Scaling = SIGNED,
) -> DataDescription:
    """The pictures of a model whose network sees ``shape``. Raises FolderError."""
    channels, height, width = shape
    if codec is not None:
        if channels != codec.latent_channels:
            raise FolderError(
                f"{folder.path}: the network takes {channels} channels, and the latents have "
                f"{codec.latent_channels}; the parts are of different models"
            )
        shape = (codec.channels, height * codec.factor, width * codec.factor)
    return DataDescription(folder.path.resolve().name, shape, scaling, classes)
