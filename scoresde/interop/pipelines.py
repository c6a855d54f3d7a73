"""Pipelines of diffusers as models: which classes are read, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from scoresde.interop.about import completed
from scoresde.interop.codecs import codec_of
from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.models import SIGNED, UNSIGNED, described, modelled, sides
from scoresde.interop.modules import module_of
from scoresde.interop.network import Classes, Labelled, Unconditional
from scoresde.interop.stable_diffusion import (
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from scoresde.parameterization import ScoreModel
from scoresde.training.safe_files import printable

Build = Callable[[Folder, torch.dtype, bool], ScoreModel]
"""The model of a folder, with ``data`` and ``codec``: weights in a dtype; whether the network
knows whole indices only."""


def unconditional(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """DDPM, DDIM, PNDM and LDM, and with pictures in [0, 1] the VE models of score_sde."""
    unet = module_of(folder, "unet", dtype)
    config, where = unet.config, folder.path / "unet" / "config.json"
    codec = None
    if folder.pipeline == "LDMPipeline":
        codec = codec_of(folder, "vae" if folder.part("vqvae") is None else "vqvae", dtype)
    if config["time_embedding_type"] == "learned":  # a table of whole indices
        nearest = True
        unet.time_proj.register_forward_pre_hook(_whole)
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


def _whole(module: nn.Module, given: tuple[torch.Tensor]) -> torch.Tensor:
    return given[0].long()


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
    times = Counter(each)
    return tuple(name if times[name] == 1 else f"{name} {k}" for k, name in enumerate(each))


PIPELINES: Mapping[str, Build] = {
    "DDPMPipeline": unconditional,
    "DDIMPipeline": unconditional,
    "PNDMPipeline": unconditional,
    "ScoreSdeVePipeline": unconditional,
    "LDMPipeline": unconditional,
    "DiTPipeline": dit,
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
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
