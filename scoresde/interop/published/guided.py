"""Checkpoints of guided-diffusion and improved-diffusion: flat state dicts of their U-Net.

The shape of the network is read from its tensors. The flags that leave no trace in them have to
be said. Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233; Improved Denoising
Diffusion Probabilistic Models, arXiv 2102.09672.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.interop.published.file import (
    Moved,
    Published,
    PublishedError,
    Said,
    classes,
    matrix,
    numbered,
    picture,
    swapped,
    trained,
)

FIRST = "input_blocks.0.0.weight"


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    return FIRST in contents and "time_embed.0.weight" in contents


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Published:
    """A state dict as our ``adm``. Raises PublishedError."""
    moved = Moved(path, contents)
    network = shape_of(moved)
    network |= attention_of(moved, network, said)
    size = said.need("image_size", int, "side of the pictures")
    steps = said.need("diffusion_steps", int, "levels of the chain, often 1000 or 4000")
    table = said.need("noise_schedule", str, "linear or cosine")
    said.only("noise_schedule", ("linear", "cosine"), "only linear and cosine are known")
    for name in ("predict_xstart", "rescale_timesteps"):
        said.need(name, bool, "true or false")
    said.same("num_channels", network["embedding"])
    said.same("num_res_blocks", network["blocks"])
    said.same("class_cond", "label_emb.weight" in moved.left)
    said.same("use_scale_shift_norm", network["modulated"])
    said.same("learn_sigma", network["head"] == "variance")
    said.complete()
    channels = moved.left[FIRST].shape[1]
    count = len(moved.left["label_emb.weight"]) if "label_emb.weight" in moved.left else None
    scale = 1000 / steps if said.get("rescale_timesteps", False) else 1.0
    tensors = moved_unet(
        moved, network, heads_of(network), said.get("use_new_attention_order", False), scale
    )
    linear = {"kind": "linear", "start": 0.1 / steps, "end": 20 / steps}
    return Published(
        {
            "sde": {
                "kind": "discrete_vp",
                "levels": steps,
                "table": linear if table == "linear" else {"kind": "cosine"},
            },
            "parameterization": {
                "kind": "informed",
                "base": "x0" if said.get("predict_xstart", False) else "eps",
                "told": {"kind": "index", "levels": steps},
            },
            "network": network,
            "conditional": count is not None,
        }
        | {"train": trained(count, 0.0, steps if network["head"] == "variance" else None)},
        picture(path.stem, channels, size, classes=classes(count)),
        tensors,
    )


def shape_of(moved: Moved) -> dict[str, Any]:
    """The arguments of ``adm`` that the tensors decide."""
    left = moved.left

    stem, inputs = moved.shape(FIRST)[:2]
    vector, features = moved.shape("time_embed.0.weight")
    outputs = moved.shape("out.2.weight")[0]
    if outputs not in (inputs, 2 * inputs):
        raise PublishedError(
            f"{moved.source}: its network takes {inputs} channels and returns {outputs}, such as "
            "one that enlarges pictures; only models of whole pictures are read"
        )
    levels = levels_of(moved)
    widths = [
        moved.shape(f"output_blocks.{level[0]}.0.out_layers.3.weight")[0] for level in levels
    ]
    if any(width % stem for width in widths):
        raise PublishedError(
            f"{moved.source}: the widths {widths} of its levels are no multiples of the first, "
            f"{stem}; such a network has no twin here"
        )
    first = moved.shape("middle_block.0.emb_layers.1.weight")[0]
    return {
        "kind": "adm",
        "width": stem,
        "multipliers": [width // stem for width in reversed(widths)],
        "blocks": len(levels[0]) - 1,
        "attention": [
            len(levels) - 1 - i
            for i, level in reversed(list(enumerate(levels)))
            if f"output_blocks.{level[0]}.1.qkv.weight" in left
        ],
        "embedding": features,
        "vector": vector,
        "groups": 32,
        "modulated": first == 2 * widths[0],
        "strided": any(k.startswith("input_blocks.") and ".op." in k for k in left),
        "head": "variance" if outputs == 2 * inputs else "value",
    }


def levels_of(moved: Moved) -> list[list[int]]:
    """The places of the blocks of the decoder, by resolution, from the lowest."""
    levels: list[list[int]] = [[]]
    for i in numbered(moved.left, r"output_blocks\.(\d+)\."):
        levels[-1].append(i)
        if _up(moved.left, i):
            levels.append([])
    if not levels[-1]:
        raise PublishedError(f"{moved.source}: its decoder ends too soon; use an intact copy")
    return levels


def attention_of(moved: Moved, network: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The heads, which the tensors do not show."""
    channels = said.get("num_head_channels", -1)
    count = said.get("num_heads", 0) if channels == -1 else 0
    above = said.get("num_heads_upsample", -1)
    if channels == -1 and not count:
        said.need("num_heads", int, "heads of its attention, or num_head_channels")
    if above not in (-1, count) and channels == -1:
        raise PublishedError(
            f"{moved.source}: num_heads_upsample={above} differs from num_heads={count}; such a "
            "network has no twin here"
        )
    if "use_new_attention_order" not in said and count != 1:
        said.need("use_new_attention_order", bool, "false unless its program was told so")
    widest = network["width"] * network["multipliers"][-1]
    if channels != -1 and (channels < 1 or widest % channels):
        raise PublishedError(
            f"{moved.source}: num_head_channels={channels} does not divide {widest} channels"
        )
    return {"heads": count or None, "head_channels": channels if channels != -1 else None}


