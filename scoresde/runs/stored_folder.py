"""Describes a folder of diffusers for ``scoresde info FOLDER``, without reading its weights."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.interop.folder import SCHEDULER, Folder
from scoresde.interop.pipelines import read_folder
from scoresde.parameterization import ScoreModel
from scoresde.runs.space import state_shape
from scoresde.runs.stored import classes_line
from scoresde.runs.train_setup import takes_labels

SPACINGS = ("timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Fields of a scheduler that place its steps."""


def stored_folder(path: Path) -> dict[str, Any]:
    """Description of the pipeline in a folder as JSON values. Raises FolderError."""
    folder = Folder(path, bare=True)
    model = read_folder(folder)
    data, sde = model.data, model.sde
    least, most = (
        float((-sde.lam(torch.tensor(t, dtype=torch.float64))).exp())
        for t in (sde.t_min, sde.t_max)
    )
    base = getattr(model.parameterization, "base", model.parameterization)
    scheduler = folder.json(SCHEDULER)
    spacing = {name: scheduler[name] for name in SPACINGS if scheduler.get(name)}
    codec = model.codec
    return {
        "source": str(path),
        "pipeline": folder.pipeline,
        "variants": folder.variants(),
        "shape": list(data.shape),
        "levels": data.scaling.levels,
        "latents": None if codec is None else list(state_shape(model)),
        "codec": None if codec is None else _codec(codec),
        "classes": data.classes,
        "label": _label(model),
        "conditions": {name: each.takes() for name, each in model.conditions.items()},
        "process": type(sde).__name__,
        "ratio": [least, None if math.isinf(most) else most],
        "prediction": getattr(base, "__name__", type(base).__name__),
        "coordinate": _named(getattr(model.parameterization, "noise", None)),
        "variance": model.variance,
        "scheduler": {"class": scheduler.get("_class_name"), **spacing},
        "network": type(getattr(model.net, "module", model.net)).__name__,
        "parameters": _count(model),
        "codec_parameters": None if codec is None else _count(codec),
        "notes": folder.notes,
    }


def page_of_folder(found: Mapping[str, Any]) -> str:
    """Format the description as lines."""
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows) + 2
    lines = [
        textwrap.fill(text, 80, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width)
        for name, text in rows
    ]
    return "\n".join([*found["notes"], found["source"], *lines])


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    variants = ", ".join(found["variants"])
    yield "pipeline", found["pipeline"] + (f", variants {variants}" if variants else "")
    yield "data", f"{found['levels']} pixel levels of shape {tuple(found['shape'])}"
    if found["codec"] is not None:
        yield "codec", f"{found['codec']}, latents of shape {tuple(found['latents'])}"
    if found["label"] is not None:
        yield "classes", classes_line(found["classes"] or [], found["label"])
    for name, takes in found["conditions"].items():
        yield f"condition {name}", takes
    least, most = found["ratio"]
    yield (
        "process",
        f"{found['process']}, sigma / alpha from {least:.4g} to "
        f"{'infinity' if most is None else f'{most:.4g}'}",
    )
    yield (
        "prediction",
        found["prediction"]
        + (f", told {found['coordinate']}" if found["coordinate"] else "")
        + (", with a learned variance" if found["variance"] else ""),
    )
    yield "network", found["network"]
    beside = "" if found["codec"] is None else f", and {found['codec_parameters']:,} of the codec"
    yield "parameters", f"{found['parameters']:,}{beside}"
    settings = [f"{k}={v}" for k, v in found["scheduler"].items() if k != "class"]
    yield (
        "scheduler",
        ", ".join([str(found["scheduler"]["class"]), *settings])
        + " (samples are drawn with ours; see --sample.sampler)",
    )


def _codec(codec: nn.Module) -> str:
    return type(getattr(codec, "module", codec)).__name__


def _label(model: ScoreModel) -> str | None:
    """What the network does without a class; None if it takes none."""
    if "label" in model.conditions or not takes_labels(model.net):
        return None
    return "one is needed" if model.needs_label else "or none"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _named(coordinate: Any) -> str | None:
    """A coordinate in words, such as Index(levels=1000)."""
    if coordinate is None:
        return None
    if not is_dataclass(coordinate):
        return str(getattr(coordinate, "__name__", coordinate))
    values = ((f.name, f.default, getattr(coordinate, f.name)) for f in fields(coordinate))
    said = [f"{name}={value}" for name, default, value in values if value != default]
    return f"{type(coordinate).__name__.lower()}{f' ({chr(44).join(said)})' if said else ''}"
