"""What a training run tells its user: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report:
    """Lines on standard output and in ``log.txt``, and on a terminal a bar with time left.

    The bar moves every step; its loss and speed are those of the last record.
    """

    def __init__(self, log: Path, steps: int, step: int) -> None:
        self._path, self._steps = log, steps
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, completed=step, numbers="")
        self._log: TextIO | None = None

    def __enter__(self) -> Self:
        self._log = self._path.open("a", encoding="utf-8")
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._log is not None:
            self._log.close()

    def say(self, text: str) -> None:
        """One line, everywhere."""
        self._console.print(text, markup=False)
        self._write(text)

    def line(self, record: Mapping[str, Any]) -> None:
        """A record of ``metrics.jsonl``: on a terminal it moves into the bar."""
        text = f"step {record['step']}/{self._steps}  {numbers(record)}"
        if self._console.is_terminal:
            self._bar.update(self._task, numbers=numbers(record))
        else:
            self._console.print(text, markup=False)
        self._write(text)

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._bar.update(self._task, completed=step)

    def _write(self, text: str) -> None:
        if self._log is not None:
            self._log.write(text + "\n")
            self._log.flush()


def numbers(record: Mapping[str, Any]) -> str:
    """The numbers of a record, with units."""
    text = (
        f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  grad {record['grad_norm']:.3g}  "
        f"{record['images_per_second']:.0f} images/s  {record['seconds']:.0f} s"
    )
    return text if "held_out" not in record else f"{text}  held-out {record['held_out']:.4f}"


class Stopping:
    """Inside, SIGINT and SIGTERM only set ``signal``, for the loop to stop at the end of a step.

    A second signal acts as usual. Off the main thread, where Python allows no handlers, nothing
    changes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._noted) for s in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _noted(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
