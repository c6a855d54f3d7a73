"""Training as a library function: a configuration, or a model of a program's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde import registry
from scoresde.arguments import nearest
from scoresde.config import (
    Config,
    ConfigError,
    build_dataset,
    config_from,
    load_config,
    override,
    to_plain,
    to_yaml,
)
from scoresde.data import Dataset, dataset_of, kind_at
from scoresde.parameterization import ScoreModel, caution
from scoresde.progress import Progress, bar, silent
from scoresde.runs import folder as folders
from scoresde.runs.folder import RunFolder, environment
from scoresde.runs.load import coefficients, load
from scoresde.runs.log import LEGEND, Listener, Log, Quiet, Shown, Window
from scoresde.runs.processes import (
    World,
    backend_of,
    jointly,
    own_device,
    pick_device,
    rank_of,
    require_same,
    together,
)
from scoresde.runs.stopping import Stopping
from scoresde.runs.train_loop import Stop, due, timed_steps, to_the_end
from scoresde.runs.train_resume import flat, restore, stored_config
from scoresde.runs.train_setup import Run, Task, described, prepare, takes_labels
from scoresde.training import checkpoint as checkpoints
from scoresde.training import describe
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.precision import is_slow

EXAMPLES, SAME_DATA = "sha256 of the examples", "give all processes the same data"
LONG = 256
"""Tokens of a sentence, the cost of whose attention is worth a remark."""
SAME = "start all processes with the same options, configuration and folder"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, with its averaged weights and in evaluation mode, and where it came from.

    ``records`` are the lines of ``metrics.jsonl``. ``stopped`` says that an interrupt ended the
    training early; what there was is kept.
    """

    model: ScoreModel
    folder: Path | None
    step: int
    records: Sequence[Mapping[str, Any]]
    stopped: bool = False


def train(
    model_or_config: ScoreModel | Config | Mapping[str, Any] | str | Path,
    data: Any = None,
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    listener: Listener | None = None,
    progress: Progress = bar,
    **settings: Any,
) -> Trained:
    """Train a model on data, in a run folder or in memory.

    An interrupt (Ctrl-C) stops after the step: the model so far is returned and, with ``out``,
    saved. Raises ValueError for bad input before anything is written, TrainingError for a failure
    on the way.

    Args:
        model_or_config: a ``ScoreModel``, whose network, process and parameterisation may be a
            program's own; or a configuration, as an object, a mapping or a YAML file. Parameters
            that are frozen stay so, unless all are, as in a loaded model.
        data: a tensor, an array, a pair (x, label), a pair of x and a mapping of columns by name,
            a torch ``Dataset``, a ``Dataset`` of ours or a path; by default the data set of the
            configuration. Real numbers are standardised.
        out: run folder to write, that of ``scoresde train``; without one nothing is written.
        steps: optimiser steps.
        batch: examples per step.
        lr: learning rate.
        seed: random seed of the weights, the data order and every draw.
        resume: go on with the run in ``out`` from its newest checkpoint, to the same bits. What is
            not given is as it was.
        overwrite: start anew in a folder that holds a run.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
        listener: receives what the run reports; by default its remarks are printed on standard
            error, and ``progress`` shows steps and loss.
        progress: shows a count of items, such as ``scoresde.progress.silent``.
        settings: further settings of training, those of ``Plan`` and ``Reporting``.
    """
    given = {"steps": steps, "batch": batch, "lr": lr, **settings}
    before = stored_config(out) if resume and out is not None else Config()
    settings = {k: v for k, v in given.items() if v is not None}
    task = _task(model_or_config, data, seed, settings, before, progress)
    if listener is None:
        listener = Quiet() if progress is silent else Shown(progress)
    world = World.found()
    with together(world, backend_of(device)), Stopping() as stopping:
        stop = partial(_signal, stopping)
        if out is None:
            if resume or overwrite:
                raise ValueError("resume and overwrite need out, the folder of the run")
            return _in_memory(task, device, world, listener, progress, stop)
        stopped = train_run(
            task,
            out,
            resume=resume,
            overwrite=overwrite,
            device=device,
            world=world,
            listener=listener,
            progress=progress,
            stop=stop,
        )
    folder, own = RunFolder(Path(out)), None if task.model is None else deepcopy(task.model)
    model = load(folder.path, own)
    step = checkpoints.step_of(checkpoints.step_files(folder.checkpoints)[0])
    return Trained(model, folder.path, step, folders.records(folder), bool(stopped))


