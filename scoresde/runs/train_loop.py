"""Loop of a training run, with its periodic records, pictures and checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from scoresde.evaluation.figures import loss_curve
from scoresde.runs import folder as folders
from scoresde.runs.levels_plot import levels_plot
from scoresde.runs.log import Listener, Log, Window
from scoresde.runs.run import Run
from scoresde.runs.scalars import Add, writing_scalars
from scoresde.training import Best, Checkpoint, CheckpointError, Metrics, TrainingError
from scoresde.training import checkpoint as checkpoints

NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")

Stop = Callable[[], int]
"""Function called after every step; returns the number of the signal to stop on, or 0."""


def to_the_end(run: Run, log: Log, stop: Stop) -> int:
    """Train and export the weights; returns the signal that stopped the run, or 0.

    Raises TrainingError if a write fails; the last checkpoint remains.
    """
    try:
        scalars = run.folder.tensorboard if run.leads and run.reporting.tensorboard else None
        with writing_scalars(scalars, run.state.step) as add:
            log.begin(run.state.step)
            stopped = _train(run, log, stop, add)
            if not stopped:
                for line in (finish(run), *run.results()):
                    log.say(line)
    except TrainingError:
        if run.leads:
            raise
        raise SystemExit(1) from None  # the same error in all processes; the first reports it
    except OSError as error:
        raise TrainingError(f"{_reason(error)}; {_what_is_left(run)}") from error
    return stopped


def _train(run: Run, log: Log, stop: Stop, add: Add) -> int:
    every = run.reporting
    window = Window(_seconds_so_far(run), run.levels(), skipped=run.state.scale.skipped)
    for metrics, seconds in _steps(run):
        window.add(metrics, seconds)
        found = _validate(run, log) if run.due(every.validate_every) else {}
        if found or run.due(every.log_every):
            record = window.record(metrics, run.plan, found)
            record |= run.costs(record["images_per_second"])
            if run.leads:
                folders.append(run.folder, record)
                add(record)
            log.record(record)
            for line in run.noticed(record):
                log.say(line)
        log.advance(metrics.step)
        if run.due(every.sample_every):
            run.draw_picture()
        run.save_more(partial(_save, run, log))
        # Signals reach the processes at different steps; all of them stop at the same step.
        stopped = run.plan.rank.largest(stop())
        if stopped or run.due(every.checkpoint_every):
            write = partial(checkpoints.save_step, run.folder.checkpoints, keep=every.keep)
            _save(run, log, write, must=bool(stopped))
        if stopped and metrics.step < run.plan.steps:
            name = signal.Signals(stopped).name
            log.say(f"{name} at step {metrics.step}: checkpoint saved; resume the run to go on")
            return stopped
    return 0


def timed_steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Yield each update with its duration in seconds; errors name a remedy."""
    begin = time.perf_counter()
    try:
        for metrics in run.updates():
            yield metrics, time.perf_counter() - begin
            begin = time.perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise RuntimeError(
            f"step {run.state.step + 1}: out of memory with batch={run.plan.batch}; lower "
            f"batch, or raise accumulate={run.plan.accumulate}"
        ) from error


def in_memory(run: Run, listener: Listener, stop: Stop) -> tuple[list[dict[str, Any]], int]:
    """Train without a folder; the average is then that of the least held-out loss, or the last.

    Returns the records and the signal that stopped it, or 0.
    """
    window = Window(0.0, run.levels())
    records: list[dict[str, Any]] = []
    least, best, stopped = float("inf"), None, 0
    with Log(None, listener, run.plan, quiet=not run.leads) as log:
        for line in run.remarks(run.state.device):
            log.say(line)
        log.begin(run.state.step)
        for metrics, seconds in timed_steps(run):
            window.add(metrics, seconds)
            found = run.measured() if run.due(run.reporting.validate_every) else {}
            if run.keeps_best and found and found["held_out"] < least:
                least, best = found["held_out"], deepcopy(run.state.ema.state_dict())
            if found or run.due(run.reporting.log_every):
                records.append(window.record(metrics, run.plan, found))
                log.record(records[-1])
                for line in run.noticed(records[-1]):
                    log.say(line)
            log.advance(metrics.step)
            if stopped := run.plan.rank.largest(stop()):
                break
        if best is not None:
            run.state.ema.load_state_dict(best)
        for line in run.results():
            log.say(line)
    run.state.ema.eval().requires_grad_(False)
    return records, stopped


