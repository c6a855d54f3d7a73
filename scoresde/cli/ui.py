"""``scoresde ui``: the page in a browser, and its JSON API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.cli.console import pick_device
from scoresde.cli.options import UIOptions


def run(options: UIOptions, overrides: Mapping[str, Any]) -> int:
    """Serve the page until an interrupt."""
    from scoresde.ui.server import serve

    for folder in options.folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; make it, or name another")
    serve(
        options.folders,
        options.port,
        open_page=options.open,
        device=str(pick_device(options.device)),
    )
    return 0
