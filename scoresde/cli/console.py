"""Terminal output shared by the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scoresde.progress import Advance, bar
from scoresde.runs.processes import pick_device

__all__ = ["Advance", "pick_device", "progress"]


@contextmanager
def progress(total: int, what: str) -> Iterator[Advance]:
    """Show progress on standard error: a bar on a terminal, plain lines in a pipe."""
    if not sys.stderr.isatty():
        with bar(total, what) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining(), note)
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total, note="")

        def move(n: int, note: str = "") -> None:
            shown.update(task, advance=n, note=note)

        yield move
