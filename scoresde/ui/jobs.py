"""A queue of jobs with one worker: progress, previews, stopping, and results that are bounded.

The worker is one thread, because two drawings at once take twice as long each. A job writes its
files into a folder of its own, so that what is kept of it in memory is small.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scoresde.progress import Advance
from scoresde.runs.instrument import NetworkCall, Stopped

WAITING, KEPT, LONGEST = 64, 64, 600
"""Most jobs that wait, and that are remembered; most characters of an error."""
PREVIEW_SECONDS, PREVIEW_COST = 0.4, 9.0
"""Least seconds between two previews, and how much longer than a preview the work between is."""


class Busy(RuntimeError):
    """Raised when as many jobs wait as may."""


class NotFound(LookupError):
    """Raised for what there is not, or what may not be opened."""


@dataclass(eq=False)
class Job:
    """A job: what it was asked, how far it is, and what came out.

    Its work is given the job, and asks ``stopping``, reports to ``progress`` and ``look``, and
    writes its files into ``folder``.

    Args:
        id: word that nobody can guess, by which its owner asks for it.
        kind: what it does, such as sample.
        owner: who asked for it.
        folder: folder of its files, deleted with it.
        state: queued, running, done, stopped or failed.
        share: share of the work that is done, 0 to 1.
        note: what it does at the moment.
        record: what came out, as JSON values; of a stopped job what there was.
        error: why it failed, one line.
        preview: function that writes a preview of a network call and returns its file.
        shown: the last preview.
    """

    id: str
    kind: str
    owner: str
    folder: Path
    state: str = "queued"
    share: float = 0.0
    note: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    preview: Callable[[int, NetworkCall], Path | None] | None = None
    shown: Path | None = None
    _begun: float | None = None
    _ended: float | None = None
    _expected: tuple[int, int] | None = None
    _next: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "stopped", "failed")

    def stopping(self) -> bool:
        """Whether the work should stop."""
        return self._stop.is_set()

    def expect(self, samples: int, calls: int) -> None:
        """Measure the share by network calls: so many for each of so many samples."""
        self._expected = samples, max(calls, 1)

    def look(self, first: int, call: NetworkCall) -> None:
        """Note a network call of the batch that begins with this sample, and show it at times."""
        if self._expected is not None:
            samples, calls = self._expected
            here = len(call.x) * min(call.number / calls, 1.0)
            self.share = min(max(self.share, (first + here) / samples), 1.0)
            self.note = f"network call {call.number} of {calls}"
        began = time.monotonic()
        if self.preview is not None and began >= self._next:
            self.shown = self.preview(first, call) or self.shown
            ended = time.monotonic()
            self._next = ended + max(PREVIEW_SECONDS, PREVIEW_COST * (ended - began))

    @contextmanager
    def stoppable(self, total: int, what: str) -> Iterator[Advance]:
        """A ``Progress`` that raises Stopped, for work that does not ask ``stopping``."""
        with self.progress(total, what) as advance:

            def asking(n: int, note: str = "") -> None:
                if self.stopping():
                    raise Stopped
                advance(n, note)

            yield asking

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Advance]:
        """A ``scoresde.progress.Progress``."""
        done = 0

        def advance(n: int, note: str = "") -> None:
            nonlocal done
            done += n
            if self._expected is None:
                self.share, self.note = done / max(total, 1), f"{done} of {total} {what}"

        yield advance

    def told(self) -> dict[str, Any]:
        """The job as JSON values; ``left`` are seconds, None where nobody knows."""
        seconds = 0.0
        if self._begun is not None:
            seconds = (self._ended or time.monotonic()) - self._begun
        running = self.state == "running" and self.share > 0
        return {
            "job": self.id,
            "kind": self.kind,
            "state": self.state,
            "share": self.share,
            "note": self.note,
            "seconds": seconds,
            "left": seconds * (1 / self.share - 1) if running else None,
            "error": self.error or None,
            **self.record,
        }


Work = Callable[[Job], Mapping[str, Any]]
"""Does a job, and returns its record."""


class Jobs:
    """The queue, its worker and the jobs that are remembered. Its methods are safe in any thread.

    Args:
        folder: folder of the folders of the jobs.
        waiting: most jobs that wait.
        kept: most finished jobs that are remembered; the oldest is forgotten, its files too. Those
            that were stopped before they began are counted apart, so that they displace no result.
    """

    def __init__(self, folder: Path, waiting: int = WAITING, kept: int = KEPT) -> None:
        self._folder, self._most, self._kept = folder, waiting, kept
        self._jobs: dict[str, Job] = {}
        self._queue: deque[tuple[Job, Work]] = deque()
        self._finished: tuple[deque[Job], deque[Job]] = deque(), deque()
        self._changed, self._closed = threading.Condition(), False
        self._worker = threading.Thread(target=self._run, name="worker", daemon=True)

    def __enter__(self) -> Self:
        self._worker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closed = True
            for job in list(self._jobs.values()):
                self._cancel(job)
            self._changed.notify_all()
        self._worker.join()

    def submit(self, kind: str, work: Work, owner: str = "") -> Job:
        """Queue a job. Raises Busy."""
        with self._changed:
            if len(self._queue) >= self._most or self._closed:
                raise Busy(f"busy: {len(self._queue)} jobs wait; try again in a while")
            name = secrets.token_urlsafe(12)
            job = Job(name, kind, owner, self._folder / name)
            self._jobs[job.id] = job
            self._queue.append((job, work))
            self._changed.notify_all()
        return job

    def get(self, name: str) -> Job:
        """The job of this id. Raises NotFound, also for one that is forgotten."""
        if (job := self._jobs.get(name)) is None:
            raise NotFound(f"no job {name!r:.80}; the oldest results are forgotten")
        return job

    def place(self, job: Job) -> int:
        """How many jobs are before it, that of the worker included; 0 for one that has begun."""
        with self._changed:
            waiting = [queued for queued, _ in self._queue]
            return waiting.index(job) + 1 if job in waiting else 0

    def cancel(self, job: Job) -> None:
        """Stop a job: one that waits leaves the queue, one that runs keeps what there is."""
        with self._changed:
            self._cancel(job)

    def cancel_all(self, owner: str, kind: str | None = None) -> None:
        """Stop all jobs of an owner, or those of a kind."""
        with self._changed:
            for job in list(self._jobs.values()):
                if job.owner == owner and kind in (None, job.kind):
                    self._cancel(job)

    def wait(self, job: Job, seconds: float | None = None) -> Job:
        """Wait until a job is finished, or for some time."""
        with self._changed:
            self._changed.wait_for(lambda: job.finished, seconds)
        return job

    def _cancel(self, job: Job) -> None:
        job._stop.set()
        if job.state == "queued":
            self._queue = deque(pair for pair in self._queue if pair[0] is not job)
            self._end(job, "stopped")

    def _end(self, job: Job, state: str) -> None:
        job.state, job.preview = state, None
        finished = self._finished[job._begun is not None]
        finished.append(job)
        while len(finished) > self._kept:
            old = finished.popleft()
            del self._jobs[old.id]
            shutil.rmtree(old.folder, ignore_errors=True)
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                job, work = self._queue.popleft()
                job.state, job._begun = "running", time.monotonic()
            try:
                job.folder.mkdir(parents=True)
                job.record = work(job)
                state = "stopped" if job.stopping() else "done"
            except Exception as error:  # whatever it is, the worker goes on
                # What was stopped may say so by an error of its own.
                text = one_line(error).replace(f"{job.folder}/", "")
                job.error = "" if job.stopping() else text
                state = "stopped" if job.stopping() else "failed"
            del work  # and with it what was asked
            job._ended = time.monotonic()
            if state == "done":
                job.share = 1.0
            with self._changed:
                self._end(job, state)


def one_line(error: BaseException) -> str:
    """An error as one line: what was wrong, where, what to do."""
    text = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or text}"
    known = isinstance(error, ValueError | RuntimeError | NotFound) and bool(text)
    return text if known else f"{type(error).__name__}: {text}"
