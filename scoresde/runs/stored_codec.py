"""Describes a codec, in the folder of its run or in a file, for ``scoresde info PATH``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.latent.files import read_codec
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.load_codec import load_codec
from scoresde.training.checkpoint import CheckpointError

MEASURED = ("held_out", "psnr", "ssim", "rate", "round_trip", "codes", "perplexity")
"""The records of a training that a description repeats, of the last time they were measured."""


def is_codec(path: Path) -> bool:
    """Whether a run folder is that of an autoencoder, or a file holds a codec."""
    if path.is_dir():
        return RunFolder(path).is_run() and RunFolder(path).trains == "autoencoder"
    try:
        return path.suffix == ".safetensors" and bool(read_codec(path).tensors)
    except CheckpointError:
        return False


def stored_codec(path: Path) -> dict[str, Any]:
    """Description of a codec as JSON values. Raises CheckpointError as ``load_codec``."""
    codec = load_codec(path)
    lines = records(RunFolder(path)) if path.is_dir() else []
    last: Mapping[str, Any] = next((r for r in reversed(lines) if "psnr" in r), {})
    data = codec.data
    return {
        "source": str(path),
        "autoencoder": {"kind": codec.kind, **(codec.arguments or {})},
        "data": None if data is None else data.name,
        "shape": None if data is None else list(data.shape),
        "latents": None if data is None else list(codec.latent_shape(tuple(data.shape))),
        "latents_mean": codec.latents_mean.tolist(),
        "latents_std": codec.latents_std.tolist(),
        "law": None if codec.law is None else type(codec.law).__name__.lower(),
        "adversarial": codec.adversarial,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "step": last.get("step"),
        **{name: last[name] for name in MEASURED if name in last},
    }


def page_of_codec(found: Mapping[str, Any]) -> str:
    """Format the description as lines."""
    width = max(map(len, found)) + 2
    return "\n".join(f"{name:<{width}}{_text(value)}" for name, value in found.items())


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(_text, value))
        case dict():
            keys = [f"{k}={_text(v)}" for k, v in value.items() if k != "kind"]
            return f"{value['kind']}: {', '.join(keys)}"
        case _:
            return str(value)
