"""``scoresde train``: a run in its folder, from the configuration to exported weights."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.build import build_dataset, build_model, build_optimizer, build_plan
from scoresde.cli import folder as folders
from scoresde.cli.console import pick_device
from scoresde.cli.cost import flops, memory, peak, short
from scoresde.cli.folder import RunFolder, environment
from scoresde.cli.levels_plot import levels_plot
from scoresde.cli.options import TrainOptions
from scoresde.cli.preview import save_preview
from scoresde.cli.processes import (
    World,
    backend_of,
    jointly,
    own_device,
    require_same,
    share_of,
    together,
)
from scoresde.cli.report import Report, Stopping, Window
from scoresde.config import Config, config_from, load_config, override, to_plain, to_yaml
from scoresde.data import Dataset, Split, holdout
from scoresde.data.dataset import reading
from scoresde.evaluation.figures import loss_curve
from scoresde.training import (
    Best,
    Checkpoint,
    CheckpointError,
    Metrics,
    Plan,
    TrainingError,
    TrainState,
    describe,
    export_weights,
    fit,
    held_out_loss,
    start,
)
from scoresde.training import checkpoint as checkpoints
from scoresde.training.levels import LossByLevel
from scoresde.training.precision import lay_out
from scoresde.training.shares import Share
from scoresde.training.snapshots import save_snapshots

# Enough for a held-out loss that ranks checkpoints: its numbers are the same at every step.
HELD_OUT_EVALUATIONS = 2048

# What may change when a run goes on: how long, how often it reports, what training ignores.
EVERY = ("log", "validate", "sample", "checkpoint", "posthoc")
REPORTS = tuple(f"train.{name}_every" for name in EVERY)
# The learning rate and the clipping are the remedies for a loss that is not finite.
REMEDIES = ("train.lr", "train.clip")
FREE = ("train.steps", "train.keep", "data.path", "sample", "likelihood", *REMEDIES, *REPORTS)
SAME = "start all processes with the same configuration and folder"


@dataclass
class Run:
    """What a run is made of; ``best`` and what ``state`` holds change as it goes."""

    config: Config
    folder: RunFolder
    dataset: Dataset
    split: Split
    held_out: Split | None
    plan: Plan
    state: TrainState
    flops: int
    best: Best | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.plan.share.rank == 0


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """The command: train, resume, or with --dry-run only say what would be trained."""
    world = World.found()
    if options.dry_run:
        text = summary(_config(options, overrides), share_of(world))
        print(text) if world.rank == 0 else None
        return 0
    if options.out is None:
        raise ValueError("--out is missing; name the run folder to write, such as --out runs/demo")
    with together(world, backend_of(options.device)):
        train_run(
            jointly(world, lambda: _config(options, overrides)),
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            world=world,
        )
    return 0


def train_run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    world: World | None = None,
) -> Path:
    """Train a configuration in the folder ``out`` and return that folder.

    Processes of a ``world``, whose process group exists, share every batch; the first one writes.

    Nothing on disk is touched before configuration, data and model are known to fit. Raises
    ValueError for bad input or while another process trains there, TrainingError for a failure on
    the way, and SystemExit with 130 or 143 after SIGINT or SIGTERM, a checkpoint being saved.
    """
    world = world or World()

    def claimed() -> RunFolder:
        return folders.claim(out, resume=resume, overwrite=overwrite)

    folder = jointly(world, lambda: claimed() if world.rank == 0 else RunFolder(Path(out)))
    jointly(world, lambda: require_same(world, _flat(to_plain(config)), SAME))
    where = own_device(pick_device(device), world)
    current = jointly(world, lambda: prepare(config, folder, where, share_of(world)))
    with ExitStack() as stack:

        def lock() -> None:
            if current.leads:
                stack.enter_context(folders.locked(folder))
                claimed()  # is it still free?

        jointly(world, lock)
        notes = jointly(world, lambda: restore(current)) if resume else []
        jointly(world, lambda: require_same(world, {"step": current.state.step}, SAME))
        if current.leads:
            _write_start(current, where)
        notes.append(introduction(current, where))
        steps, step = current.plan.steps, current.state.step
        with Report(folder.log, steps, step, quiet=not current.leads) as report:
            _to_the_end(current, report, notes)
    return folder.path


def prepare(
    config: Config, folder: RunFolder, device: torch.device, share: Share | None = None
) -> Run:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    dataset = build_dataset(config.data)
    plan = replace(build_plan(config, dataset), share=share or Share())
    split, held_out = _splits(config, dataset)
    model = build_model(config, dataset).to(device)
    cost = flops(model, tuple(dataset.shape), plan.classes)
    if config.train.channels_last:
        lay_out(model)
    optimizer = build_optimizer(config.train, model.parameters())
    state = start(model, optimizer, config.train.posthoc)
    if config.train.compile:
        model.net.compile()  # the averages are copies that are not
    return Run(config, folder, dataset, split, held_out, plan, state, cost)


def restore(run: Run) -> list[str]:
    """Take the run back to its newest good checkpoint, and return what to tell the user.

    A run stopped before its first one starts anew. Raises ValueError if none is good, or it is of
    another configuration, other data, or a later step than the run is to end at.
    """
    if not checkpoints.step_files(run.folder.checkpoints):
        return [_nothing_to_restore(run)]
    path, found, passed_over = checkpoints.newest(run.folder.checkpoints)
    changed = _require_same(run, found, path)
    checkpoints.load_tensors(run.state.model, found.model, path)
    checkpoints.load_tensors(run.state.ema, found.ema, path)
    for sigma_rel, average in run.state.averages.items():
        checkpoints.load_tensors(average, found.averages.get(str(sigma_rel), {}), path)
    run.state.optimizer.load_state_dict(found.optimizer)
    run.state.step, run.state.scale, run.best = found.step, found.scale, found.best
    if run.leads:
        folders.rewind(run.folder, found.step)
    notes = [f"passed over {line}" for line in passed_over] + [f"resumed from {path}"]
    notes += [f"changed from here on: {'; '.join(changed)}"] if changed else []
    return notes + _check_best(run)


def _nothing_to_restore(run: Run) -> str:
    if run.folder.weights.exists():
        raise ValueError(
            f"{run.folder.checkpoints}: no checkpoint is left of this finished run; start anew "
            f"with --overwrite, or in another --out"
        )
    return f"{run.folder.path}: no checkpoint yet, starting at step 0"


def _write_start(run: Run, device: torch.device) -> None:
    """The configuration, and for a run from step 0 an empty folder and its environment."""
    begins = run.state.step == 0
    if begins:
        folders.clear(run.folder)
    found = environment(str(device)) if begins else None
    folders.write_start(run.folder, to_yaml(run.config), found)


def _to_the_end(run: Run, report: Report, notes: Sequence[str]) -> None:
    """Train and export; a disk that fails on the way leaves the last checkpoint."""
    try:
        for note in notes:
            report.say(note)
        with Stopping() as stop:
            _train(run, report, stop)
            report.say(finish(run) if run.leads else "")
    except TrainingError:
        if run.leads:
            raise
        raise SystemExit(1) from None  # it is that of all processes, and said by the first
    except OSError as error:
        raise TrainingError(f"{_reason(error)}; {_what_is_left(run)}") from error


def _train(run: Run, report: Report, stop: Stopping) -> None:
    every, window = run.config.train, _window(run)
    for metrics, seconds in _steps(run):
        window.add(metrics, seconds)
        step = metrics.step
        held_out = _validate(run) if _due(run, every.validate_every) else None
        if held_out is not None or _due(run, every.log_every):
            record = window.record(metrics, run.plan, held_out)
            record |= _costs(run, record["images_per_second"])
            if run.leads:
                folders.append(run.folder, record)
            report.line(record)
        report.advance(step)
        if run.leads and _due(run, every.sample_every):
            save_preview(run.folder.sample(step), run.state.ema, run.dataset, run.plan.classes)
        if run.leads and every.posthoc and _due(run, every.posthoc_every):
            with _saving(run):
                save_snapshots(run.folder.averages, snapshot(run))
        # Signals reach the processes at different steps; all of them stop at one.
        stopped = run.plan.share.largest(stop.signal or 0)
        if run.leads and (stopped or _due(run, every.checkpoint_every)):
            _save(run)
        if stopped and step < run.plan.steps:
            name = signal.Signals(stopped).name
            report.say(f"{name} at step {step}: checkpoint saved, go on with --resume")
            raise SystemExit(128 + stopped)


def _window(run: Run) -> Window:
    levels = LossByLevel(run.state.model.sde)
    return Window(_seconds_so_far(run), levels, skipped=run.state.scale.skipped)


def _costs(run: Run, images_per_second: float) -> dict[str, float]:
    """The operations a second of the model, their share of the device's peak, and the memory."""
    device = next(run.state.model.parameters()).device
    rate, most = images_per_second * run.flops, peak(device)
    found = {"flops_per_second": rate, "memory": memory(device)}
    share = run.plan.share
    return found if most is None else found | {"utilisation": rate / most / share.size}


