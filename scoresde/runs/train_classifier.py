"""Training of a classifier of noisy states, for ``guidance.classifier``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Natural, Positive, check
from scoresde.atomic import atomic_write
from scoresde.config import build_dataset
from scoresde.data import Dataset, Examples, Scaling, dataset_of, holdout
from scoresde.guidance import NoisyClassifier
from scoresde.latent.latents import latents_of
from scoresde.nn import ImageClassifier, VectorClassifier
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, bar
from scoresde.runs.compatibility import require_same_data
from scoresde.runs.processes import pick_device
from scoresde.runs.stopping import Stopping
from scoresde.sde import SDE, sent
from scoresde.training import Plan
from scoresde.training.batches import derived_seed, draw_batch
from scoresde.training.checkpoint import CheckpointError, load_tensors
from scoresde.training.loop import TrainingError
from scoresde.training.safe_files import (
    DAMAGE,
    FORMAT,
    REMEDY,
    brief,
    read_archive,
    require_file,
    require_kind,
    require_version,
)
from scoresde.training.times import LogSNR

KIND = "scoresde-classifier"
HELD = 0.1  # fraction of the examples that measures the accuracy
RATIOS = (0.1, 0.5, 1.0, 2.0, 5.0)  # sigma / alpha


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A classifier in evaluation mode, the updates made, and its accuracy on held-out examples.

    ``accuracy`` is by sigma / alpha. ``stopped`` says that an interrupt ended the training early.
    """

    model: NoisyClassifier
    step: int
    accuracy: Mapping[float, float]
    stopped: bool = False


def train_classifier(
    model: ScoreModel,
    data: Any = None,
    *,
    out: str | PathLike[str] | None = None,
    steps: Count = 2000,
    batch: Count = 128,
    lr: Positive = 1e-3,
    width: Count = 32,
    seed: Natural = 0,
    checkpoint_every: Count = 500,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = bar,
) -> TrainedClassifier:
    """Train a classifier of the noisy states of a model: cross-entropy over uniform lam.

    The random numbers of a step are functions of (seed, step), so a resumed training gives the
    same bits. An interrupt (Ctrl-C) stops after the step and saves. Raises ValueError for bad
    input before anything is written, TrainingError for a loss that is not finite.

    Args:
        model: the score model to guide, whose process, units and classes it has.
        data: labelled data, as ``train`` takes them; by default those of the model's run.
        out: file to write, such as classifier.pt; without one nothing is written.
        steps: optimiser steps; the learning rate falls to 0 along a cosine.
        batch: examples per step.
        lr: learning rate after the warm-up.
        width: channels at full resolution, or a quarter of the hidden units for vectors.
        seed: random seed of the weights, the data order and every draw.
        checkpoint_every: steps between two checkpoints.
        resume: go on with the training in ``out``.
        overwrite: replace the file.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
        progress: shows a count of items.
    """
    given = {"steps": steps, "batch": batch, "lr": lr, "width": width, "seed": seed}
    check(train_classifier, {**given, "checkpoint_every": checkpoint_every})
    file = None if out is None else Path(out)
    _claim(file, resume, overwrite)
    dataset = _dataset(model, data, progress)
    scaling = dataset.scaling if model.data is None else model.data.scaling
    if model.codec is not None:
        where = pick_device(device)
        dataset = latents_of(dataset, model.codec, device=where, progress=progress)
        scaling = dataset.scaling
    plan = Plan(
        steps=steps,
        batch=batch,
        lr=lr,
        warmup=steps // 20,
        schedule="cosine",
        times=LogSNR(),
        label_dropout=0.0,
        seed=seed,
        classes=len(dataset.classes or ()),
    )
    split, held = holdout(dataset.train, HELD, seed)
    shape = tuple(dataset.shape)
    settings = {**given, "shape": list(shape), "classes": list(dataset.classes or ())}
    made = _made(settings, model.sde).to(pick_device(device))
    optimizer = torch.optim.Adam(made.parameters(), lr=lr)
    step = 0
    if file is not None and resume:
        entries = _read(file, model.sde)
        if (before := json.loads(entries["settings"])) != settings:
            changed = next(name for name in settings if settings[name] != before.get(name))
            raise ValueError(
                f"{file}: was trained with {changed}={before.get(changed)}, not "
                f"{settings[changed]}; give the same"
            )
        load_tensors(made.net, entries["net"], file)
        optimizer.load_state_dict(entries["optimizer"])
        step = int(entries["step"])
    stopped = False
    with Stopping() as stopping, progress(steps, "steps") as advance:
        advance(step)
        while step < steps and not stopped:
            loss = _update(made, optimizer, plan, split, scaling, step)
            step, stopped = step + 1, bool(stopping.signal)
            advance(1, f"loss {loss:.3f}")
            if file is not None and (stopped or step == steps or step % checkpoint_every == 0):
                _save(file, made, optimizer, settings, step)
    made.eval().requires_grad_(False)
    return TrainedClassifier(made, step, _accuracy(made, held, scaling, seed), stopped)


