"""Checkpoints of score_sde_pytorch: NCSN++ and DDPM++, with the averaged weights as a list.

The shape of the network is read from the order of its modules. What its configuration decides
without a trace in the weights has to be said. Data of VE in [0, 1] are doubled, u = 2 x - 1, as
the network does itself: sigma then doubles too, and the network is told ln(sigma / 2).
Score-Based Generative Modeling through SDEs, arXiv 2011.13456, appendices C, F and H.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.interop.published.file import (
    Moved,
    Published,
    PublishedError,
    Said,
    picture,
)

PREFIX = re.compile(r"^(module\.)?all_modules\.(\d+)\.(.+)$")
KINDS = {"vpsde": "vp", "subvpsde": "sub_vp", "vesde": "ve"}


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    model = contents.get("model")
    return isinstance(model, Mapping) and any(PREFIX.match(str(k)) for k in model)


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Published:
    """A checkpoint {optimizer, model, ema, step}. Raises PublishedError."""
    tensors = averaged(path, contents)
    sigmas = tensors.pop("sigmas", None)
    modules: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = PREFIX.match(f"all_modules.{name}")
        if match is None:
            raise PublishedError(f"{path}: has a tensor {name}, which is in no module")
        modules.setdefault(int(match[2]), {})[match[3]] = value
    found = {n: _kind(parts) for n, parts in sorted(modules.items())}
    if odd := [n for n, kind in found.items() if kind == "?"]:
        raise PublishedError(
            f"{path}: module {odd[0]} ({', '.join(sorted(modules[odd[0]])[:3])}) is not one of "
            "NCSN++ with BigGAN blocks and a residual or no picture beside; only these are read"
        )
    kinds = "".join(found.values())
    network = _network(path, kinds, modules, found)
    sde = said.need("sde", str, f"one of {', '.join(KINDS)}").lower()
    size = said.need("image_size", int, "side of the pictures")
    for name, about in (("continuous", "training.continuous"), ("centered", "data.centered")):
        said.need(name, bool, about)
    said.need("scale_by_sigma", bool, "model.scale_by_sigma")
    said.need("fir", bool, "model.fir")
    if sde and sde not in KINDS:
        raise PublishedError(f"{path}: sde={sde} is unknown; it is one of {', '.join(KINDS)}")
    if sde in ("vpsde", "subvpsde"):
        low = said.need("beta_min", float, "model.beta_min")
        high = said.need("beta_max", float, "model.beta_max")
    said.complete()
    for name, allowed in ALLOWED.items():
        said.only(name, allowed, f"such a network has no twin here; only {allowed[0]} is read")
    said.same("nf", network["width"])
    said.same("num_res_blocks", network["blocks"])
    pictured = network["kind"] == "ncsnpp"
    if said.get("fir", False) != pictured:
        raise PublishedError(
            f"{path}: fir={not pictured} with "
            f"{'a' if pictured else 'no'} picture beside: such a network has no twin here"
        )
    if pictured:
        network["taps"] = [float(tap) for tap in said.get("fir_kernel", (1, 3, 3, 1))]
    scaled, centered = said.get("scale_by_sigma", False), said.get("centered", True)
    if (sde == "vesde") != scaled or not said.get("continuous", True):
        raise PublishedError(
            f"{path}: a model of {sde} with continuous={said.get('continuous', True)} and "
            f"scale_by_sigma={scaled} is not read; only continuous ones are, and those of vesde "
            "scaled by sigma"
        )
    if sde == "vesde":
        if sigmas is None or network["fourier"] is False:
            raise PublishedError(
                f"{path}: a model of vesde that is not told the logarithm of sigma (embedding_type"
                ": fourier) is not read"
            )
        factor = 1 if centered else 2
        process = {"sigma_min": float(sigmas[-1]) * factor, "sigma_max": float(sigmas[0]) * factor}
        told = {"kind": "level", "scale": 1.0, "shift": -math.log(factor)}
        parameterization = {"kind": "informed", "base": "score", "told": told, "scaled": False}
    else:
        if network["fourier"] or not centered:
            raise PublishedError(
                f"{path}: a model of {sde} with embedding_type fourier or centered=false is not "
                "read; there is none among the published ones"
            )
        process = {"beta_min": low, "beta_max": high}
        told = {"kind": "time", "factor": 999.0}
        parameterization = {"kind": "informed", "base": "eps", "told": told, "scaled": False}
    # VP has sqrt(alpha^2 + sigma^2) = 1, sub-VP has not, and the networks see x itself.
    channels = modules[next(n for n, k in found.items() if k == "C")]["weight"].shape[1]
    return Published(
        {
            "sde": {"kind": KINDS[sde], **process},
            "parameterization": parameterization,
            "network": network,
        },
        picture(path.stem, channels, size),
        _moved(path, modules, found, network),
        int(contents.get("step", 0)),
    )


ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "name": ("ncsnpp",),
    "resblock_type": ("biggan",),
    "progressive": ("none", "None"),
    "skip_rescale": (True, "true", "True"),
    "conditional": (True, "true", "True"),
    "nonlinearity": ("swish",),
    "progressive_combine": ("sum",),
    "attention_type": ("ddpm",),
}
"""Settings that change the network, and their values here."""


def averaged(path: Path, contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model with its averages, which are a list in the order of the trained parameters."""
    model, ema = contents["model"], contents.get("ema")
    if not isinstance(ema, Mapping) or not isinstance(ema.get("shadow_params"), list):
        raise PublishedError(f"{path}: has no ema with shadow_params; use an intact copy")
    plain = {str(k).removeprefix("module."): value for k, value in model.items()}
    # The frequencies of the noise level are a parameter that is not trained.
    trained = [k for k in plain if k != "sigmas" and not re.fullmatch(r"all_modules\.\d+\.W", k)]
    shadow = ema["shadow_params"]
    shapes = [tuple(plain[k].shape) for k in trained]
    if shapes != [tuple(getattr(value, "shape", (-1,))) for value in shadow]:
        raise PublishedError(
            f"{path}: its {len(shadow)} averages do not fit its {len(trained)} trained parameters "
            "in order; use an intact copy"
        )
    plain |= dict(zip(trained, shadow, strict=True))
    moved = Moved(path, plain)
    return {k.removeprefix("all_modules."): moved.take(k) for k in plain}