def _steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Run ``timed_steps``; its errors also name the last checkpoint."""
    try:
        yield from timed_steps(run)
    except TrainingError as error:
        raise TrainingError(f"{error}; {_what_is_left(run)}") from error


def _is_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in NO_MEMORY)


def _validate(run: Run, log: Log) -> dict[str, float]:
    """Numbers of the average; the best step so far is saved as a separate checkpoint."""
    found = run.measured()
    if not found:
        return found
    loss = found["held_out"]
    if not math.isfinite(loss):
        raise TrainingError(f"step {run.state.step}: held-out loss {loss}; {_what_is_left(run)}")
    if run.best is None or loss < run.best.loss:
        before, run.best = run.best, Best(run.state.step, loss)
        write = partial(checkpoints.save, run.folder.best)
        if run.keeps_best and not _save(run, log, write):
            run.best = before
    return found


def finish(run: Run) -> str:
    """Export the best or latest weights, plot the loss, and return a line for the user."""
    keep_best = run.keeps_best and run.best is not None
    last = None if keep_best else run.snapshot()
    if not run.leads:
        return ""
    with _saving(run):
        chosen = last or checkpoints.load(run.folder.best, kind=run.kind)
        file = run.export(chosen)
    lines = folders.records(run.folder)
    if lines:
        loss_curve(run.folder.loss, lines)
        if run.levels() is not None:
            levels_plot(run.folder.levels, lines)
    why = f" (held-out loss {run.best.loss:.4f}, the lowest)" if keep_best and run.best else ""
    return f"{file}: EMA weights of step {chosen.step}{why}"


def _save(
    run: Run, log: Log, write: Callable[[Checkpoint], object], *, must: bool = False
) -> bool:
    """Write a snapshot of the run in the leading process; returns True on success.

    A failure raises TrainingError at the last step, with ``must``, or if ``on_failed_save`` is
    "stop". Otherwise it is only reported.
    """
    found, failed = run.snapshot(), False
    stops = must or run.reporting.on_failed_save == "stop" or run.state.step == run.plan.steps
    if run.leads:
        try:
            with _saving(run):
                write(found)
        except TrainingError as error:
            if stops:
                raise
            reason = _reason(error.__cause__ or error)
            log.say(f"step {run.state.step}: cannot save ({reason}); going on all the same")
            failed = True
    return stops or run.plan.rank.largest(int(failed)) == 0


@contextmanager
def _saving(run: Run) -> Iterator[None]:
    """Convert errors while saving to a TrainingError that names the last checkpoint."""
    try:
        run.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, CheckpointError) as error:
        raise TrainingError(
            f"step {run.state.step}: cannot save ({_reason(error)}); {_what_is_left(run)}"
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    reason = " ".join(str(error).split())
    # PyTorch's archive writer does not pass on the error of the system.
    written = any(
        name in reason for name in ("PytorchStreamWriter", "inline_container", "iostream")
    )
    return f"{reason}; is the disk full?" if written else reason


def _what_is_left(run: Run) -> str:
    files = checkpoints.step_files(run.folder.checkpoints)
    if not files:
        return "no checkpoint was saved before, start again with resume=True"
    return f"the last checkpoint is {files[0]}, go on with resume=True"


def _seconds_so_far(run: Run) -> float:
    lines = folders.records(run.folder)
    return float(lines[-1].get("seconds", 0.0)) if lines else 0.0
