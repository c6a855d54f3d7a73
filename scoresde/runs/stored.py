"""Describes a run folder, a checkpoint or exported weights for ``scoresde info PATH``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.config import (
    Config,
    ConfigError,
    build_conditions,
    build_network,
    config_from,
    plain,
)
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.load import codec_in, load_checkpoint, stored_decays
from scoresde.runs.space import described_state
from scoresde.training.checkpoint import (
    CheckpointError,
    DataDescription,
    Embedded,
    load_weights,
)
from scoresde.training.snapshots import AVERAGES, WITHIN, reachable, snapshots


def stored(path: Path) -> dict[str, Any]:
    """Description of model, data, losses and averages as JSON values.

    Raises CheckpointError in the same cases as ``load_run``.
    """
    path = path.expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        weights = load_weights(path)
        about = _about(
            path, weights.step, weights.data, weights.config, weights.tensors, weights.codec
        )
        return {**about, "decays": None}
    source, checkpoint, notes = load_checkpoint(path)
    found = snapshots(path / AVERAGES) if path.is_dir() else []
    best, lines = checkpoint.best, records(RunFolder(path)) if path.is_dir() else []
    return {
        **_about(
            source,
            checkpoint.step,
            checkpoint.data,
            checkpoint.config,
            checkpoint.model,
            checkpoint.codec,
        ),
        "loss": next((r["loss"] for r in reversed(lines) if "loss" in r), None),
        "held_out": None if best is None else {"step": best.step, "loss": best.loss},
        "decays": list(stored_decays(checkpoint, source)),
        "snapshots": [{"step": s.step, "width": s.sigma_rel, "file": str(s.path)} for s in found],
        "widths": reachable(found),
        "notes": notes,
    }


def page(found: Mapping[str, Any]) -> str:
    """Format the description as lines, with the flags that select an average."""
    rows = list(_rows(found))
    width = max(len(name) for name, _ in rows) + 2
    lines = [
        textwrap.fill(text, 80, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width)
        for name, text in rows
    ]
    return "\n".join([*found.get("notes", ()), found["source"], *lines])


def _about(
    source: Path,
    step: int,
    data: DataDescription,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    codec: Embedded | None,
) -> dict[str, Any]:
    try:
        described = config_from(config, source) if config else None
    except ConfigError:
        described = None
    own = described is None or described.own
    state = data
    if codec is not None:
        try:
            state = described_state(data, codec_in(codec, source))
        except CheckpointError:  # a codec that a program made
            own = True
    sections = ("sde", "parameterization", "network")
    return {
        "source": str(source),
        "step": step,
        "data": data.name,
        "shape": list(data.shape),
        "levels": data.scaling.levels,
        "classes": data.classes,
        "latents": None if state is data else list(state.shape),
        **{name: None if own else plain(getattr(described, name)) for name in sections},
        "conditional": None if described is None else described.conditional,
        **_built(None if own else described, state, weights),
    }


def _built(
    described: Config | None, data: DataDescription, weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The conditions with what they take, and the number of parameters.

    Without a configuration, the number of all stored values.
    """
    if described is None:
        return {"parameters": sum(tensor.numel() for tensor in weights.values())}
    with torch.device("meta"):
        conditions = build_conditions(described, data)
        parts = [build_network(described, data, conditions), *conditions.values()]
    kinds = described.conditions.values
    takes = {k: {"kind": kinds[k].kind, "takes": c.takes()} for k, c in conditions.items()}
    return {
        "conditions": takes,
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
    }


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    shape = tuple(found["shape"])
    levels = "real numbers" if found["levels"] is None else f"{found['levels']} pixel levels"
    yield "step", str(found["step"])
    yield "data", f"{found['data']}: {levels} of shape {shape}"
    if found["latents"] is not None:
        yield "codec", f"latents of shape {tuple(found['latents'])}"
    if found["classes"] is not None:
        used = found["conditional"] or "label" in found.get("conditions", {})
        use = "used by the model" if used else "not used by the model"
        yield "classes", classes_line(found["classes"], use)
    for name, told in (found.get("conditions") or {}).items():
        yield f"condition {name}", f"{told['takes']} ({told['kind']})"
    for name, key in (("process", "sde"), ("parameterisation", "parameterization")):
        yield name, _keys(found[key])
    yield "network", _keys(found["network"])
    yield "parameters", f"{found['parameters']:,}"
    if found.get("loss") is not None:
        yield "training loss", f"{found['loss']:.4g} (mean over the last steps logged)"
    if found.get("held_out") is not None:
        best = found["held_out"]
        yield "held-out loss", f"{best['loss']:.4g}, the lowest, at step {best['step']}"
    if found["decays"] is None:
        yield "weights", "a single average"
        return
    first, *others = (f"{decay:g}" for decay in found["decays"])
    listed = ", ".join([f"{first} (by default)", *others])
    yield "weights", "raw: --no-ema"
    yield "", f"exponential averages, --ema-decay: {listed}"
    yield "", _widths(found)


def classes_line(classes: Sequence[str], use: str) -> str:
    """The number of classes, the first names, and their use."""
    some = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return f"{len(classes)} ({some}), {use}"


def _keys(section: Mapping[str, Any] | None) -> str:
    if section is None:
        return "defined by a program, not by a configuration"
    keys = [f"{key}={value}" for key, value in section.items() if key != "kind"]
    return f"{section['kind']}{': ' * bool(keys)}{', '.join(keys)}"


def _widths(found: Mapping[str, Any]) -> str:
    kept = found["snapshots"]
    if not kept:
        return "power-function averages, --ema-width: none (train.posthoc stores them)"
    steps, widths = sorted({s["step"] for s in kept}), sorted({s["width"] for s in kept})
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in found["widths"])
    return (
        f"power-function averages at step {steps[-1]}, --ema-width: {ranges} (error at most "
        f"{WITHIN:.0%}), from {len(kept)} snapshots of widths "
        f"{', '.join(f'{w:g}' for w in widths)} at "
        f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
    )