def _steps(run: Run) -> Iterator[tuple[Metrics, float]]:
    """Updates with the seconds each took; a failure names the checkpoint that is left."""
    begin = time.perf_counter()
    try:
        for metrics in fit(run.state, run.plan, run.split, run.dataset.scaling):
            yield metrics, time.perf_counter() - begin
            begin = time.perf_counter()
    except TrainingError as error:
        raise TrainingError(f"{error}; {_what_is_left(run)}") from error


def _validate(run: Run) -> float | None:
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
        run.best = Best(run.state.step, loss)
        if run.leads and run.config.train.keep_best:
            with _saving(run):
                checkpoints.save(run.folder.best, snapshot(run))
    return loss


def snapshot(run: Run) -> Checkpoint:
    """The checkpoint of the run as it stands."""
    state = run.state
    return Checkpoint(
        config=to_plain(run.config),
        data=describe(run.dataset),
        step=state.step,
        model=state.model.state_dict(),
        ema=state.ema.state_dict(),
        optimizer=state.optimizer.state_dict(),
        best=run.best,
        averages={str(width): a.state_dict() for width, a in state.averages.items()},
        scale=state.scale,
    )


def finish(run: Run) -> str:
    """Export the weights, the best on held-out data where kept, draw the loss, and say so."""
    keep_best = run.config.train.keep_best and run.best is not None
    with _saving(run):
        chosen = checkpoints.load(run.folder.best) if keep_best else snapshot(run)
        export_weights(run.folder.weights, chosen)
    lines = folders.records(run.folder)
    if lines:
        loss_curve(run.folder.loss, lines)
        levels_plot(run.folder.levels, lines)
    why = f" (held-out loss {run.best.loss:.4f}, the least)" if keep_best and run.best else ""
    return f"{run.folder.weights}: EMA weights of step {chosen.step}{why}"


