"""``scoresde export``: writes a trained model in a format of other libraries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from scoresde.cli.options import ExportOptions
from scoresde.cli.weights import load_chosen
from scoresde.runs.export import export, require_free
from scoresde.runs.processes import pick_device


def run(options: ExportOptions, overrides: Mapping[str, Any]) -> int:
    """Write the folder, and print its pipeline and what diffusers does not do with it."""
    require_free(options.directory.expanduser(), options.overwrite)
    loaded = load_chosen(options.run, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    model = loaded.model.to(pick_device(options.device))
    found = export(model, options.directory, overwrite=options.overwrite)
    for note in found.notes:
        print(note, file=sys.stderr)
    print(f"{found.path}: {found.pipeline}")
    return 0
