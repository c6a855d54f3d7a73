"""Arguments of a training function as the keys of its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from scoresde import registry
from scoresde.arguments import nearest
from scoresde.config import ConfigError, build_dataset, config_from, load_config, override
from scoresde.data import Dataset, dataset_of, kind_at
from scoresde.progress import Progress
from scoresde.runs.run import Settings


def config_of(source: Any, schema: type[Settings], own: tuple[str, str]) -> Settings:
    """A configuration from an object, a YAML file or a mapping. Raises ValueError for others.

    ``own`` says what else is taken, and how a program comes by it.
    """
    if isinstance(source, schema):
        return source
    if isinstance(source, str | Path):
        return load_config(source, None, schema)
    if isinstance(source, Mapping):
        return config_from(source, "configuration", schema)
    raise ValueError(f"need {own[0]}, got {type(source).__name__}; {own[1]}")


def changes_of(
    config: Settings,
    seed: int | None,
    settings: Mapping[str, Any],
    sections: Sequence[str],
    keys: Sequence[str] = (),
) -> dict[str, Any]:
    """The changes of a configuration that settings of its ``sections``, and its ``keys``, are.

    Raises ValueError for settings that do not exist.
    """
    homes = {name: f"{part}." for part in sections for name in getattr(config, part).values}
    homes |= dict.fromkeys(keys, "")
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    for name, value in settings.items():
        if name not in homes:
            raise ValueError(f"{name}: no setting of training; {nearest(name, homes)}")
        for key, plain in _plain(name, value).items():
            changes[f"{homes[name]}{name}{key}"] = plain
    return changes


def with_data(config: Settings, data: Any, progress: Progress) -> tuple[Settings, Dataset | None]:
    """The configuration with its data replaced by those given, and the data set."""
    if isinstance(data, str | Path):
        place = str(Path(data).expanduser().resolve())
        config = override(config, {"data.kind": kind_at(Path(data)), "data.path": place})
        return config, build_dataset(config.data, progress)
    if data is None:
        return config, None
    # All that is in memory is trained on; the run holds examples out of it by itself.
    dataset = dataset_of(data, holdout=0)
    return override(config, {"data.kind": "arrays", "data.path": None}), dataset


def changed(config: Settings, changes: Mapping[str, Any]) -> Settings:
    """The configuration with changes. Raises ConfigError, which names arguments."""
    try:
        return override(config, changes)
    except ConfigError as error:  # settings are arguments here, and keys of a section there
        text = re.sub(r"(?:^|(?<=; ))(?:train|loss)\.(?=\w)", "", str(error))
        raise ConfigError(text) from None


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A setting as a configuration has it: an object becomes its name, and the keys below it."""
    table = registry.table_of(name)
    if table is None or isinstance(value, str | Mapping):
        return {"": value}
    for entry_name, entry in table.items():
        if table.constructs and type(value) is entry and is_dataclass(value):
            keys = {f".{f.name}": getattr(value, f.name) for f in fields(value)}
            return {".kind": entry_name, **keys}
    return {".kind" if table.constructs else "": table.name_of(value)}
