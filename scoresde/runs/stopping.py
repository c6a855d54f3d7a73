"""Stops long computations on a signal at a point where their results can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Stopping:
    """Context in which SIGINT and SIGTERM only set ``signal``, which a loop checks at each step.

    A second signal acts as usual. With ``late`` all do until ``number`` is first asked, as there
    is nothing to save before. Outside the main thread, where Python allows no handlers, the
    context has no effect.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, late: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self._late = late
        self._before: dict[signal.Signals, Any] = {}

    def number(self) -> int:
        """The number of the signal, or 0."""
        if self._late:
            self._late = False
            self._listen()
        return self.signal or 0

    def __enter__(self) -> Self:
        if not self._late:
            self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._noted) for s in self.SIGNALS}

    def _noted(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