def train_run(
    task: Task | Config,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    world: World | None = None,
    listener: Listener | None = None,
    progress: Progress = silent,
    stop: Stop = lambda: 0,
) -> int:
    """Train in the folder ``out``; the signal that stopped it, or 0 when it came to its end.

    Processes of a ``world``, whose process group exists, share every batch; the first one writes.
    Nothing on disk is touched before configuration, data and model are known to fit. Raises
    ValueError for bad input or while another process trains there, TrainingError for a failure on
    the way.
    """
    task = Task(task) if isinstance(task, Config) else task
    world = world or World()
    claim = partial(folders.claim, out, resume=resume, overwrite=overwrite)
    folder = jointly(world, lambda: claim() if world.rank == 0 else RunFolder(Path(out)))
    values = flat(to_plain(task.config)) | {"resume": resume}
    jointly(world, lambda: require_same(world, values, SAME))
    where = own_device(pick_device(device), world)
    run = jointly(world, lambda: prepare(task, folder, where, rank_of(world), progress))
    jointly(world, lambda: require_same(world, {EXAMPLES: run.contents}, SAME_DATA))
    with ExitStack() as stack:
        jointly(world, lambda: _lock(run, stack, claim))
        notes = jointly(world, lambda: restore(run)) if resume else []
        jointly(world, lambda: require_same(world, {"step": run.state.step}, SAME))
        if run.leads:
            _write_start(run, where)
        log = Log(run.folder.log, listener or Quiet(), run.plan, quiet=not run.leads)
        with log:
            for line in [*notes, introduction(run, where), *remarks(run, where), LEGEND]:
                log.say(line)
            return to_the_end(run, log, stop)


def introduction(run: Run, device: torch.device) -> str:
    """One-line summary of model, data and steps."""
    held_out = 0 if run.held_out is None else len(run.held_out)
    return (
        f"{run.folder.path}: {parameters(run.state.model):,} parameters on {device}, "
        f"{run.dataset.name} {tuple(run.dataset.shape)}, {len(run.split)} training and {held_out} "
        f"held-out examples, steps {run.state.step} to {run.plan.steps}, "
        f"batches of {run.plan.batch}"
    )


def remarks(run: Run, device: torch.device) -> list[str]:
    """Remarks on the data as they were read, and on settings that have another effect."""
    plan, model = run.plan, run.state.model
    found = [*run.dataset.notes, *described(run.dataset.counts)]
    told = plan.classes is not None or "label" in model.conditions
    if run.dataset.classes is not None and not told:
        why = "the network takes no label" if run.config.own else "conditional is false"
        found.append(f"the classes are not learned: {why}")
    for name, condition in model.conditions.items():
        if (longest := getattr(condition, "longest", 0)) > LONG:
            found.append(
                f"{name}: the longest sentence has {longest} tokens, and all are padded to as "
                "many; shorten it if it is an exception"
            )
    if (line := caution(model.parameterization, model.sde)) is not None:
        found.append(line)
    if frozen := sum(p.numel() for p in model.parameters() if not p.requires_grad):
        found.append(f"{frozen:,} of {parameters(model):,} parameters are frozen")
    if is_slow(plan.precision, device):
        found.append(
            f"train.precision={plan.precision} is slower than float32 on this CPU, which has no "
            "instructions for it"
        )
    if plan.warmup_steps < plan.warmup:
        found.append(
            f"train.warmup={plan.warmup} is longer than the {plan.steps} steps of the run: "
            f"shortened to {plan.warmup_steps}"
        )
    return found


def parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included."""
    return sum(p.numel() for p in model.parameters())


def _task(
    model_or_config: Any,
    data: Any,
    seed: int | None,
    settings: Mapping[str, Any],
    before: Config,
    progress: Progress,
) -> Task:
    """The task of a call of ``train``; a model without a configuration continues ``before``.

    Raises ValueError for settings that do not exist.
    """
    model = model_or_config if isinstance(model_or_config, ScoreModel) else None
    config = before if model is not None else _config_of(model_or_config)
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if settings.get("holdout") == 0:
        settings = {"keep_best": False, **settings}  # nothing to choose the best step by
    for name, value in settings.items():
        if name not in config.train.values:
            raise ValueError(
                f"{name}: no setting of training; {nearest(name, config.train.values)}"
            )
        for key, plain in _plain(name, value).items():
            changes[f"train.{name}{key}"] = plain
    dataset: Dataset | None = None
    if isinstance(data, str | Path):
        place = str(Path(data).expanduser().resolve())
        config = override(config, {"data.kind": kind_at(Path(data)), "data.path": place})
        dataset = build_dataset(config.data, progress)
    elif data is not None:
        # All that is in memory is trained on; the run holds examples out of it by itself.
        dataset = dataset_of(data, holdout=0)
        changes |= {"data.kind": "arrays", "data.path": None}
    if model is not None:
        if dataset is None:
            raise ValueError("a model of your own needs data: give a tensor, a Dataset or a path")
        changes = {**_of_own_model(model, dataset), **changes}
    try:
        return Task(override(config, changes), model, dataset)
    except ConfigError as error:  # settings are arguments here, and keys below "train" there
        raise ConfigError(re.sub(r"(?:^|(?<=; ))train\.(?=\w)", "", str(error))) from None


def _config_of(source: Any) -> Config:
    """A configuration from an object, a YAML file or a mapping. Raises ValueError for others."""
    match source:
        case Config():
            return source
        case str() | Path():
            return load_config(source)
        case Mapping():
            return config_from(source, "configuration")
        case _:
            raise ValueError(
                f"need a ScoreModel or a configuration, got {type(source).__name__}; a network "
                "becomes a model by ScoreModel(network, process, parameterization)"
            )


def _of_own_model(model: ScoreModel, dataset: Dataset) -> dict[str, Any]:
    """The keys of a configuration that a program's own model decides."""
    changes: dict[str, Any] = {
        "own": coefficients(model),
        "self_conditioning": model.self_conditioning,
    }
    built_without = hasattr(model.net, "classes") and model.classes is None
    table = takes_labels(model.net) and not built_without and "label" not in model.conditions
    if dataset.classes is not None and table:
        changes["conditional"] = True
        # Only networks that say so take the number of classes for "no class".
        if getattr(model.net, "classes", None) is None:
            changes["train.label_dropout"] = 0.0
    return changes


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A setting as a configuration has it: an object becomes its name, and the keys below it."""
    table = registry.table_of(name)
    if table is None or isinstance(value, str | Mapping):
        return {"": value}
    for entry_name, entry in table.items():
        if table.constructs and type(value) is entry and is_dataclass(value):
            keys = {f".{f.name}": getattr(value, f.name) for f in fields(value)}
            return {".kind": entry_name, **keys}
    return {".kind" if table.constructs else "": table.name_of(value)}


def _signal(stopping: Stopping) -> int:
    return stopping.signal or 0


def _lock(run: Run, stack: ExitStack, claim: Callable[[], object]) -> None:
    """Keep others out of the folder until the stack ends, and see whether it is still free."""
    if run.leads:
        stack.enter_context(folders.locked(run.folder))
        claim()


def _write_start(run: Run, device: torch.device) -> None:
    """The configuration, and for a run from step 0 an empty folder and its environment."""
    begins = run.state.step == 0
    if begins:
        folders.clear(run.folder)
    found = environment(str(device)) if begins else None
    folders.write_start(run.folder, to_yaml(run.config), found)


def _in_memory(
    task: Task, device: str, world: World, listener: Listener, progress: Progress, stop: Stop
) -> Trained:
    """Train without a folder: the weights of the least held-out loss are kept in memory."""
    where = own_device(pick_device(device), world)
    nowhere = RunFolder(Path())
    run = jointly(world, lambda: prepare(task, nowhere, where, rank_of(world), progress))
    window = Window(0.0, LossByNoise(run.state.model.sde))
    records: list[dict[str, Any]] = []
    least, best, stopped = float("inf"), None, 0
    with Log(None, listener, run.plan, quiet=not run.leads) as log:
        for line in remarks(run, where):
            log.say(line)
        log.begin(0)
        for metrics, seconds in timed_steps(run):
            window.add(metrics, seconds)
            held_out = run.held_out_loss() if due(run, run.reporting.validate_every) else None
            if held_out is not None and run.reporting.keep_best and held_out < least:
                least, best = held_out, deepcopy(run.state.ema.state_dict())
            if held_out is not None or due(run, run.reporting.log_every):
                records.append(window.record(metrics, run.plan, held_out))
                log.record(records[-1])
            log.advance(metrics.step)
            if stopped := run.plan.rank.largest(stop()):
                break
    model = run.state.ema
    if best is not None:
        model.load_state_dict(best)
    model.eval().requires_grad_(False)
    about = describe(run.dataset, run.told)
    model.data, model.config = about, None if run.config.own else run.config
    return Trained(model, None, run.state.step, records, bool(stopped))
