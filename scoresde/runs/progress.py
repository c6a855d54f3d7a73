"""How far something is: a callback that the caller gives, silent by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Counts ``n`` more items as done; ``note`` is text to show beside the count."""

    def __call__(self, n: int, note: str = "") -> None: ...


Progress = Callable[[int, str], AbstractContextManager[Advance]]
"""Called with the total and a label, such as (64, "samples"); entered, it gives an ``Advance``."""


@contextmanager
def silent(total: int, what: str) -> Iterator[Advance]:
    """A progress that shows nothing."""
    yield lambda n, note="": None