def heads_of(network: Mapping[str, Any]) -> Callable[[int], int]:
    """The number of heads at a number of channels."""
    each = network["head_channels"]
    return lambda c: c // each if each else network["heads"]


def moved_unet(
    moved: Moved,
    network: Mapping[str, Any],
    heads: Callable[[int], int],
    ordered: bool,
    scale: float,
) -> dict[str, Tensor]:
    """Our state dict; ``ordered`` if q, k and v are apart and not those of each head."""
    levels, blocks = len(network["multipliers"]), network["blocks"]

    def qkv(x: Tensor) -> Tensor:
        x = matrix(x)
        if ordered:
            return x
        n = heads(len(x) // 3)
        return torch.unflatten(x, 0, (n, 3, -1)).transpose(0, 1).flatten(0, 2)

    def residual(ours: str, theirs: str) -> None:
        conditioned = "modulation" if network["modulated"] else "shift"
        for mine, other in (
            ("norm", "in_layers.0"),
            ("inner", "in_layers.2"),
            (f"conditioned.{conditioned}", "emb_layers.1"),
            ("conditioned.norm", "out_layers.0"),
            ("outer", "out_layers.3"),
        ):
            moved.layer(f"{ours}.{mine}", f"{theirs}.{other}")
        if f"{theirs}.skip_connection.weight" in moved.left:
            moved.layer(f"{ours}.skip", f"{theirs}.skip_connection")

    def attention(ours: str, theirs: str) -> None:
        moved.layer(f"{ours}.norm", f"{theirs}.norm")
        moved.layer(f"{ours}.qkv", f"{theirs}.qkv", qkv)
        moved.layer(f"{ours}.project", f"{theirs}.proj_out", matrix)

    def cell(ours: str, theirs: str, attends: bool) -> None:
        residual(f"{ours}.residual", f"{theirs}.0")
        if attends:
            attention(f"{ours}.attention", f"{theirs}.1")

    pairs = network["embedding"] // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(pairs, dtype=torch.float32) / pairs)
    moved.found["condition.features.frequencies"] = scale * frequencies
    # Their features are cosines, then sines.
    moved.layer("condition.hidden", "time_embed.0", swapped)
    moved.layer("condition.out", "time_embed.2")
    if "label_emb.weight" in moved.left:
        # The last row is for no class, which these networks are never told.
        rows = moved.take("label_emb.weight")
        moved.found["condition.labels.weight"] = torch.cat(
            [rows, rows.new_zeros(1, rows.shape[1])]
        )
    moved.layer("stem", "input_blocks.0.0")
    place = 1
    for i in range(levels):
        for j in range(blocks):
            cell(f"encoder.{i}.{j}", f"input_blocks.{place}", i in network["attention"])
            place += 1
        if i < levels - 1:
            if network["strided"]:
                moved.layer(f"descents.{i}.block.0", f"input_blocks.{place}.0.op")
            else:
                residual(f"descents.{i}.block", f"input_blocks.{place}.0")
            place += 1
    residual("middle.0.residual", "middle_block.0")
    attention("middle.0.attention", "middle_block.1")
    residual("middle.1.residual", "middle_block.2")
    place = 0
    for i in range(levels):
        attends = levels - 1 - i in network["attention"]
        for j in range(blocks + 1):
            cell(f"decoder.{i}.{j}", f"output_blocks.{place}", attends)
            place += 1
        if i < levels - 1:
            above = f"output_blocks.{place - 1}.{1 + attends}"
            if network["strided"]:
                moved.layer(f"ascents.{i}.1", f"{above}.conv")
            else:
                residual(f"ascents.{i}", above)
    moved.layer("norm", "out.0")
    moved.layer("head", "out.2")
    return moved.finished()


def _up(left: Mapping[str, Any], i: int) -> bool:
    """Whether an output block ends with a layer that doubles the size."""
    ends = (f"output_blocks.{i}.{j}.{name}" for j in (1, 2) for name in ("conv", "in_layers.2"))
    return any(f"{end}.weight" in left for end in ends)