def load_classifier(path: str | PathLike[str], model: ScoreModel) -> NoisyClassifier:
    """The classifier of a file, for the model that it was trained for, in evaluation mode.

    Nothing is unpickled. Raises ValueError, naming the file, if it is missing, damaged, no
    classifier, or one of another process.
    """
    file = Path(path)
    entries = _read(file, model.sde)
    made = _made(json.loads(entries["settings"]), model.sde).to(model.device)
    load_tensors(made.net, entries["net"], file)
    return made.eval().requires_grad_(False)


def _update(
    model: NoisyClassifier,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    split: Examples,
    scaling: Scaling,
    step: int,
) -> float:
    b = draw_batch(plan, split, scaling, model.sde, step)
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate(step)
    device = next(model.parameters()).device
    x = sent(model.sde.perturb(b.x0, b.t, b.eps), device)
    assert b.label is not None  # draw_batch has said so
    loss = F.cross_entropy(model(x, b.t), sent(b.label, device))
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip or math.inf)
    value = float(loss.detach())
    if not math.isfinite(value + float(norm)):
        raise TrainingError(f"step {step + 1}: loss {value:g}; lower lr={plan.lr:g}")
    optimizer.step()
    return value


@torch.no_grad()
def _accuracy(
    model: NoisyClassifier, held: Examples, scaling: Scaling, seed: int
) -> dict[float, float]:
    """The share of held-out examples whose class is the most likely one, by sigma / alpha."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, "accuracy"))
    whole = held.take(torch.arange(min(len(held), 1000)))
    x0 = scaling.encode(whole.drawn(generator))
    found = {}
    for ratio in RATIOS:
        t = model.sde.time(-torch.tensor(ratio, dtype=torch.float64).log())
        x = model.sde.perturb(x0, t, torch.randn(x0.shape, generator=generator))
        right = model(sent(x, device), t).argmax(1).cpu() == whole.label
        found[ratio] = float(right.double().mean())
    return found


def _dataset(model: ScoreModel, data: Any, progress: Progress) -> Dataset:
    """Labelled data with the classes of the model. Raises ValueError for others."""
    if data is None and model.config is None:
        raise ValueError("data: the model names no data of its own; give labelled data")
    if data is None:
        dataset = build_dataset(model.config.data, progress)
    else:
        dataset = dataset_of(data, holdout=0)
    if not dataset.classes:
        raise ValueError(f"data: a classifier needs labels, and {dataset.name} has none")
    theirs = None if model.data is None else model.data.classes
    if theirs is not None and tuple(theirs) != tuple(dataset.classes):
        raise ValueError(f"data: {dataset.name} has not the classes of the model")
    if model.data is not None:
        require_same_data(dataset, model.data)
    return dataset


def _made(settings: Mapping[str, Any], sde: SDE) -> NoisyClassifier:
    """The classifier before its first update, with weights from the seed."""
    shape, classes, width = settings["shape"], settings["classes"], settings["width"]
    with torch.random.fork_rng([]):
        torch.manual_seed(derived_seed(settings["seed"], 0, "classifier"))
        net: nn.Module
        if len(shape) == 3:
            net = ImageClassifier(shape[0], len(classes), width=width)
        else:
            net = VectorClassifier(math.prod(shape), len(classes), width=4 * width)
        return NoisyClassifier(net, sde, classes)


def _claim(file: Path | None, resume: bool, overwrite: bool) -> None:
    if file is None and (resume or overwrite):
        raise ValueError("resume and overwrite need out, the file of the classifier")
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True exclude each other; give one of them")
    if file is not None and file.exists() and not (resume or overwrite):
        raise ValueError(
            f"{file}: exists; continue it with resume=True, or replace it with overwrite=True"
        )


def _levels(sde: SDE) -> list[float]:
    """lam at three times, by which a process is known again."""
    times = torch.tensor([sde.t_min, (sde.t_min * sde.t_max) ** 0.5, sde.t_max])
    found: list[float] = sde.lam(times.double()).tolist()
    return found


def _save(
    file: Path,
    model: NoisyClassifier,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    step: int,
) -> None:
    entries = {
        "kind": KIND,
        "version": FORMAT,
        "settings": json.dumps(settings),
        "process": _levels(model.sde),
        "step": step,
        "net": model.net.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, lambda temporary: torch.save(entries, temporary))


def _read(file: Path, sde: SDE) -> dict[str, Any]:
    require_file(file)
    entries = read_archive(file)
    require_kind(file, entries.get("kind"), KIND)
    require_version(file, entries.get("version"))
    try:
        tensors: Mapping[str, Tensor] = entries["net"]
        finite = all(bool(value.isfinite().all()) for value in tensors.values())
        own = zip(entries["process"], _levels(sde), strict=True)
        same = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in own)
        json.loads(entries["settings"])
    except DAMAGE as error:
        raise CheckpointError(f"{file}: damaged ({brief(error)}); {REMEDY}") from error
    if not finite:
        raise CheckpointError(f"{file}: weights that are not finite; {REMEDY}")
    if not same:
        raise CheckpointError(f"{file}: a classifier of another process; train one for this model")
    return entries
