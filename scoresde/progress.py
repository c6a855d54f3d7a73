"""Progress of long work: a callback that the caller supplies, silent by default."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

PLAIN_SECONDS = 10.0
SHOWN_SECONDS = 0.2
WIDTH = 79


class Advance(Protocol):
    """Counts ``n`` more items as done; ``note`` is text to show beside the count."""

    def __call__(self, n: int, note: str = "") -> None: ...


Progress = Callable[[int, str], AbstractContextManager[Advance]]
"""Called with the total and a label, such as (64, "samples"); entered, it gives an ``Advance``."""


@contextmanager
def silent(total: int, what: str) -> Iterator[Advance]:
    """A progress that shows nothing."""
    yield lambda n, note="": None


@contextmanager
def bar(total: int, what: str) -> Iterator[Advance]:
    """Count, time left and note on standard error: in place on a terminal and in a notebook.

    Elsewhere it is a plain line every ten seconds.
    """
    begin, done, last = time.monotonic(), 0, 0.0
    in_place = sys.stderr.isatty() or "ipykernel" in sys.modules
    every = SHOWN_SECONDS if in_place else PLAIN_SECONDS
    last = begin

    def advance(n: int, note: str = "") -> None:
        nonlocal done, last
        done, now = done + n, time.monotonic()
        if now - last < every:
            return
        last = now
        left = f"{duration((now - begin) / done * (total - done))} left" if done else ""
        text = "  ".join(part for part in (f"{what} {done}/{total}", left, note) if part)
        if in_place:
            print(f"\r{text[:WIDTH]:<{WIDTH}}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if in_place and last > begin:
            print(f"\r{'':<{WIDTH}}\r", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Such as 0:07, 12:30 or 3:05:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
