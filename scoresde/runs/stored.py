"""What a run folder, a checkpoint or exported weights hold: for ``scoresde info PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoresde.runs.load import load_checkpoint, stored_decays
from scoresde.training.checkpoint import load_weights
from scoresde.training.snapshots import AVERAGES, WITHIN, Snapshot, reachable, snapshots


def stored(path: Path) -> dict[str, Any]:
    """Step, data and averages of what is there, for people and for --json.

    Raises CheckpointError as ``load_run`` does.
    """
    path = path.expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        weights = load_weights(path)
        return {"source": str(path), "step": weights.step, **_about(weights.data)}
    source, checkpoint, notes = load_checkpoint(path)
    found = snapshots(path / AVERAGES) if path.is_dir() else []
    return {
        "source": str(source),
        "step": checkpoint.step,
        **_about(checkpoint.data),
        "parameters": sum(v.numel() for v in checkpoint.model.values()),
        "decays": list(stored_decays(checkpoint, source)),
        "snapshots": [{"step": s.step, "width": s.sigma_rel, "file": str(s.path)} for s in found],
        "widths": reachable(found),
        "notes": notes,
    }


def page(path: Path, found: dict[str, Any]) -> str:
    """The same in lines, with the options that choose among them."""
    shape = tuple(found["shape"])
    lines = [*found.get("notes", ())]
    lines += [f"{found['source']}: step {found['step']}, data {found['data']} {shape}"]
    if "decays" not in found:
        return "\n".join([*lines, "one average of the weights"])
    first, *others = (f"{decay:g}" for decay in found["decays"])
    listed = ", ".join([f"{first} (by default)", *others])
    lines += [
        f"{found['parameters']:,} numbers in its weights, also as they are: --no-ema",
        f"exponential averages, --ema-decay: {listed}",
    ]
    named = [Snapshot(s["step"], s["width"], Path(s["file"])) for s in found["snapshots"]]
    return "\n".join([*lines, *_of_snapshots(path, named, found["widths"])])


def _about(data: Any) -> dict[str, Any]:
    return {"data": data.name, "shape": list(data.shape), "classes": data.classes}


def _of_snapshots(
    path: Path, found: Sequence[Snapshot], widths: Sequence[tuple[float, float]]
) -> list[str]:
    if not found:
        return ["power-function averages, --ema-width: none (train.posthoc keeps them)"]
    steps, kept = sorted({s.step for s in found}), sorted({s.sigma_rel for s in found})
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in widths)
    return [
        f"{path / AVERAGES}: {len(found)} snapshots of widths {', '.join(f'{w:g}' for w in kept)}"
        f" at {len(steps)} steps from {steps[0]} to {steps[-1]}",
        f"power-function averages at step {steps[-1]}, --ema-width: {ranges}"
        f" ({WITHIN:.0%} off or less)",
    ]