def introduction(run: Run, device: torch.device) -> str:
    """What is trained on what, in a line."""
    held_out = 0 if run.held_out is None else len(run.held_out)
    return (
        f"{run.folder.path}: {parameters(run.state.model):,} parameters on {device}, "
        f"{run.dataset.name} {tuple(run.dataset.shape)}, {len(run.split)} training and {held_out} "
        f"held-out examples, steps {run.state.step} to {run.plan.steps}, "
        f"batches of {run.plan.batch}"
    )


def summary(config: Config, share: Share) -> str:
    """What --dry-run prints: configuration, number of parameters, how the batch is split."""
    dataset = build_dataset(config.data)
    plan = replace(build_plan(config, dataset), share=share)
    model = build_model(config, dataset)
    cost = flops(model, tuple(dataset.shape), plan.classes)
    part = plan.batch // (plan.accumulate * share.size)
    processes = f"{share.size} process{'es' * (share.size > 1)}"
    return (
        f"{to_yaml(config)}# {parameters(model):,} parameters; data {dataset.name} "
        f"{tuple(dataset.shape)}\n"
        f"# {short(cost)}FLOP an example, forward and backward; {short(cost * plan.batch)}FLOP a "
        f"step, {short(cost * plan.batch * plan.steps)}FLOP in all\n"
        f"# batch {plan.batch}: {plan.accumulate} x {part} on each of {processes}"
    )


