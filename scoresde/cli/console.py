"""What commands share on the terminal: the device, and progress as a bar or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

PLAIN_SECONDS = 5.0


def pick_device(name: str) -> torch.device:
    """The device of ``--device``; auto is a GPU if there is one. Raises ValueError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"--device {name}: not usable ({reason}); try --device cpu") from None


class Advance(Protocol):
    """Told the number of items done since the last time, and what to say beside the count."""

    def __call__(self, n: int, note: str = "") -> None: ...


@contextmanager
def progress(total: int, what: str) -> Iterator[Advance]:
    """A function to call with the number of items done, shown on stderr.

    On a terminal it is a bar; piped, a plain line every few seconds.
    """
    if not sys.stderr.isatty():
        yield _plain(total, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining(), note)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(n: int, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance


def _plain(total: int, what: str) -> Advance:
    done, last = 0, time.monotonic()

    def advance(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= PLAIN_SECONDS and done < total:
            last = time.monotonic()
            print(f"{what} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
