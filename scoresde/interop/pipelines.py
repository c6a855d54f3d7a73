"""Pipelines of diffusers as models: which classes are read, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.data import Scaling
from scoresde.interop.about import completed
from scoresde.interop.codecs import Autoencoder, codec_of
from scoresde.interop.folder import SCHEDULER, Folder, FolderError
from scoresde.interop.modules import module_of
from scoresde.interop.network import Classes, Labelled, Unconditional
from scoresde.interop.schedulers import Schedule, schedule_of
from scoresde.parameterization import ScoreModel
from scoresde.training.checkpoint import DataDescription
from scoresde.training.safe_files import printable

SIGNED = Scaling(256, -1 - 1 / 255, 1 + 1 / 255)
"""Pictures k / 127.5 - 1, the middles of the bins."""
UNSIGNED = Scaling(256, -1 / 510, 1 + 1 / 510)
"""Pictures k / 255."""

Build = Callable[[Folder, torch.dtype, bool], ScoreModel]
"""The model of a folder, with ``data`` and ``codec``: weights in a dtype; whether the network
knows whole indices only."""


def scheduled(folder: Folder, nearest: bool) -> Schedule:
    """What the scheduler of a folder says. Raises FolderError."""
    try:
        return schedule_of(folder.json(SCHEDULER), nearest)
    except FolderError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{folder.path / SCHEDULER}: {error}") from error


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
        return ScoreModel(
            net, schedule.sde, schedule.parameterization, variance=many == 2 * few, **own
        )
    except ValueError as error:
        raise FolderError(f"{folder.path}: {error}") from error


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


def unconditional(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """DDPM, DDIM, PNDM and LDM, and with pictures in [0, 1] the VE models of score_sde."""
    unet = module_of(folder, "unet", dtype)
    config, where = unet.config, folder.path / "unet" / "config.json"
    codec = None
    if folder.pipeline == "LDMPipeline":
        codec = codec_of(folder, "vae" if folder.part("vqvae") is None else "vqvae", dtype)
    net: nn.Module = Unconditional(unet)
    classes = None
    if unet.class_embedding is not None:
        if config["class_embed_type"] == "identity":
            raise FolderError(f"{where}: class_embed_type identity takes vectors; not read")
        if config["num_class_embeds"] is not None and config["class_embed_type"] is None:
            classes = tuple(map(str, range(config["num_class_embeds"])))
        net = Labelled(unet)
    model = modelled(folder, net, config, "unet", nearest)
    scaling = UNSIGNED if folder.pipeline == "ScoreSdeVePipeline" else SIGNED
    shape = (config["in_channels"], *sides(config, where))
    model.data = described(folder, shape, codec, classes, scaling)
    model.codec = codec
    return model


def dit(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """DiT: classes of latents, or of pixels. The class after the last is none."""
    transformer = module_of(folder, "transformer", dtype)
    pixels = folder.index.get("vae") == [None, None]  # as an export of pixels says
    codec = None if pixels else codec_of(folder, "vae", dtype)
    config, where = transformer.config, folder.path / "transformer" / "config.json"
    n = config["num_embeds_ada_norm"]
    model = modelled(folder, Classes(transformer, n), config, "transformer", nearest)
    shape = (config["in_channels"], *sides(config, where))
    model.data = described(folder, shape, codec, names(folder.index.get("id2label"), n))
    model.codec = codec
    return model


def names(words: Any, n: int) -> tuple[str, ...]:
    """The names of n classes: the first of the words that ``id2label`` has of each.

    A class without words is called by its number, and of those with one name each has its number
    behind it.
    """
    known = words if isinstance(words, Mapping) else {}
    each = [str(known.get(str(k), k)).split(",")[0].strip() or str(k) for k in range(n)]
    return tuple(name if each.count(name) == 1 else f"{name} {k}" for k, name in enumerate(each))


PIPELINES: Mapping[str, Build] = {
    "DDPMPipeline": unconditional,
    "DDIMPipeline": unconditional,
    "PNDMPipeline": unconditional,
    "ScoreSdeVePipeline": unconditional,
    "LDMPipeline": unconditional,
    "DiTPipeline": dit,
}
"""What builds the model of a folder, by the class of its pipeline."""


def read_folder(
    folder: Folder, dtype: torch.dtype = torch.float32, nearest: bool = False
) -> ScoreModel:
    """The model of a folder, in evaluation mode and without gradients. Raises FolderError."""
    if (build := PIPELINES.get(folder.pipeline)) is None:
        raise FolderError(
            f"{folder.path}: {printable(folder.pipeline)} is not read; these pipelines are: "
            f"{', '.join(PIPELINES)}"
        )
    return completed(folder, build(folder, dtype, nearest)).eval().requires_grad_(False)
