"""Modules of diffusers as networks to train: ``network: diffusers`` of a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Fraction, Natural, Range, check, nearest
from scoresde.interop.modules import library
from scoresde.interop.network import Classes, Unconditional, output_of

Several = Annotated[tuple[Count, ...], Range(length=1)]

SIZES: Mapping[str, Mapping[str, Any]] = {
    "UNet2DModel": {
        "width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,),
        "head_channels": None,
    },
    "UNet2DConditionModel": {
        "width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1, 2, 3),
        "head_channels": 64,
    },
    "DiTTransformer2DModel": {"width": 384, "blocks": 12, "head_channels": 64, "patch": 2},
}  # fmt: skip
"""The classes that are trained, with their sizes; no other class is built."""
MORE = {
    "class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim",
    "encoder_hid_dim", "dual_cross_attention", "class_embeddings_concat",
}  # fmt: skip
"""Fields of a module that is told other things, or in another way."""
NAMES = ("width", "multipliers", "blocks", "attention", "head_channels", "patch")


class Told(nn.Module):
    """UNet2DConditionModel, which is told a ``context`` (B, L, d), its ``mask``, and a class."""

    wide_noise = True

    def __init__(self, module: Any, classes: int | None) -> None:
        super().__init__()
        self.module, self.classes = module, classes
        self.context: int = module.config.cross_attention_dim

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        if self.classes is not None and label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        if context is None:
            context = x.new_zeros(len(x), 1, self.context)
        found = self.module(
            x,
            noise,
            encoder_hidden_states=context,
            encoder_attention_mask=mask,
            class_labels=label,
        )
        return output_of(found)


class One(nn.Module):
    """DiTTransformer2DModel without classes: it has one, number 0."""

    wide_noise = True

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, noise: Tensor) -> Any:
        label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return output_of(self.module(x, noise, class_labels=label))


def diffusers(
    channels: Count,
    *,
    model: str = "UNet2DModel",
    width: Count | None = None,
    multipliers: Several | None = None,
    blocks: Count | None = None,
    attention: tuple[Natural, ...] | None = None,
    head_channels: Count | None = None,
    patch: Count | None = None,
    dropout: Fraction = 0.0,
    classes: Count | None = None,
    outputs: Count | None = None,
    context: Count | None = None,
    image_size: tuple[int, ...] | None = None,
    indexed: bool = True,
) -> nn.Module:
    """A module of diffusers, so that the model can be written as a folder of diffusers.

    Needs parameterization.noise index or time. Raises ValueError for another class, for sizes that
    its class does not have, and for a config.json that does not fit the data.

    Args:
        channels: channels of the input.
        model: class of diffusers (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel), or
            the path of a config.json of one, which says all sizes.
        width: channels at full resolution, or of a token; null for 128, of a transformer 384.
        multipliers: channels at each resolution of a U-Net, in units of the width; null for
            1,2,2,2.
        blocks: residual blocks at each resolution, or transformer blocks; null for 2, of a
            transformer 12.
        attention: resolutions of a U-Net with attention; 0 is the full resolution; null for 1,
            with a context 1,2,3.
        head_channels: channels of each head of the attention; null for 64, of a UNet2DModel one
            head.
        patch: side of the square of pixels that becomes a token of a transformer; null for 2.
        dropout: probability of dropout in each block.
        classes: number of classes; None without labels.
        outputs: output channels; None for those of the input.
        context: width of a sequence to attend to, such as a text; None without.
        image_size: height and width of the pictures; None where the data are not known yet, to
            see whether a module can be built.
        indexed: the noise is told as a place in a table of levels, or as 1000 t.
    """
    check(diffusers, given := locals())
    if not indexed:
        raise ValueError(
            "network.kind=diffusers needs parameterization.noise=index (with sde.kind "
            "discrete_vp) or time (with linear_flow)"
        )
    config = configuration(model)
    kind = str(config.pop("_class_name"))
    if model.strip() != kind:
        if said := [n for n in (*NAMES, "dropout") if given[n] not in (None, 0)]:
            raise ValueError(f"{said[0]}: the config.json of model says it; leave it out")
    else:
        known = SIZES[kind]
        if stray := [n for n in NAMES if n not in known and given[n] is not None]:
            raise ValueError(f"{stray[0]}: {kind} has no such size; leave it out")
        sizes = {n: known[n] if given[n] is None else given[n] for n in known}
        config |= sized_config(kind, sizes, dropout)
    needed: dict[str, Any] = {"in_channels": channels, "out_channels": outputs or channels}
    height, wide = image_size or (32, 32)
    if kind == "DiTTransformer2DModel":
        if height != wide:
            raise ValueError(f"{kind} is for square pictures, got {height} x {wide}")
        needed |= {"sample_size": height, "num_embeds_ada_norm": classes or 1}
    else:
        config["sample_size"] = height if height == wide else [height, wide]
        needed["num_class_embeds"] = None if classes is None else classes + 1
    if kind == "UNet2DConditionModel" and context is not None:
        needed["cross_attention_dim"] = context
    elif context is not None:
        raise ValueError(f"{kind} takes no context; take model: UNet2DConditionModel")
    for key, value in needed.items():
        if image_size and config.get(key, value) != value and (config[key] or value):
            raise ValueError(
                f"model: config.json has {key}={config[key]}, and the data need {value}; change "
                "it there, or leave it out"
            )
        config[key] = value if image_size else config.get(key, value)
    module: Any = getattr(library("diffusers"), kind).from_config(config)
    if kind == "UNet2DConditionModel":
        return Told(module, classes)
    if kind == "UNet2DModel":
        return Unconditional(module) if classes is None else Classes(module, classes)
    for block in module.transformer_blocks:  # train.label_dropout drops labels
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return One(module) if classes is None else Classes(module, classes)


def configuration(model: str) -> dict[str, Any]:
    """The config.json that ``model`` is, the name of a class, a path or JSON itself.

    Raises ValueError for a class that is not trained, and for fields that it does not have.
    """
    if model in SIZES:
        return {"_class_name": model}
    try:
        text = model if model.lstrip().startswith("{") else Path(model).expanduser().read_text()
        config = json.loads(text)
        kind = config["_class_name"]
    except OSError:
        hint = nearest(model, SIZES)
        raise ValueError(
            f"model: {model}: neither a class that is trained nor a file; {hint}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"model: {model[:60]}: no config.json of diffusers ({error})") from None
    if not isinstance(kind, str) or kind not in SIZES:
        raise ValueError(
            f"model: {kind!r} of diffusers is not trained; {nearest(str(kind), SIZES)}"
        )
    known = signature(getattr(library("diffusers"), kind).__init__).parameters
    config = {k: v for k, v in config.items() if not k.startswith("_") or k == "_class_name"}
    if stray := [k for k in config if k not in known and k != "_class_name"]:
        raise ValueError(f"model: config.json has {stray[0]!r}, which {kind} has not; correct it")
    if told := [k for k in sorted(MORE & config.keys()) if config[k]]:
        raise ValueError(f"model: {told[0]}={config[told[0]]} is not trained; leave it out")
    if config.get("time_embedding_type", "positional") != "positional":
        raise ValueError("model: time_embedding_type has to be positional")
    return config


def inlined(model: str) -> str:
    """``model`` with the contents of a file in place of its path. Raises ValueError."""
    return model if model in SIZES else json.dumps(configuration(model))


def sized_config(kind: str, sizes: Mapping[str, Any], dropout: float) -> dict[str, Any]:
    """The fields of a class for sizes of ours. Raises ValueError for sizes that do not fit."""
    width, each = sizes["width"], sizes["head_channels"]
    if kind == "DiTTransformer2DModel":
        if width % each or width % 4:
            raise ValueError(f"head_channels={each} and 4 have to divide width={width}")
        return {
            "num_attention_heads": width // each,
            "attention_head_dim": each,
            "num_layers": sizes["blocks"],
            "patch_size": sizes["patch"],
            "dropout": dropout,
            "norm_eps": 1e-6,
        }
    widths = [width * m for m in sizes["multipliers"]]
    attends = [i in sizes["attention"] for i in range(len(widths))]
    if stray := [i for i in sizes["attention"] if i >= len(widths)]:
        raise ValueError(f"attention={stray[0]} is no resolution of {len(widths)}")
    word = "Attn" if kind == "UNet2DModel" else "CrossAttn"
    attended = {c for c, a in zip(widths, attends, strict=True) if a} | {widths[-1]}
    if each is not None and (bad := [c for c in sorted(attended) if c % each]):
        raise ValueError(f"head_channels={each} does not divide the {bad[0]} channels")
    heads: Any = each
    if kind == "UNet2DConditionModel":  # whose attention_head_dim are numbers of heads
        heads = [max(1, c // each) for c in widths]
    return {
        "block_out_channels": widths,
        "layers_per_block": sizes["blocks"],
        "down_block_types": [f"{word if a else ''}DownBlock2D" for a in attends],
        "up_block_types": [f"{word if a else ''}UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": heads,
        "norm_num_groups": math.gcd(32, width),
        "dropout": dropout,
    }
