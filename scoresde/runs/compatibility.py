"""Checks that a data set fits a model and holds none of its training examples."""

from __future__ import annotations

from pathlib import Path

from scoresde.config import Config, ConfigError, plain
from scoresde.data import Dataset
from scoresde.training.checkpoint import DataDescription


def require_same_data(dataset: Dataset, trained: DataDescription) -> None:
    """Raise ConfigError unless the data have the shape and the levels of the training data.

    Their ranges in model units may differ, since the model applies its own scaling to them.
    """
    found, expected = ((tuple(d.shape), d.scaling.levels) for d in (dataset, trained))
    if found != expected:
        raise ConfigError(
            f"data {dataset.name} has (shape, levels) = {found}, the model was trained on "
            f"{expected}; give data of the same kind with data.kind and data.path"
        )


def require_same_split(config: Config, trained: Config) -> None:
    """Raise ValueError for another split of the same files: it would test on training examples."""
    asked, known = plain(config.data), plain(trained.data)
    if asked["kind"] != known["kind"] or not _same_path(asked.get("path"), known.get("path")):
        return
    for key in ("seed", "holdout"):
        if asked.get(key) != known.get(key):
            raise ValueError(
                f"data.{key}: it was {known[key]} in training, got {asked[key]}; another split "
                "would take training examples for new ones; leave it out"
            )


def _same_path(a: str | None, b: str | None) -> bool:
    if a is None or b is None:
        return False
    return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()