def _kind(parts: Mapping[str, Tensor]) -> str:
    """F fourier, L linear, C convolution, R residual block, S one that changes the size,

    A attention, P a picture halved, N norm.
    """
    names = frozenset(name.rpartition(".")[0] or name for name in parts)
    if names == {"W"}:
        return "F"
    if names == {"weight", "bias"}:
        return {1: "N", 2: "L", 4: "C"}.get(parts["weight"].ndim, "?")
    if {"GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1"} <= names:
        into, out = (len(parts[f"{n}.weight"]) for n in ("GroupNorm_0", "Conv_1"))
        return "S" if into == out and "Conv_2" in names else "R"
    if names == {"GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"}:
        return "A"
    return "P" if names == {"Conv2d_0"} else "?"


def _network(
    path: Path, kinds: str, modules: Mapping[int, Any], found: Mapping[int, str]
) -> dict[str, Any]:
    """Arguments of ``ddpmpp`` or ``ncsnpp`` from the kinds of the modules in order."""
    match = re.fullmatch(r"(F?)LLC(.*)NC", kinds)
    levels = kinds.count("S") // 2 + 1
    parts = re.split("SP?", match[2]) if match else []
    blocks = parts[0].count("R") if parts else 0
    # The last stage of the encoder, the middle and the first of the decoder are not separated.
    attention = [i for i, part in enumerate(parts[: levels - 1]) if "A" in part]
    if parts[levels - 1 : levels] and parts[levels - 1].startswith("RA" * max(blocks, 1) + "RAR"):
        attention.append(levels - 1)
    stem = next((modules[n]["weight"] for n, k in found.items() if k == "C"), None)
    pictured = "P" in kinds
    expected = "".join(_order(levels, blocks, attention, pictured))
    if stem is None or match is None or expected != match[2]:
        raise PublishedError(
            f"{path}: its modules are not in the order of an NCSN++ of {levels} resolutions and "
            f"{blocks} blocks; use an intact copy"
        )
    widths, place, stages = [], [n for n, k in found.items() if k == "R"], range(levels)
    for i in stages:
        widths.append(modules[place[i * blocks]]["Conv_1.weight"].shape[0])
    first = next(modules[n]["weight"] for n, k in found.items() if k == "L")
    return {
        "kind": "ncsnpp" if pictured else "ddpmpp",
        "width": stem.shape[0],
        "multipliers": [width // stem.shape[0] for width in widths],
        "blocks": blocks,
        "attention": attention,
        "embedding": first.shape[1],
        "fourier": bool(match[1]),
    }


def _order(levels: int, blocks: int, attention: list[int], pictured: bool) -> Iterator[str]:
    """The kinds of the modules between the first convolution and the last norm."""
    for i in range(levels):
        yield ("RA" if i in attention else "R") * blocks
        if i < levels - 1:
            yield "SP" if pictured else "S"
    yield "RAR"
    for i in reversed(range(levels)):
        yield "R" * (blocks + 1) + ("A" if i in attention else "") + ("S" if i else "")


def _moved(
    path: Path,
    modules: Mapping[int, dict[str, Tensor]],
    found: Mapping[int, str],
    network: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Our state dict, the modules taken in order."""
    moved = Moved(path, {f"{n}.{k}": x for n, parts in modules.items() for k, x in parts.items()})
    rest = iter(found.items())

    def residual(ours: str) -> None:
        n, _ = next(rest)
        for mine, other in (
            ("norm", "GroupNorm_0"),
            ("inner", "Conv_0"),
            ("conditioned.shift", "Dense_0"),
            ("conditioned.norm", "GroupNorm_1"),
            ("outer", "Conv_1"),
        ):
            moved.layer(f"{ours}.{mine}", f"{n}.{other}")
        if f"{n}.Conv_2.weight" in moved.left:
            moved.layer(f"{ours}.skip", f"{n}.Conv_2")

    def attention(ours: str) -> None:
        n, _ = next(rest)
        moved.layer(f"{ours}.norm", f"{n}.GroupNorm_0")
        parts = [f"{n}.NIN_{k}" for k in range(4)]
        matrices = [moved.take(f"{part}.W").T for part in parts]  # (inputs, outputs) there
        biases = [moved.take(f"{part}.b") for part in parts]
        moved.found[f"{ours}.qkv.weight"] = torch.cat(matrices[:3])
        moved.found[f"{ours}.qkv.bias"] = torch.cat(biases[:3])
        moved.found[f"{ours}.project.weight"] = matrices[3].contiguous()
        moved.found[f"{ours}.project.bias"] = biases[3]

    def layer(ours: str, inner: str = "") -> None:
        moved.layer(ours, f"{next(rest)[0]}{inner}")

    levels, blocks, attends = len(network["multipliers"]), network["blocks"], network["attention"]
    if network["fourier"]:
        frequencies = 2 * math.pi * moved.take(f"{next(rest)[0]}.W")
    else:
        n = network["embedding"] // 2
        ramp = torch.arange(n, dtype=torch.float32)
        frequencies = torch.exp(ramp * -(math.log(10000) / (n - 1)))
    moved.found["condition.features.frequencies"] = frequencies
    layer("condition.hidden")
    layer("condition.out")
    layer("stem")
    for i in range(levels):
        for j in range(blocks):
            residual(f"encoder.{i}.{j}.residual")
            if i in attends:
                attention(f"encoder.{i}.{j}.attention")
        if i < levels - 1:
            residual(f"descents.{i}.block")
            if network["kind"] == "ncsnpp":
                layer(f"descents.{i}.shrink.conv", ".Conv2d_0")
    residual("middle.0.residual")
    attention("middle.0.attention")
    residual("middle.1.residual")
    for k, i in enumerate(reversed(range(levels))):
        for j in range(blocks + 1):
            residual(f"decoder.{k}.{j}.residual")
        if i in attends:
            attention(f"decoder.{k}.{blocks}.attention")
        if i:
            residual(f"ascents.{k}")
    layer("norm")
    layer("head")
    return moved.finished()
