"""Checkpoints of denoising-diffusion-pytorch (lucidrains), version 2: {step, model, ema, ...}.

The table of the chain and the objective are read from the buffers, the network from its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import betas as tables
from scoresde.interop.published.file import (
    Moved,
    Published,
    PublishedError,
    Said,
    numbered,
    picture,
    trained,
)

OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
BUFFERS = re.compile(
    r"betas|alphas_cumprod|alphas_cumprod_prev|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|"
    r"loss_weight|p2_loss_weight"
)


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    model = contents.get("model")
    return isinstance(model, Mapping) and "model.init_conv.weight" in model


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Published:
    """A checkpoint, with the averaged weights if it has them. Raises PublishedError."""
    plain, ema = dict(contents["model"]), contents.get("ema")
    if isinstance(ema, Mapping) and ema:
        prefix = "ema_model.model."
        inner = {k.removeprefix("ema_model."): v for k, v in ema.items() if k.startswith(prefix)}
        if inner.keys() != {k for k in plain if k.startswith("model.")}:
            raise PublishedError(f"{path}: its averages {prefix}* are not those of its model")
        plain |= inner
    whole = Moved(path, plain)
    buffers = {k: whole.take(k).double() for k in list(plain) if BUFFERS.fullmatch(k)}
    moved = Moved(path, {k.removeprefix("model."): v for k, v in whole.left.items()})
    if any(k.endswith(".norm.bias") or k == "downs.0.2.fn.norm.g" for k in moved.left):
        raise PublishedError(
            f"{path}: the network of a version before 2, with other norms; train or save it by "
            "version 2"
        )
    network = _network(moved)
    betas = buffers.get("betas")
    if betas is None or "alphas_cumprod" not in buffers:
        raise PublishedError(f"{path}: has no buffers betas and alphas_cumprod; give whole files")
    bar = (1 - betas).cumprod(0)
    if not torch.allclose(bar, buffers["alphas_cumprod"], rtol=1e-3, atol=1e-6):
        raise PublishedError(f"{path}: betas and alphas_cumprod differ; use an intact copy")
    objective = _objective(path, buffers, said)
    size = said.need("image_size", int, "side of the pictures")
    concat = network.pop("beside")
    said.complete()
    levels, channels = len(betas), network.pop("channels")
    tensors = _moved(moved, network["width"], channels, concat)
    return Published(
        {
            "sde": {"kind": "discrete_vp", "levels": levels, "table": _table(betas)},
            "parameterization": {
                "kind": "informed",
                "base": OBJECTIVES[objective],
                "told": {"kind": "index", "levels": levels},
                "scaled": False,
            },
            "network": network,
            "self_conditioning": concat,
            "train": trained(None, 0.0, levels if network["head"] == "variance" else None),
        },
        picture(path.stem, channels, size),
        tensors,
        int(contents.get("step", 0)),
    )


def _network(moved: Moved) -> dict[str, Any]:
    """Arguments of ``LucidUNet`` from the tensors."""
    vector, width = moved.shape("time_mlp.1.weight")
    stem, inputs = moved.shape("init_conv.weight")[:2]
    outputs = moved.shape("final_conv.weight")[0]
    places = numbered(moved.left, r"downs\.(\d+)\.")
    widths = []
    for i in places:
        name = f"downs.{i}.3.weight" if i == places[-1] else f"downs.{i}.3.1.weight"
        widths.append(moved.shape(name)[0])
    heads, *ends = moved.shape("mid_attn.mem_kv")[1:]
    full = [i for i in places if f"downs.{i}.2.to_out.weight" in moved.left]
    if vector != 4 * width or any(w % width for w in widths) or not widths:
        raise PublishedError(
            f"{moved.source}: features of the noise {width} and widths {widths} are not those of "
            "the U-Net of this program"
        )
    for i in places:
        linear = i not in full
        shape = (2, heads, ends[1], 4) if linear else (2, heads, 4, ends[1])
        if moved.shape(f"downs.{i}.2.mem_kv") != shape:
            raise PublishedError(
                f"{moved.source}: its attention has other heads at level {i} than in the middle, "
                "or not 4 memories; such a network is not read"
            )
    # Estimates of x0 come in as many channels; a variance goes out in as many.
    channels = next((c for c in (inputs, inputs // 2) if outputs in (c, 2 * c)), 0)
    if not channels:
        raise PublishedError(
            f"{moved.source}: its network takes {inputs} channels and returns {outputs}"
        )
    return {
        "kind": "lucidrains",
        "channels": channels,
        "beside": inputs == 2 * channels,
        "width": width,
        "multipliers": [w // width for w in widths],
        "stem": stem,
        "attention": full,
        "heads": heads,
        "head_channels": ends[1],
        "head": "variance" if outputs == 2 * channels else "value",
    }


def _objective(path: Path, buffers: Mapping[str, Tensor], said: Said) -> str:
    """The objective, by the weights of the loss: 1, snr or snr / (snr + 1), perhaps cut."""
    weight, bar = buffers.get("loss_weight"), buffers["alphas_cumprod"]
    snr = bar / (1 - bar)
    small = (snr < 0.9) & (snr > 1e-3)  # which no usual cut changes
    expected = {
        "pred_noise": torch.ones_like(snr),
        "pred_x0": snr,
        "pred_v": snr / (snr + 1),
    }
    found = [
        name
        for name, value in expected.items()
        if weight is not None and torch.allclose(weight[small], value[small], rtol=0.01)
    ]
    if len(found) == 1:
        said.same("objective", found[0])
        return found[0]
    objective = str(said.need("objective", str, "pred_noise, pred_x0 or pred_v, the default"))
    if objective and objective not in OBJECTIVES:
        raise PublishedError(f"{path}: objective={objective} is none of {', '.join(OBJECTIVES)}")
    return objective or "pred_v"


def _table(betas: Tensor) -> dict[str, Any]:
    """The table in float64 that the float32 buffer was made of, or the buffer."""
    n = len(betas)
    named: dict[str, tuple[tables.Betas, dict[str, Any]]] = {
        "sigmoid_alpha_bar": (tables.sigmoid_alpha_bar(), {}),
        "cosine": (tables.cosine(), {}),
    }
    if n > 20:
        ends = {"start": 0.1 / n, "end": 20 / n}
        named["linear"] = (tables.linear(**ends), ends)
    for kind, (table, given) in named.items():
        found = torch.tensor(table(n), dtype=torch.float64)
        if torch.allclose(found, betas, rtol=1e-5, atol=1e-8):
            return {"kind": kind, **given}
    return {"kind": "given", "betas": betas.tolist()}


def _moved(moved: Moved, width: int, channels: int, beside: bool) -> dict[str, Tensor]:
    """The state dict, whose names are theirs."""
    if beside:  # the estimate comes first there
        weight = moved.left["init_conv.weight"]
        moved.left["init_conv.weight"] = torch.cat([weight[:, channels:], weight[:, :channels]], 1)
    half = width // 2
    ramp = torch.arange(half) * -(torch.tensor(10000.0).double().log().item() / (half - 1))
    moved.found["time_mlp.0.frequencies"] = torch.exp(ramp)
    for name in list(moved.left):
        moved.found[name] = moved.take(name)
    return moved.finished()
