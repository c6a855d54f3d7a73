"""Checkpoints of k-diffusion with the network ``image_v1`` and its configuration.

They are torch files {config, model, model_ema, ...} or slim .safetensors with the configuration as
metadata. Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.interop.published.file import (
    Moved,
    Published,
    PublishedError,
    Said,
    picture,
    swapped,
)


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    inner = contents.get("model_ema", contents.get("model", contents))
    return isinstance(inner, Mapping) and any(
        str(k).removeprefix("inner_model.") == "timestep_embed.weight" for k in inner
    )


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Published:
    """A checkpoint, with the averaged weights if it has them. Raises PublishedError."""
    config = contents.get("config")
    if "config" in metadata:
        config = json.loads(metadata["config"])
    if isinstance(config, Mapping):
        said.fill(config.get("model", {}))
    state = contents.get("model_ema", contents.get("model", contents))
    moved = Moved(path, {str(k).removeprefix("inner_model."): v for k, v in state.items()})
    kind = said.need("type", str, "model.type of its configuration, image_v1")
    if kind and kind != "image_v1":
        raise PublishedError(f"{path}: a network of type {kind}; only image_v1 is read")
    for name in ("unet_cond_dim", "cross_cond_dim", "mapping_cond_dim", "skip_stages"):
        said.only(name, (0, "0"), "such a network is not read")
    size = said.need("input_size", list, "sides of the pictures")
    channels = said.need("input_channels", int, "channels of the pictures")
    features = said.need("mapping_out", int, "numbers of the condition")
    depths = said.need("depths", list, "blocks at each resolution")
    widths = said.need("channels", list, "channels at each resolution")
    low = said.need("sigma_min", float, "least noise")
    high = said.need("sigma_max", float, "most noise")
    attends = said.flags("self_attn_depths", "which resolutions have attention")
    said.complete()
    patch = said.get("patch_size", 1)
    moved.drop(r"mapping_cond\.weight", r"u_net\..*\.kernel")  # zero, and known
    if said.get("has_variance", False):  # its last channel
        for part in ("weight", "bias"):
            moved.left[f"proj_out.{part}"] = moved.left[f"proj_out.{part}"][:-1]
    frequencies = 2 * math.pi * moved.take("timestep_embed.weight").flatten()
    moved.found["timestep_embed.frequencies"] = frequencies
    moved.layer("mapping.0", "mapping.0", swapped)  # cosines come first there
    for name in list(moved.left):
        moved.found[name] = moved.take(name)
    data = picture(path.stem, channels, tuple((size * 2)[:2]), std=said.get("sigma_data", 1.0))
    return Published(
        {
            "sde": {"kind": "edm", "t_min": low, "t_eps": low, "t_max": high},
            "parameterization": {"kind": "edm", "sigma_data": said.get("sigma_data", 1.0)},
            "network": {
                "kind": "image_v1",
                "features": features,
                "depths": depths,
                "widths": widths,
                "attention": [i for i, attend in enumerate(attends) if attend],
                "patch": patch,
            },
        },
        data,
        moved.finished(),
        int(contents.get("step", 0)) if "config" in contents else 0,
    )
