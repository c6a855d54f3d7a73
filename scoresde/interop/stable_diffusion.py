"""Stable Diffusion 1, 2, XL and 3 from folders of diffusers: text, network, process and codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.conditions import Condition
from scoresde.interop.codecs import codec_of
from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.models import described, modelled, sides
from scoresde.interop.modules import module_of
from scoresde.interop.network import output_of
from scoresde.interop.prompts import (
    T5_LENGTH,
    Frame,
    OnePrompt,
    ThreePrompts,
    TwoPrompts,
    reader,
)
from scoresde.parameterization import ScoreModel


class Attending(nn.Module):
    """A U-Net of diffusers that attends to text, all its padding included.

    That of Stable Diffusion XL is told ``embed`` too: a sentence as a whole, and six sizes.
    """

    wide_noise = True

    def __init__(self, module: nn.Module, embed: int = 0) -> None:
        super().__init__()
        self.module, self.embed = module, embed

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        embed: Tensor | None = None,
    ) -> Any:
        added = None
        if self.embed:
            assert embed is not None
            text, sizes = embed.split([self.embed - Frame.embed, Frame.embed], 1)
            added = {"text_embeds": text, "time_ids": sizes}
        return output_of(
            self.module(x, noise, encoder_hidden_states=context, added_cond_kwargs=added)
        )


class Together(nn.Module):
    """A transformer of diffusers on pictures and text together, as in Stable Diffusion 3."""

    wide_noise = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        context: Tensor,
        embed: Tensor,
        mask: Tensor | None = None,
    ) -> Any:
        return output_of(
            self.module(x, encoder_hidden_states=context, pooled_projections=embed, timestep=noise)
        )


def stable_diffusion(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """Stable Diffusion 1 and 2, arXiv 2112.10752. Raises FolderError."""
    net = Attending(_unet(folder, dtype))
    text = OnePrompt([reader(folder, "", dtype)])
    return _model(folder, net, "unet", {"text": text}, dtype, nearest)


def stable_diffusion_xl(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """Stable Diffusion XL, arXiv 2307.01952, without its refiner. Raises FolderError."""
    if folder.index.get("requires_aesthetics_score") or folder.part("text_encoder") is None:
        raise FolderError(
            f"{folder.path}: the refiner of Stable Diffusion XL, which works on pictures of the "
            "base model; give the folder of that"
        )
    readers = [reader(folder, number, dtype) for number in ("", "_2")]
    text = TwoPrompts(readers, silent=bool(folder.index.get("force_zeros_for_empty_prompt", True)))
    unet = _unet(folder, dtype, "text_time")
    sizes = Frame.embed * int(unet.config.addition_time_embed_dim)
    if (need := unet.config.projection_class_embeddings_input_dim) != text.embed + sizes:
        raise FolderError(
            f"{folder.path / 'unet' / 'config.json'}: projection_class_embeddings_input_dim is "
            f"{need}, and the text ({text.embed}) with six sizes ({sizes}) has "
            f"{text.embed + sizes}; it is told something else"
        )
    frame = Frame()
    net = Attending(unet, text.embed + frame.embed)
    model = _model(folder, net, "unet", {"text": text, "size": frame}, dtype, nearest)
    frame.size = model.data.shape[1:]
    return model


def stable_diffusion_3(folder: Folder, dtype: torch.dtype, nearest: bool) -> ScoreModel:
    """Stable Diffusion 3, arXiv 2403.03206, with T5 or without. Raises FolderError."""
    readers = [reader(folder, number, dtype) for number in ("", "_2")]
    if folder.part("text_encoder_3") is not None:
        readers.append(reader(folder, "_3", dtype, T5_LENGTH))
    _require_latents(folder, "transformer")
    module = module_of(folder, "transformer", dtype)
    text = ThreePrompts(readers, width=int(module.config.joint_attention_dim))
    return _model(folder, Together(module), "transformer", {"text": text}, dtype, nearest)


TOLD = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Fields of a U-Net that is told more than text."""


def _unet(folder: Folder, dtype: torch.dtype, addition: str | None = None) -> Any:
    """The U-Net, which must be told text and no more than ``addition``. Raises FolderError."""
    config = folder.json("unet/config.json")
    for field in TOLD:
        meant = addition if field == "addition_embed_type" else None
        if (found := config.get(field)) != meant:
            raise FolderError(
                f"{folder.path / 'unet' / 'config.json'}: {field} is {found!r}: this network "
                f"is told more than {folder.pipeline} says; not read"
            )
    _require_latents(folder, "unet")
    return module_of(folder, "unet", dtype)


def _require_latents(folder: Folder, part: str) -> None:
    """Raise FolderError for a network that sees more than the latents."""
    found = folder.json(f"{part}/config.json").get("in_channels")
    channels = int(folder.json("vae/config.json").get("latent_channels", 4))
    more = {
        2 * channels + 1: "to inpaint",
        2 * channels: "to edit pictures",
        channels + 1: "with depth",
    }
    if found in more:
        raise FolderError(
            f"{folder.path / part / 'config.json'}: {found} channels for latents of {channels}, a "
            f"network {more[found]}, which is not read; give the folder of the text-to-image model"
        )


def _model(
    folder: Folder,
    net: Attending | Together,
    part: str,
    conditions: Mapping[str, Condition],
    dtype: torch.dtype,
    nearest: bool,
) -> ScoreModel:
    config: Any = net.module.config
    codec = codec_of(folder, "vae", dtype)
    model = modelled(folder, net, config, part, nearest, conditions=conditions)
    where = folder.path / part / "config.json"
    model.data = described(folder, (config["in_channels"], *sides(config, where)), codec)
    model.codec = codec
    if folder.part("safety_checker") is not None:
        folder.notes.append(
            f"{folder.path}: pictures are not checked, its safety_checker is left out"
        )
    return model
