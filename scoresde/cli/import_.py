"""``scoresde import``: reads a published checkpoint of another program and writes it as a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.cli.options import ImportOptions
from scoresde.runs.folder import RunFolder
from scoresde.runs.importing import import_model
from scoresde.runs.stored import page, stored


def run(options: ImportOptions, overrides: Mapping[str, Any]) -> int:
    """Import, and print what the model is."""
    said: dict[str, str] = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"set: need NAME=VALUE, got {item!r}")
        said[name] = value
    loaded = import_model(
        options.file,
        options.program,
        options.out,
        settings=options.settings,
        said=said,
        overwrite=options.overwrite,
    )
    if RunFolder(options.out).is_run():  # else a folder of diffusers
        print(page(stored(options.out)))
    print(f"read from {options.file}; every command takes --checkpoint {options.out}")
    for note in loaded.notes:
        print(note)
    return 0
