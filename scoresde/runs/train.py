"""Training as a library function: a configuration, or a model of a program's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scoresde.config import (
    Config,
)
from scoresde.data import Dataset
from scoresde.latent import Codec
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, bar, silent
from scoresde.runs import folder as folders
from scoresde.runs.engine import run_in
from scoresde.runs.folder import RunFolder
from scoresde.runs.load import coefficients, load
from scoresde.runs.log import Listener, Quiet, Shown
from scoresde.runs.processes import (
    World,
    backend_of,
    jointly,
    own_device,
    pick_device,
    rank_of,
    together,
)
from scoresde.runs.settings import changed, changes_of, config_of, with_data
from scoresde.runs.stopping import Stopping
from scoresde.runs.train_loop import Stop, in_memory
from scoresde.runs.train_resume import stored_config
from scoresde.runs.train_setup import NOWHERE, Task, prepare, takes_labels
from scoresde.training import checkpoint as checkpoints

OWN = (
    "a ScoreModel or a configuration",
    "a network becomes a model by ScoreModel(network, process, parameterization)",
)


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
    codec: Codec | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    listener: Listener | None = None,
    progress: Progress = bar,
    **settings: Any,
) -> Trained:
    """Train a model on data, in a run folder or in memory.

    An interrupt (Ctrl-C) stops after the step: the model so far is returned and, with ``out``,
    saved. Before the first step it ends the call. Raises ValueError for bad input before anything
    is written, TrainingError for a failure on the way.

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
        codec: codec whose latents are modelled in place of pictures, or its file or run folder;
            by default that of the model or the configuration.
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
    task = _task(model_or_config, data, seed, codec, settings, before, progress)
    if listener is None:
        listener = Quiet() if progress is silent else Shown(progress)
    world = World.found()
    with together(world, backend_of(device)), Stopping(late=True) as stopping:
        stop = stopping.number
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
    model = load(folder.path, own, task.codec)
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
    place = task.config.codec
    if overwrite and place is not None and Path(place).resolve() == Path(out).resolve():
        raise ValueError(
            f"codec: {place} is the run that overwrite replaces; train in another folder"
        )
    return run_in(
        out,
        partial(prepare, task, progress=progress, resume=resume),
        task.config,
        resume=resume,
        overwrite=overwrite,
        device=device,
        world=world,
        listener=listener,
        stop=stop,
    )


def _task(
    model_or_config: Any,
    data: Any,
    seed: int | None,
    codec: Codec | str | Path | None,
    settings: Mapping[str, Any],
    before: Config,
    progress: Progress,
) -> Task:
    """The task of a call of ``train``; a model without a configuration continues ``before``.

    Raises ValueError for settings that do not exist.
    """
    model = model_or_config if isinstance(model_or_config, ScoreModel) else None
    config = before if model is not None else config_of(model_or_config, Config, OWN)
    if settings.get("holdout") == 0:
        settings = {"keep_best": False, **settings}  # nothing to choose the best step by
    changes = changes_of(config, seed, settings, ("train",))
    if isinstance(codec, str | Path):
        changes["codec"], codec = str(codec), None
    config, dataset = with_data(config, data, progress)
    if model is not None:
        if dataset is None:
            raise ValueError("a model of your own needs data: give a tensor, a Dataset or a path")
        changes = {**_of_own_model(model, dataset), **changes}
    return Task(changed(config, changes), model, dataset, codec)


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


def _in_memory(
    task: Task, device: str, world: World, listener: Listener, progress: Progress, stop: Stop
) -> Trained:
    """Train without a folder: the weights of the least held-out loss are kept in memory."""
    where = own_device(pick_device(device), world)
    run = jointly(world, lambda: prepare(task, NOWHERE, where, rank_of(world), progress=progress))
    records, stopped = in_memory(run, listener, stop)
    model = run.state.ema
    model.data, model.config = run.description(), None if run.config.own else run.config
    return Trained(model, None, run.state.step, records, bool(stopped))
