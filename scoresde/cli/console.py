"""What commands share on the terminal: the device, and progress as a bar or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of items done, shown on stderr.

    On a terminal it is a bar; piped, a plain line every few seconds.
    """
    if not sys.stderr.isatty():
        yield _plain(total, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def _plain(total: int, what: str) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= PLAIN_SECONDS and done < total:
            last = time.monotonic()
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)

    return advance