def parameters(model: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(p.numel() for p in model.parameters())


def _config(options: TrainOptions, overrides: Mapping[str, Any]) -> Config:
    """That of the file given, or the one the run to resume has stored, changed by the flags."""
    if options.config is not None or not (options.resume and options.out):
        return load_config(options.config, overrides)
    folder = RunFolder(options.out)
    if folder.config.exists() or not folder.is_run():
        return load_config(folder.config if folder.is_run() else None, overrides)
    if not checkpoints.step_files(folder.checkpoints):
        raise ValueError(f"{folder.config}: missing, and no checkpoint has it; give --config")
    path, found, _ = checkpoints.newest(folder.checkpoints)
    return override(config_from(found.config, path), overrides)


def _splits(config: Config, dataset: Dataset) -> tuple[Split, Split | None]:
    if config.train.holdout == 0:
        return dataset.train, None
    with reading("train.holdout"):
        split, held_out = holdout(dataset.train, config.train.holdout, config.seed)
    # Every update on the whole of a large set would cost more than it tells.
    return split, held_out.take(torch.arange(min(len(held_out), HELD_OUT_EVALUATIONS)))


def _due(run: Run, every: int) -> bool:
    return run.state.step % every == 0 or run.state.step == run.plan.steps


def _save(run: Run) -> None:
    with _saving(run):
        checkpoints.save_step(run.folder.checkpoints, snapshot(run), run.config.train.keep)


@contextmanager
def _saving(run: Run) -> Iterator[None]:
    """Turn what goes wrong while saving into a TrainingError that names what is left."""
    run.folder.checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except (OSError, RuntimeError, CheckpointError) as error:
        raise TrainingError(
            f"step {run.state.step}: cannot save ({_reason(error)}); {_what_is_left(run)}"
        ) from error


def _reason(error: Exception) -> str:
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


def _check_best(run: Run) -> list[str]:
    """Forget a best checkpoint that cannot be read, so that the next one takes its place."""
    if run.best is None or not run.config.train.keep_best:
        return []
    try:
        checkpoints.load(run.folder.best)
    except CheckpointError as error:
        run.best = None
        return [f"passed over {error}"]
    return []


def _require_same(run: Run, found: Checkpoint, path: Path) -> list[str]:
    """What has changed among what may, a phrase each.

    Raises ValueError unless a run of this configuration and data can go on from there.
    """
    # Read as a configuration, for what an older version has not written has its default.
    stored = config_from(found.config, path)
    ours, theirs = _flat(to_plain(run.config)), _flat(to_plain(stored))
    changed = {
        key: f"{key}={ours.get(key)} was {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }
    if other := [line for key, line in changed.items() if not _free(key)]:
        raise ValueError(
            f"{path}: trained with another configuration ({'; '.join(other)}); restore these "
            f"values, or train in another --out"
        )
    if found.step > run.plan.steps:
        raise ValueError(
            f"--train.steps {run.plan.steps}: the run is at step {found.step} already; give more"
        )
    if replace(found.data, name=run.dataset.name) != describe(run.dataset):
        raise ValueError(f"{path}: trained on other data ({found.data}); give the same data")
    return list(changed.values())


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
