"""Terminal output of a training run: a progress bar, or plain lines in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scoresde.progress import PLAIN_SECONDS, duration
from scoresde.runs.log import losses


class Output(Console):
    """Standard output that stops printing once its reader, such as ``head``, has exited."""

    def on_broken_pipe(self) -> None:
        """Continue without output; the log file has every line."""
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Report:
    """Listener of ``scoresde train``.

    On a terminal, a bar shows the step, the time left and the latest losses. In a pipe, it prints
    one line per record, and at least one line every ten seconds.
    """

    def __init__(self) -> None:
        self._console = Output(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(12),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def begin(self, step: int, steps: int) -> None:
        """Start the bar."""
        self._task = self._bar.add_task("train", total=steps, completed=step, losses="")
        self._first, self._steps = step, steps
        self._begin = self._last = time.monotonic()
        self._bar.start()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def record(self, record: Mapping[str, Any], line: str) -> None:
        """Show the losses of a record in the bar, or print its line in a pipe."""
        if self._console.is_terminal:
            self._bar.update(self._task, losses=losses(record))
        else:
            self._console.print(line, markup=False)
            self._last = time.monotonic()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self._bar.update(self._task, completed=step)
        now = time.monotonic()
        if self._console.is_terminal or now - self._last < PLAIN_SECONDS:
            return
        each, self._last = (now - self._begin) / (step - self._first), now
        left = duration(each * (self._steps - step))
        self._console.print(f"step {step}/{self._steps}  {left} left", markup=False)

    def end(self) -> None:
        """Remove the bar."""
        self._bar.stop()
