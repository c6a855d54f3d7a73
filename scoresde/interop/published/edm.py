"""Networks of EDM: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM) in their preconditioners.

EDM stores Python programs (.pkl), which are never opened here; ``RECIPE`` converts them where EDM
is installed. Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364,
table 1 and appendix F.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
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
    classes,
    matrix,
    picture,
    swapped,
    trained,
)

RECIPE = "; ".join(
    (
        "import json, pathlib, pickle, safetensors.torch as st",
        'net = pickle.loads(pathlib.Path("network-snapshot.pkl").read_bytes())["ema"]',
        'init = json.dumps({"class": type(net).__name__, **net.init_kwargs})',
        "tensors = {k: v.contiguous() for k, v in net.state_dict().items()}",
        'st.save_file(tensors, "edm.safetensors", {"init": init})',
    )
)
"""Converts a .pkl, where EDM is installed."""

SONG = {
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "resample_filter": [1, 1],
}
DHARIWAL = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
FIXED = {"channel_mult_emb": 4, "decoder_type": "standard"}
"""Arguments of which our networks know one value only."""


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    return "model.map_layer0.weight" in contents


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Published:
    """A converted file. Raises PublishedError."""
    if "init" in metadata:
        said.fill(json.loads(metadata["init"]))
    kind = said.need("class", str, "EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond")
    size = said.need("img_resolution", int, "side of the pictures")
    channels = said.need("img_channels", int, "channels of the pictures")
    if kind not in PRECONDITIONERS and kind:
        raise PublishedError(
            f"{path}: unknown preconditioner {kind}; known are {', '.join(PRECONDITIONERS)}"
        )
    said.complete()
    song = f"model.enc.{size}x{size}_conv.weight" in contents and any(
        k.startswith(f"model.dec.{size}x{size}_aux") for k in contents
    )
    defaults = SONG if song else DHARIWAL
    known = {name: said.get(name, value) for name, value in defaults.items()}
    for name, value in FIXED.items():
        said.only(name, (value,), f"only {value} is known here")
    said.only("encoder_type", ("standard", "residual"), "only standard and residual are known")
    count = said.get("label_dim", 0)
    moved = Moved(path, contents)
    sections = PRECONDITIONERS[kind](said, moved)
    moved.drop(r"model\..*resample_filter", r"model\.map_augment\.weight", "u")
    network = _song(known) if song else _dhariwal(known)
    network["attention"] = [
        i for i in range(len(network["multipliers"])) if size >> i in known["attn_resolutions"]
    ]
    if "levels" in sections["sde"]:
        network["head"] = "variance"
    train = trained(count, said.get("label_dropout", 0.0), sections["sde"].get("levels"))
    tensors = _moved(moved, network, size, count, song)
    # Said to the code of EDM, no class adds nothing to the features.
    data = picture(path.stem, channels, size, classes=classes(count), std=0.5)
    sections |= {"network": network, "conditional": count > 0, "train": train}
    return Published(sections, data, tensors)


def _informed(base: Any, told: Mapping[str, Any], scaled: bool = True) -> dict[str, Any]:
    return {"kind": "informed", "base": base, "told": dict(told), "scaled": scaled}


def _edm(said: Said, moved: Moved) -> dict[str, Any]:
    low, high = said.get("sigma_min", 0.0), said.get("sigma_max", math.inf)
    return {
        # Its samplers keep within these.
        "sde": {
            "kind": "edm",
            "t_min": max(low, 0.002),
            "t_eps": max(low, 0.002),
            "t_max": min(high, 80.0),
        },
        "parameterization": {"kind": "edm", "sigma_data": said.get("sigma_data", 0.5)},
    }


def _vp(said: Said, moved: Moved) -> dict[str, Any]:
    low, rise = said.get("beta_min", 0.1), said.get("beta_d", 19.9)
    told = {"kind": "time", "factor": said.get("M", 1000) - 1}
    sde = {"kind": "vp", "beta_min": low, "beta_max": low + rise}
    sde["t_min"] = said.get("epsilon_t", 1e-5)
    return {"sde": sde, "parameterization": _informed("eps", told)}


def _ve(said: Said, moved: Moved) -> dict[str, Any]:
    told = {"kind": "level", "scale": 1.0, "shift": -math.log(2)}
    low, high = said.get("sigma_min", 0.02), said.get("sigma_max", 100.0)
    return {
        "sde": {"kind": "ve", "sigma_min": low, "sigma_max": high},
        "parameterization": _informed("score", told, scaled=False),
    }


def _iddpm(said: Said, moved: Moved) -> dict[str, Any]:
    levels, largest = said.get("M", 1000), 1 - said.get("C_1", 0.001)
    betas = tables.cosine(said.get("C_2", 0.008), largest)(levels)
    u = moved.take("u").double()
    found = (1 / torch.tensor(betas).neg().add(1).double().cumprod(0) - 1).sqrt()
    if u.shape != (levels + 1,) or not torch.allclose(u[:-1].flip(0), found, rtol=1e-3, atol=1e-6):
        raise PublishedError(
            f"{moved.source}: its levels u are not those of M, C_1 and C_2; use an intact copy"
        )
    return {
        "sde": {
            "kind": "discrete_vp",
            "levels": levels,
            "table": {
                "kind": "cosine", "s": said.get("C_2", 0.008), "largest": largest
            },
        },
        "parameterization": _informed(
            "eps", {"kind": "index", "levels": levels, "nearest": True}
        ),
    }  # fmt: skip


PRECONDITIONERS: Mapping[str, Callable[[Said, Moved], dict[str, Any]]] = {
    "EDMPrecond": _edm,
    "VPPrecond": _vp,
    "VEPrecond": _ve,
    "iDDPMPrecond": _iddpm,
}
"""Process and parameterisation by the class around the network."""


def _song(known: Mapping[str, Any]) -> dict[str, Any]:
    residual = known["encoder_type"] == "residual"
    taps = list(known["resample_filter"])
    if not residual and taps != [1, 1]:
        raise PublishedError(
            f"resample_filter={taps} with a standard encoder: such a network has no twin here"
        )
    return {
        "kind": "ncsnpp" if residual else "ddpmpp",
        "width": known["model_channels"],
        "multipliers": list(known["channel_mult"]),
        "blocks": known["num_blocks"],
        "embedding": known["model_channels"] * known["channel_mult_noise"],
        "fourier": known["embedding_type"] == "fourier",
    } | ({"taps": taps} if residual else {})


def _dhariwal(known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "adm",
        "width": known["model_channels"],
        "multipliers": list(known["channel_mult"]),
        "blocks": known["num_blocks"],
        "head_channels": 64,
    }


def _moved(
    moved: Moved, network: Mapping[str, Any], size: int, count: int, song: bool
) -> dict[str, Tensor]:
    """Our state dict."""
    widths = [network["width"] * m for m in network["multipliers"]]
    features = network["embedding"] if song else network["width"]

    def qkv(x: Tensor) -> Tensor:
        # Theirs is ordered by head, channel and, innermost, q, k, v.
        x = matrix(x)
        heads = 1 if song else len(x) // 192
        return torch.unflatten(x, 0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)

    def block(ours: str, theirs: str, attends: str | None = None) -> None:
        conditioned = "shift" if song else "modulation"
        for mine, other in (
            ("norm", "norm0"),
            ("inner", "conv0"),
            (f"conditioned.{conditioned}", "affine"),
            ("conditioned.norm", "norm1"),
            ("outer", "conv1"),
        ):
            moved.layer(f"{ours}.{mine}", f"model.{theirs}.{other}")
        if f"model.{theirs}.skip.weight" in moved.left:
            moved.layer(f"{ours}.skip", f"model.{theirs}.skip")
        if attends is not None:
            moved.layer(f"{attends}.norm", f"model.{theirs}.norm2")
            moved.layer(f"{attends}.qkv", f"model.{theirs}.qkv", qkv)
            moved.layer(f"{attends}.project", f"model.{theirs}.proj", matrix)

    def cell(ours: str, theirs: str, attends: bool) -> None:
        block(f"{ours}.residual", theirs, f"{ours}.attention" if attends else None)

    if network.get("fourier"):
        frequencies = 2 * math.pi * moved.take("model.map_noise.freqs")
    else:
        n = features // 2
        ramp = torch.arange(n, dtype=torch.float32) / (n - 1 if song else n)
        frequencies = (1 / 10000) ** ramp
    moved.found["condition.features.frequencies"] = frequencies
    # SongUNet exchanges its cosines and sines, DhariwalUNet does not.
    order = (lambda x: x) if song else swapped
    moved.layer("condition.hidden", "model.map_layer0", order)
    moved.layer("condition.out", "model.map_layer1")
    if count:
        rows = moved.take("model.map_label.weight").T
        if song:
            bias = moved.take("model.map_label.bias")
            rows = torch.cat([rows * math.sqrt(count) + bias, bias[None]])
        else:
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        moved.found["condition.labels.weight"] = rows.contiguous()
    for i in range(len(widths)):
        at = f"{size >> i}x{size >> i}"
        if i == 0:
            moved.layer("stem", f"model.enc.{at}_conv")
        else:
            block(f"descents.{i - 1}.block", f"enc.{at}_down")
            if network["kind"] == "ncsnpp":
                moved.layer(f"descents.{i - 1}.shrink.conv", f"model.enc.{at}_aux_residual")
        for j in range(network["blocks"]):
            cell(f"encoder.{i}.{j}", f"enc.{at}_block{j}", i in network["attention"])
    for k, i in enumerate(reversed(range(len(widths)))):
        at = f"{size >> i}x{size >> i}"
        if k == 0:
            cell("middle.0", f"dec.{at}_in0", True)
            cell("middle.1", f"dec.{at}_in1", False)
        else:
            block(f"ascents.{k - 1}", f"dec.{at}_up")
        for j in range(network["blocks"] + 1):
            once = not song or j == network["blocks"]
            cell(f"decoder.{k}.{j}", f"dec.{at}_block{j}", i in network["attention"] and once)
    moved.layer("norm", f"model.dec.{size}x{size}_aux_norm" if song else "model.out_norm")
    moved.layer("head", f"model.dec.{size}x{size}_aux_conv" if song else "model.out_conv")
    return moved.finished()
