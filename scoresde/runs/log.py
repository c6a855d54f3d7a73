"""What a training run reports: records of its numbers, lines for its log, and a listener."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from torch import Tensor

from scoresde.atomic import writing
from scoresde.progress import Advance, Progress, duration
from scoresde.training import Metrics
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.plan import Updates


class Listener(Protocol):
    """Receives what a run reports: a terminal, a notebook, a test."""

    def begin(self, step: int, steps: int) -> None:
        """Training starts at ``step`` and ends at ``steps``."""

    def say(self, text: str) -> None:
        """A line about the run."""

    def record(self, record: Mapping[str, Any], line: str) -> None:
        """A record of ``metrics.jsonl``, and the same as a line."""

    def advance(self, step: int) -> None:
        """``step`` updates are made."""

    def end(self) -> None:
        """Training has ended, by whatever cause."""


class Quiet:
    """A listener that shows nothing."""

    def begin(self, step: int, steps: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def record(self, record: Mapping[str, Any], line: str) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def end(self) -> None:
        pass


class Shown(Quiet):
    """A listener that prints remarks on standard error, and the losses beside the progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._note, self._step = progress, "", 0
        self._advance: Advance | None = None

    def begin(self, step: int, steps: int) -> None:
        self._step, self._context = step, self._progress(steps - step, "training steps")
        self._advance = self._context.__enter__()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def record(self, record: Mapping[str, Any], line: str) -> None:
        self._note = losses(record)

    def advance(self, step: int) -> None:
        if self._advance is not None:
            self._advance(step - self._step, self._note)
        self._step = step

    def end(self) -> None:
        if self._advance is not None:
            self._context.__exit__(None, None, None)


class Log:
    """Passes what a run reports to a listener, and writes its lines into ``log.txt``.

    An error that ends the run is the last line. Without a path nothing is written. A ``quiet``
    log, that of a process that does not lead, reports nothing.
    """

    def __init__(
        self, path: Path | None, listener: Listener, plan: Updates, *, quiet: bool
    ) -> None:
        self._path, self._plan = None if quiet else path, plan
        self._listener: Listener = Quiet() if quiet else listener
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            with writing(self._path):
                self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.end()
        if self._file is not None:
            with suppress(OSError), self._file as file:  # a full disk is perhaps what ends it
                file.write(f"error: {error}\n" if isinstance(error, Exception) else "")

    def begin(self, step: int) -> None:
        """Training starts from here."""
        self._begin, self._first = time.monotonic(), step
        self._listener.begin(step, self._plan.steps)

    def say(self, text: str) -> None:
        """One line, everywhere."""
        self._listener.say(text)
        self._write(text)

    def record(self, record: Mapping[str, Any]) -> None:
        """A record of ``metrics.jsonl``, as a line."""
        line = self._line(record)
        self._listener.record(record, line)
        self._write(line)

    def advance(self, step: int) -> None:
        """``step`` updates are made."""
        self._listener.advance(step)

    def _line(self, record: Mapping[str, Any]) -> str:
        """Step, total, time left and losses first: the rest may be cut off."""
        step, steps = record["step"], self._plan.steps
        each = (time.monotonic() - self._begin) / max(step - self._first, 1)
        text = (
            f"step {step}/{steps}  {duration(each * (steps - step))} left  {losses(record)}  "
            f"{record['images_per_second']:.0f} images/s  lr {record['lr']:.2e}  "
            f"grad {record['grad_norm']:.3g}"
        )
        return text + (f"  {record['utilisation']:.0%} of peak" if "utilisation" in record else "")

    def _write(self, text: str) -> None:
        if self._file is not None and self._path is not None:
            with writing(self._path):
                self._file.write(text + "\n")
                self._file.flush()


def losses(record: Mapping[str, Any]) -> str:
    """The losses of a record by name."""
    held_out = f"  held-out {record['held_out']:.4f}" if "held_out" in record else ""
    decibel = f"  {record['psnr']:.2f} dB" if "psnr" in record else ""
    codes = f"  {record['codes']:.0f} codes" if "codes" in record else ""
    if "perplexity" in record:
        codes += f", perplexity {record['perplexity']:.0f}"
    return f"loss {record['loss']:.4f}{held_out}{decibel}{codes}"


@dataclass
class Window:
    """Sums over the updates since the last record, on the device of the numbers."""

    seconds: float
    levels: LossByNoise | None
    begin: float = 0.0
    updates: int = 0
    loss: Tensor | float = 0.0
    grad_norm: Tensor | float = 0.0
    skipped: int = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.begin = self.seconds

    def add(self, metrics: Metrics, seconds: float) -> None:
        """Count an update that took so many seconds."""
        self.updates += 1
        self.seconds += seconds
        self.loss = self.loss + metrics.loss
        if self.levels is not None and metrics.t is not None:
            self.levels.add(metrics.t, metrics.losses)
        for name, part in metrics.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part
        self.counts.update(metrics.parts.keys())
        # That of an update that was skipped is infinite.
        self.grad_norm = self.grad_norm + metrics.grad_norm.nan_to_num(0.0, 0.0, 0.0)

    def record(
        self, metrics: Metrics, plan: Updates, measured: Mapping[str, float]
    ) -> dict[str, Any]:
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
        if self.levels is not None:
            found["loss_by_lam"] = self.levels.take(plan.rank)
        found |= {name: float(part) / self.counts[name] for name, part in self.parts.items()}
        self.parts, self.counts = {}, Counter()
        self.begin, self.updates, self.loss, self.grad_norm = self.seconds, 0, 0.0, 0.0
        if metrics.skipped:
            found["skipped"] = metrics.skipped
        return found | dict(measured)
