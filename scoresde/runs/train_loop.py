"""Loop of a training run, with its periodic records, pictures and checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from scoresde.evaluation.figures import loss_curve
from scoresde.runs import folder as folders
from scoresde.runs.compiling import compiling
from scoresde.runs.cost import memory, peak
from scoresde.runs.levels_plot import levels_plot
from scoresde.runs.log import Log, Window
from scoresde.runs.preview import save_preview
from scoresde.runs.scalars import Add, writing_scalars
from scoresde.runs.train_setup import Run, snapshot
from scoresde.training import (
    Best,
    Checkpoint,
    CheckpointError,
    Metrics,
    TrainingError,
    export_weights,
    fit,
)
from scoresde.training import checkpoint as checkpoints
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.snapshots import save_snapshots

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
                log.say(finish(run))
    except TrainingError:
        if run.leads:
            raise
        raise SystemExit(1) from None  # the same error in all processes; the first reports it
    except OSError as error:
        raise TrainingError(f"{_reason(error)}; {_what_is_left(run)}") from error
    return stopped


def _train(run: Run, log: Log, stop: Stop, add: Add) -> int:
    every = run.reporting
    window = Window(
        _seconds_so_far(run), LossByNoise(run.state.model.sde), skipped=run.state.scale.skipped
    )
    for metrics, seconds in _steps(run):
        window.add(metrics, seconds)
        held_out = _validate(run, log) if due(run, every.validate_every) else None
        if held_out is not None or due(run, every.log_every):
            record = window.record(metrics, run.plan, held_out)
            record |= _costs(run, record["images_per_second"])
            if run.leads:
                folders.append(run.folder, record)
                add(record)
            log.record(record)
        log.advance(metrics.step)
        if due(run, every.sample_every) and (run.leads or run.plan.shard):
            # If the average is sharded, all processes have to draw.
            path = run.folder.sample(run.state.step) if run.leads else None
            save_preview(path, run.state.ema, run.dataset, run.plan.classes)
        if run.plan.posthoc and due(run, every.posthoc_every):
            _save(run, log, partial(save_snapshots, run.folder.averages))
        # Signals reach the processes at different steps; all of them stop at the same step.
        stopped = run.plan.rank.largest(stop())
        if stopped or due(run, every.checkpoint_every):
            write = partial(checkpoints.save_step, run.folder.checkpoints, keep=every.keep)
            _save(run, log, write, must=bool(stopped))
        if stopped and metrics.step < run.plan.steps:
            name = signal.Signals(stopped).name
            log.say(f"{name} at step {metrics.step}: checkpoint saved; resume the run to go on")
            return stopped
    return 0


def _costs(run: Run, images_per_second: float) -> dict[str, float]:
    """Operations per second, their fraction of the device's peak, and peak memory."""
    device = run.state.model.device
    rate, most = images_per_second * run.flops, peak(device)
    found = {"flops_per_second": rate, "memory": memory(device)}
    return found if most is None else found | {"utilisation": rate / most / run.plan.rank.size}


def timed_steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Yield each update with its duration in seconds; errors name a remedy."""
    begin = time.perf_counter()
    try:
        # Only this process may fail, so raise no TrainingError, which only the first reports.
        with compiling("train.compile"):
            for metrics in fit(run.state, run.plan, run.split, run.dataset.scaling):
                yield metrics, time.perf_counter() - begin
                begin = time.perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise RuntimeError(
            f"step {run.state.step + 1}: out of memory with batch={run.plan.batch}; lower "
            f"batch, or raise accumulate={run.plan.accumulate}"
        ) from error


def _steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Run ``timed_steps``; its errors also name the last checkpoint."""
    try:
        yield from timed_steps(run)
    except TrainingError as error:
        raise TrainingError(f"{error}; {_what_is_left(run)}") from error


def _is_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in NO_MEMORY)


def _validate(run: Run, log: Log) -> float | None:
    """Held-out loss of the average; the best step so far is saved as a separate checkpoint."""
    loss = run.held_out_loss()
    if loss is None:
        return None
    if not math.isfinite(loss):
        raise TrainingError(f"step {run.state.step}: held-out loss {loss}; {_what_is_left(run)}")
    if run.best is None or loss < run.best.loss:
        before, run.best = run.best, Best(run.state.step, loss)
        write = partial(checkpoints.save, run.folder.best)
        if run.reporting.keep_best and not _save(run, log, write):
            run.best = before
    return loss


def finish(run: Run) -> str:
    """Export the best or latest weights, plot the loss, and return a line for the user."""
    keep_best = run.reporting.keep_best and run.best is not None
    last = None if keep_best else snapshot(run)
    if not run.leads:
        return ""
    with _saving(run):
        chosen = last or checkpoints.load(run.folder.best)
        export_weights(run.folder.weights, chosen)
        for decay, average in chosen.decays.items():
            export_weights(run.folder.weights_of(decay), replace(chosen, ema=average))
    lines = folders.records(run.folder)
    if lines:
        loss_curve(run.folder.loss, lines)
        levels_plot(run.folder.levels, lines)
    why = f" (held-out loss {run.best.loss:.4f}, the lowest)" if keep_best and run.best else ""
    return f"{run.folder.weights}: EMA weights of step {chosen.step}{why}"


def due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.steps


def _save(
    run: Run, log: Log, write: Callable[[Checkpoint], object], *, must: bool = False
) -> bool:
    """Write a snapshot of the run in the leading process; returns True on success.

    A failure raises TrainingError at the last step, with ``must``, or if ``on_failed_save`` is
    "stop". Otherwise it is only reported.
    """
    found, failed = snapshot(run), False
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
