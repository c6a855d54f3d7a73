"""The steps of a training run, and what happens at intervals: records, pictures, checkpoints."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from scoresde.cli.report import Report, Stopping, Window
from scoresde.evaluation.figures import loss_curve
from scoresde.runs import folder as folders
from scoresde.runs.cost import memory, peak
from scoresde.runs.levels_plot import levels_plot
from scoresde.runs.preview import save_preview
from scoresde.runs.scalars import Add, writing_scalars
from scoresde.runs.train_setup import HELD_OUT_EVALUATIONS, Run, snapshot
from scoresde.training import (
    Best,
    Checkpoint,
    CheckpointError,
    Metrics,
    TrainingError,
    export_weights,
    fit,
    held_out_loss,
)
from scoresde.training import checkpoint as checkpoints
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.snapshots import save_snapshots

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Where the errors of compiling come from; named, as importing them takes seconds."""


def to_the_end(run: Run, report: Report, notes: Sequence[str]) -> None:
    """Train and export; a disk that fails on the way leaves the last checkpoint."""
    try:
        for note in notes:
            report.say(note)
        told = run.folder.tensorboard if run.leads and run.config.train.tensorboard else None
        with Stopping() as stop, writing_scalars(told, run.state.step) as add:
            _train(run, report, stop, add)
            report.say(finish(run))
    except TrainingError:
        if run.leads:
            raise
        raise SystemExit(1) from None  # it is that of all processes, and said by the first
    except OSError as error:
        raise TrainingError(f"{_reason(error)}; {_what_is_left(run)}") from error


def _train(run: Run, report: Report, stop: Stopping, add: Add) -> None:
    every, window = run.config.train, _window(run)
    for metrics, seconds in _steps(run):
        window.add(metrics, seconds)
        held_out = _validate(run, report) if _due(run, every.validate_every) else None
        if held_out is not None or _due(run, every.log_every):
            _record(run, window.record(metrics, run.plan, held_out), report, add)
        report.advance(metrics.step)
        if _due(run, every.sample_every):
            _preview(run)
        if every.posthoc and _due(run, every.posthoc_every):
            _save(run, report, partial(save_snapshots, run.folder.averages))
        # Signals reach the processes at different steps; all of them stop at one.
        stopped = run.plan.rank.largest(stop.signal or 0)
        if stopped or _due(run, every.checkpoint_every):
            write = partial(checkpoints.save_step, run.folder.checkpoints, keep=every.keep)
            _save(run, report, write, must=bool(stopped))
        if stopped and metrics.step < run.plan.steps:
            name = signal.Signals(stopped).name
            report.say(f"{name} at step {metrics.step}: checkpoint saved, go on with --resume")
            raise SystemExit(128 + stopped)


def _record(run: Run, record: dict[str, Any], report: Report, add: Add) -> None:
    """A record with its costs, to everyone who keeps records."""
    record |= _costs(run, record["images_per_second"])
    if run.leads:
        folders.append(run.folder, record)
        add(record)
    report.line(record)


def _window(run: Run) -> Window:
    levels = LossByNoise(run.state.model.sde)
    return Window(_seconds_so_far(run), levels, skipped=run.state.scale.skipped)


def _costs(run: Run, images_per_second: float) -> dict[str, float]:
    """The operations a second of the model, their share of the device's peak, and the memory."""
    device = run.state.model.device
    rate, most = images_per_second * run.flops, peak(device)
    found = {"flops_per_second": rate, "memory": memory(device)}
    return found if most is None else found | {"utilisation": rate / most / run.plan.rank.size}


def _steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Updates with the seconds each took; a failure names the checkpoint that is left."""
    begin = time.perf_counter()
    try:
        for metrics in fit(run.state, run.plan, run.split, run.dataset.scaling):
            yield metrics, time.perf_counter() - begin
            begin = time.perf_counter()
    except TrainingError as error:
        raise TrainingError(f"{error}; {_what_is_left(run)}") from error
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())
        remedy = "give --train.no-compile, or the compiler it asks for"
        # Perhaps of this process alone: no TrainingError, which the first would say for all.
        raise RuntimeError(f"train.compile failed ({reason}); {remedy}") from error


def _validate(run: Run, report: Report) -> float | None:
    """The held-out loss of the average; the least so far is kept as a checkpoint of its own."""
    if run.held_out is None:
        return None
    loss = held_out_loss(
        run.state.ema,
        run.held_out,
        run.dataset.scaling,
        conditional=run.plan.classes is not None,
        dither=run.plan.dither,
        draws=max(1, HELD_OUT_EVALUATIONS // len(run.held_out)),
        seed=run.plan.seed,
    )
    if not math.isfinite(loss):
        raise TrainingError(f"step {run.state.step}: held-out loss {loss}; {_what_is_left(run)}")
    if run.best is None or loss < run.best.loss:
        before, run.best = run.best, Best(run.state.step, loss)
        write = partial(checkpoints.save, run.folder.best)
        if run.config.train.keep_best and not _save(run, report, write):
            run.best = before
    return loss


def finish(run: Run) -> str:
    """Export the weights, the best on held-out data where kept, draw the loss, and say so."""
    keep_best = run.config.train.keep_best and run.best is not None
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
    why = f" (held-out loss {run.best.loss:.4f}, the least)" if keep_best and run.best else ""
    return f"{run.folder.weights}: EMA weights of step {chosen.step}{why}"


def _due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.steps


def _preview(run: Run) -> None:
    """A picture of the average's samples; where it is split it takes all processes to draw."""
    if run.leads or run.config.train.shard:
        path = run.folder.sample(run.state.step) if run.leads else None
        save_preview(path, run.state.ema, run.dataset, run.plan.classes)


def _save(
    run: Run, report: Report, write: Callable[[Checkpoint], object], *, must: bool = False
) -> bool:
    """Write the run as it stands, in the process that writes; whether it was written.

    The last step must be, as where ``must`` says so. Another that cannot be written ends the run
    with a TrainingError, or is said, by ``train.on_failed_save``.
    """
    found, failed = snapshot(run), False
    stops = must or run.config.train.on_failed_save == "stop" or run.state.step == run.plan.steps
    if run.leads:
        try:
            with _saving(run):
                write(found)
        except TrainingError as error:
            if stops:
                raise
            reason = _reason(error.__cause__ or error)
            report.say(f"step {run.state.step}: cannot save ({reason}); going on all the same")
            failed = True
    return stops or run.plan.rank.largest(int(failed)) == 0


@contextmanager
def _saving(run: Run) -> Iterator[None]:
    """Turn what goes wrong while saving into a TrainingError that names what is left."""
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
    # PyTorch's archive writer does not pass on what the system said.
    written = any(
        name in reason for name in ("PytorchStreamWriter", "inline_container", "iostream")
    )
    return f"{reason}; is the disk full?" if written else reason


def _what_is_left(run: Run) -> str:
    files = checkpoints.step_files(run.folder.checkpoints)
    if not files:
        return "no checkpoint was saved before, start again with --resume"
    return f"the last checkpoint is {files[0]}, go on with --resume"


def _seconds_so_far(run: Run) -> float:
    lines = folders.records(run.folder)
    return float(lines[-1].get("seconds", 0.0)) if lines else 0.0
