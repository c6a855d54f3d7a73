"""Restores a training run from its newest intact checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.config import Config, config_from, load_config, to_plain
from scoresde.runs import folder as folders
from scoresde.runs.folder import RunFolder
from scoresde.runs.run import Run, Settings
from scoresde.training import (
    Checkpoint,
    CheckpointError,
    DataDescription,
    Plan,
    Reporting,
)
from scoresde.training import checkpoint as checkpoints

# Keys that may change on resuming: duration, reporting, and keys that training ignores.
FREE = (
    *(f"train.{name}" for name in sorted(Plan.FREE | Reporting.FREE)),
    *("data.path", "data.cache", "codec", "sample", "likelihood"),
)


def stored_config(
    out: str | Path,
    schema: type[Settings] = Config,  # type: ignore[assignment]
) -> Settings:
    """Read the configuration of the run in a folder; the default one if there is no run.

    Raises ValueError if the configuration is lost, or of a run that trains something else.
    """
    folder = RunFolder(Path(out))
    folder.require(schema.TRAINS)
    if folder.config.exists() or not folder.is_run():
        return load_config(folder.config if folder.is_run() else None, None, schema)
    if not checkpoints.step_files(folder.checkpoints):
        raise ValueError(f"{folder.config}: missing, and no checkpoint has it; give it anew")
    path, found, _ = checkpoints.newest(folder.checkpoints, checkpoints.KINDS[schema.TRAINS])
    return config_from(found.config, path, schema)


def restore(run: Run) -> list[str]:
    """Restore the run from its newest intact checkpoint, and return lines for the user.

    A run without a checkpoint starts at step 0. Raises ValueError if no checkpoint is intact, or
    if it has another configuration, other data, or a step beyond the last step of the run.
    """
    if not checkpoints.step_files(run.folder.checkpoints):
        return [_nothing_to_restore(run)]
    path, found, passed_over = checkpoints.newest(run.folder.checkpoints, run.kind)
    if not found.optimizer:
        raise ValueError(
            f"{path}: imported from another program, without the state of its training, which "
            "cannot go on; train in another folder"
        )
    changed = _require_same(run, found, path)
    run.take_over(found, path)
    run.best = found.best
    if run.leads:
        folders.rewind(run.folder, found.step)
    notes = [f"passed over {line}" for line in passed_over] + [f"resumed from {path}"]
    notes += [f"changed from here on: {'; '.join(changed)}"] if changed else []
    return notes + _check_best(run)


def _nothing_to_restore(run: Run) -> str:
    if run.folder.weights.exists() or run.folder.codec.exists():
        raise ValueError(
            f"{run.folder.checkpoints}: no checkpoint is left of this finished run; start anew "
            f"with overwrite=True, or in another folder"
        )
    return f"{run.folder.path}: no checkpoint yet, starting at step 0"


def _check_best(run: Run) -> list[str]:
    """Discard a best checkpoint that cannot be read, so that the next one replaces it."""
    if run.best is None or not run.keeps_best:
        return []
    try:
        checkpoints.load(run.folder.best, kind=run.kind)
    except CheckpointError as error:
        run.best = None
        return [f"passed over {error}"]
    return []


def _require_same(run: Run, found: Checkpoint, path: Path) -> list[str]:
    """List the changed keys among those that may change, one phrase per key.

    Raises ValueError if another key, the data or the number of steps prevents resuming.
    """
    # Reading it as a configuration adds defaults for keys that an older version lacks.
    stored = config_from(found.config, path, type(run.config))
    ours, theirs = flat(to_plain(run.config)), flat(to_plain(stored))
    if ours.pop("own") != theirs.pop("own"):
        raise ValueError(
            f"{path}: trained with another process or parameterization; give the same ones, or "
            "train in another folder"
        )
    changed = {
        key: f"{key}={ours.get(key)} was {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    if other := [line for key, line in changed.items() if not _free(key)]:
        raise ValueError(
            f"{path}: trained with another configuration ({'; '.join(other)}); restore these "
            f"values, or train in another folder"
        )
    if found.step > run.plan.steps:
        raise ValueError(
            f"train.steps: {run.plan.steps}, but the run is at step {found.step} already; "
            "give more"
        )
    kind, expected = (_kind(data) for data in (run.description(), found.data))
    if kind != expected:
        raise ValueError(
            f"{path}: trained on data of (shape, levels, classes) = {expected}, these are {kind}; "
            "give the same data"
        )
    _require_same_examples(run, found, path)
    run.require_same(found, path)
    return list(changed.values())


def _kind(data: DataDescription) -> tuple[Any, ...]:
    """Properties of the data that must agree, apart from the name."""
    return data.shape, data.scaling.levels, data.classes


def _require_same_examples(run: Run, found: Checkpoint, path: Path) -> None:
    """Raise ValueError if the values of the data have changed since training."""
    if found.contents and found.contents != run.contents:
        place = getattr(run.config.data, "path", None)
        name = run.dataset.name if place is None else f"{run.dataset.name} in {place}"
        raise ValueError(
            f"{path}: the examples of {name} have changed (sha256 {run.contents[:12]}, were "
            f"{found.contents[:12]}); give the data it was trained on, or train in another folder"
        )


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested keys: {"a": {"b": 1}} becomes {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
