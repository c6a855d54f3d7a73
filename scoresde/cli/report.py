"""What a training run tells its user: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from scoresde.atomic import writing
from scoresde.training import Metrics, Plan
from scoresde.training.loss_by_noise import LossByNoise


class Output(Console):
    """Standard output; when its reader goes away, as ``head`` does, it falls silent."""

    def on_broken_pipe(self) -> None:
        """Go on without a reader: the log has every line."""
        self.quiet = True
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Report:
    """Lines on standard output and in ``log.txt``, and on a terminal a bar with time left.

    The bar moves every step; its loss and speed are those of the last record. An error that ends
    it is the last line of ``log.txt``. A quiet report says nothing anywhere.
    """

    def __init__(self, log: Path, steps: int, step: int, *, quiet: bool = False) -> None:
        self._path, self._steps, self._quiet = log, steps, quiet
        self._console = Output(highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, completed=step, numbers="")
        self._log: TextIO | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            with writing(self._path):
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
            with suppress(OSError), self._log as log:  # a full disk is perhaps what ends it
                log.write(f"error: {error}\n" if isinstance(error, Exception) else "")

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
            with writing(self._path):
                self._log.write(text + "\n")
                self._log.flush()


def numbers(record: Mapping[str, Any]) -> str:
    """The numbers of a record, with units."""
    text = (
        f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  grad {record['grad_norm']:.3g}  "
        f"{record['images_per_second']:.0f} images/s  {record['seconds']:.0f} s"
    )
    if "utilisation" in record:
        text += f"  {record['utilisation']:.0%} of peak"
    return text if "held_out" not in record else f"{text}  held-out {record['held_out']:.4f}"


@dataclass
class Window:
    """Sums over the updates since the last record, on the device of the numbers."""

    seconds: float
    levels: LossByNoise
    begin: float = 0.0
    updates: int = 0
    loss: Tensor | float = 0.0
    grad_norm: Tensor | float = 0.0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.begin = self.seconds

    def add(self, metrics: Metrics, seconds: float) -> None:
        """Count an update that took so many seconds."""
        self.updates += 1
        self.seconds += seconds
        self.loss = self.loss + metrics.loss
        self.levels.add(metrics.t, metrics.losses)
        # That of an update that was skipped is infinite.
        self.grad_norm = self.grad_norm + metrics.grad_norm.nan_to_num(0.0, 0.0, 0.0)

    def record(self, metrics: Metrics, plan: Plan, held_out: float | None) -> dict[str, Any]:
        """The line of ``metrics.jsonl``: means over the window, which then starts anew."""
        skipped, self.skipped = metrics.skipped - self.skipped, metrics.skipped
        found: dict[str, Any] = {
            "step": metrics.step,
            "images": metrics.step * plan.batch,
            "loss": float(self.loss) / self.updates,
            "lr": metrics.learning_rate,
            "grad_norm": float(self.grad_norm) / max(self.updates - skipped, 1),
            "seconds": self.seconds,
            "images_per_second": self.updates * plan.batch / (self.seconds - self.begin),
        }
        found["loss_by_lam"] = self.levels.take(plan.rank)
        self.begin, self.updates, self.loss, self.grad_norm = self.seconds, 0, 0.0, 0.0
        if metrics.skipped:
            found["skipped"] = metrics.skipped
        return found if held_out is None else found | {"held_out": held_out}


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
