"""What a training run is made of: its data, its model and everything it is trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from scoresde.config import (
    Config,
    build_dataset,
    build_model,
    build_plan,
    build_reporting,
    measured,
    require_latents,
    to_plain,
)
from scoresde.data import Dataset
from scoresde.data.digest import digest
from scoresde.latent import Codec
from scoresde.latent.files import StoredCodec, read_about, stored
from scoresde.latent.latents import far_from_unit, latents_of
from scoresde.parameterization import OutputError, ScoreModel, caution
from scoresde.progress import Progress
from scoresde.runs.compiling import compiling
from scoresde.runs.cost import flops, peak
from scoresde.runs.folder import RunFolder
from scoresde.runs.load_codec import codec_of, kept_codec, load_codec
from scoresde.runs.preview import save_preview
from scoresde.runs.run import Run, remarks_on, splits, with_absolute_paths
from scoresde.runs.scalars import require_tensorboard
from scoresde.runs.space import described_state, embedded
from scoresde.training import (
    Checkpoint,
    DataDescription,
    Metrics,
    Plan,
    Reporting,
    TrainState,
    describe,
    export_weights,
    fit,
    fsdp,
    held_out_loss,
)
from scoresde.training import checkpoint as checkpoints
from scoresde.training.distributed import Rank
from scoresde.training.held_out import evaluating
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.said import columns_read, words_of
from scoresde.training.snapshots import save_snapshots

LONG = 256
"""Tokens of a sentence, the cost of whose attention is worth a remark."""
# Enough for a held-out loss that ranks checkpoints: its numbers are the same at every step.
HELD_OUT_EVALUATIONS = 2048
NOWHERE = RunFolder(Path())
"""The folder of a run in memory."""
LATENTS = "latents"
"""The folder of caches of latents."""


@dataclass(frozen=True)
class Task:
    """What is to be trained on what: a configuration, and what a program gives in place of it."""

    config: Config
    model: ScoreModel | None = None
    dataset: Dataset | None = None
    codec: Codec | None = None


@dataclass
class ModelRun(Run):
    """The run of a score model.

    Args:
        flops: operations of an update by example.
        told: what the data decide of each condition.
        latents: what a model of latents is trained on; None for a model of pixels.
        codec: its codec, as checkpoints hold it.
    """

    LEGEND: ClassVar[str] = (
        "loss: mean over the latest batches; held-out: of the averaged weights on other examples, "
        "in another weighting, not to be compared with loss"
    )

    config: Config
    plan: Plan
    reporting: Reporting
    state: TrainState
    flops: int = 0
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    latents: Dataset | None = None
    codec: StoredCodec | None = None

    @property
    def states(self) -> Dataset:
        """What the model is trained on: the data, or their latents."""
        return self.latents or self.dataset

    @property
    def keeps_best(self) -> bool:
        return self.reporting.keep_best

    def updates(self) -> Iterator[Metrics]:
        # Only this process may fail, so raise no TrainingError, which only the first reports.
        with compiling("train.compile"):
            yield from fit(self.state, self.plan, self.split, self.states.scaling)

    def measured(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        found = held_out_loss(
            self.state.ema,
            self.held_out,
            self.states.scaling,
            conditional=self.plan.classes is not None,
            dither=self.plan.dither,
            draws=max(1, HELD_OUT_EVALUATIONS // len(self.held_out)),
            seed=self.plan.seed,
        )
        return {"held_out": found}

    def levels(self) -> LossByNoise:
        return LossByNoise(self.state.model.sde)

    def costs(self, images_per_second: float) -> dict[str, float]:
        """Operations per second, their fraction of the device's peak, and peak memory."""
        rate, most = images_per_second * self.flops, peak(self.state.device)
        found = {"flops_per_second": rate, **super().costs(images_per_second)}
        return (
            found if most is None else found | {"utilisation": rate / most / self.plan.rank.size}
        )

    def draw_picture(self) -> None:
        if self.leads or self.plan.shard:  # if the average is sharded, all processes have to draw
            path = self.folder.sample(self.state.step) if self.leads else None
            save_preview(path, self.state.ema, self.dataset, self.plan.classes)

    def save_more(self, save: Callable[[Callable[[Checkpoint], object]], bool]) -> None:
        if self.plan.posthoc and self.due(self.reporting.posthoc_every):
            save(partial(save_snapshots, self.folder.averages))

    def snapshot(self) -> Checkpoint:
        """The checkpoint of the run as it stands.

        Where weights are split all processes take part; it is whole in the one that writes.
        """
        state = self.state

        def whole(part: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
            return fsdp.gathered(part.state_dict(), keep=self.leads)

        return Checkpoint(
            config=to_plain(self.config),
            data=self.description(),
            step=state.step,
            model=whole(state.model),
            ema=whole(state.ema),
            optimizer=whole(state.optimizer),
            best=self.best,
            averages={str(width): whole(average) for width, average in state.averages.items()},
            scale=state.scale,
            contents=self.contents,
            decays={str(decay): whole(average) for decay, average in state.decays.items()},
            learned={} if state.learned is None else state.learned.state_dict(),
            history={} if state.history is None else state.history.state_dict(),
            codec=None if self.codec is None else embedded(self.codec),
        )

    def take_over(self, found: Checkpoint, path: Path) -> None:
        state = self.state
        checkpoints.load_tensors(state.model, found.model, path)
        checkpoints.load_tensors(state.ema, found.ema, path)
        for decay, average in state.decays.items():
            checkpoints.load_tensors(average, found.decays.get(str(decay), {}), path)
        for sigma_rel, average in state.averages.items():
            checkpoints.load_tensors(average, found.averages.get(str(sigma_rel), {}), path)
        moments = fsdp.scattered_optimizer(found.optimizer, state.model.parameters())
        state.optimizer.load_state_dict(moments)
        if state.learned is not None:
            checkpoints.load_tensors(state.learned.u, found.learned.get("u", {}), path)
            state.learned.optimizer.load_state_dict(found.learned["optimizer"])
        if state.history is not None:
            state.history.load_state_dict(found.history)
        state.step, state.scale = found.step, found.scale

    def export(self, chosen: Checkpoint) -> Path:
        export_weights(self.folder.weights, chosen)
        for decay, average in chosen.decays.items():
            export_weights(self.folder.weights_of(decay), replace(chosen, ema=average))
        return self.folder.weights

    def description(self) -> DataDescription:
        return describe(self.dataset, self.told, self.states.std)

    def shapes(self) -> list[tuple[int, ...]]:
        return super().shapes() + [tuple(each.shape) for each in (self.latents,) if each]

    def require_same(self, found: Checkpoint, path: Path) -> None:
        kept = found.codec
        before = None if kept is None else read_about(kept.about, kept.tensors)
        _require_codec(self.codec, before, path)

    def remarks(self, device: torch.device) -> list[str]:
        plan, model = self.plan, self.state.model
        found = [*self.dataset.notes, *described(self.dataset.counts)]
        if self.latents is not None:
            found += [*self.latents.notes, *filter(None, [far_from_unit(self.latents)])]
        told = plan.classes is not None or "label" in model.conditions
        if self.dataset.classes is not None and not told:
            why = "the network takes no label" if self.config.own else "conditional is false"
            found.append(f"the classes are not learned: {why}")
        for name, condition in model.conditions.items():
            if (longest := getattr(condition, "longest", 0)) > LONG:
                found.append(
                    f"{name}: the longest sentence has {longest} tokens, and all are padded to as "
                    "many; shorten it if it is an exception"
                )
        if (line := caution(model.parameterization, model.sde)) is not None:
            found.append(line)
        return found + remarks_on(plan, model, device)


def prepare(
    task: Task,
    folder: RunFolder,
    device: torch.device,
    rank: Rank,
    *,
    progress: Progress,
    resume: bool = False,
) -> ModelRun:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    config = with_absolute_paths(task.config)
    if config.own and task.model is None:
        raise ValueError(
            "the model of this run is one that a program made, which no configuration describes; "
            "train it from Python, with ss.train(model, data)"
        )
    reporting, codec = build_reporting(config), codec_for(task, folder if resume else None)
    if reporting.tensorboard:
        require_tensorboard()
    dataset = build_dataset(config.data, progress) if task.dataset is None else task.dataset
    plan = build_plan(config, dataset, rank)
    told = measured(config, dataset, codec)
    about = described_state(describe(dataset, told), codec)
    if task.model is None:
        model = build_model(config, about)
    else:
        model = task.model
        if not any(p.requires_grad for p in model.parameters()):
            model.requires_grad_(True)  # of ``load``; a model that is frozen in part stays so
        require_fit(model, about.shape, plan)
    latents = None
    if codec is not None:
        model.codec = codec
        if resume and (before := kept_codec(folder)) is not None:
            _require_codec(stored(codec), before[1], before[0])  # before all are encoded anew
        kept = config.codec is not None and folder is not NOWHERE
        places = caches(Path(str(config.codec)), folder) if kept else ()
        latents = latents_of(dataset, codec, device=device, folders=places, progress=progress)
    states = latents or dataset
    train = columns_read(states.train, model.conditions, words_of(dataset))
    split, held_out = splits(train, config.train.holdout, config.seed, HELD_OUT_EVALUATIONS)
    if not plan.shard:
        model.to(device)  # what is split never is there as a whole
    cost = flops(model, about.shape, plan.classes)
    state = TrainState.of(model, plan, device)
    contents = digest(dataset.train)
    return ModelRun(
        config,
        folder,
        dataset,
        split,
        held_out,
        plan,
        reporting,
        state,
        contents,
        flops=cost,
        told=told,
        latents=latents,
        codec=None if codec is None else stored(codec),
    )


def codec_for(task: Task, resumed: RunFolder | None = None) -> Codec | None:
    """The codec of a task: an object, that of its model, or a file of its configuration.

    If the file is gone it is the one in the checkpoints of the ``resumed`` run. Raises ValueError
    for settings that have no meaning for latents.
    """
    codec = task.codec or getattr(task.model, "codec", None)
    if codec is None and (place := task.config.codec) is not None:
        if Path(place).expanduser().exists():
            codec = load_codec(place)
        elif resumed is not None and (kept := kept_codec(resumed)) is not None:
            codec = codec_of(kept[1], kept[0])
        else:
            raise ValueError(f"codec: no such file: {place}; give the place where it is now")
    if codec is not None:
        if not isinstance(codec, Codec):
            raise ValueError(f"codec: need a Codec or its path, got {type(codec).__name__}")
        require_latents(task.config)
    return codec


def _require_codec(now: StoredCodec | None, before: StoredCodec | None, path: Path) -> None:
    """Raise ValueError unless the codec is that of the checkpoint ``path`` of the run."""
    if (now and now.digest) != (before and before.digest):
        ours, theirs = (each.digest[:12] if each else "none" for each in (now, before))
        remedy = f"give codec={path.parent.parent}, the one in this run" if before else "give none"
        raise ValueError(
            f"{path}: the codec has changed (sha256 {ours}, was {theirs}); {remedy}, or train in "
            "another folder"
        )


def caches(codec: Path, folder: RunFolder) -> tuple[Path, ...]:
    """The folders for latents: beside the codec, or in the run folder if that is read-only."""
    if not codec.exists():
        return (folder.path / LATENTS,)
    home = codec if codec.is_dir() else codec.parent
    home = home.parent if home.name == folder.checkpoints.name else home
    return home / LATENTS, folder.path / LATENTS


def require_fit(model: ScoreModel, shape: tuple[int, ...], plan: Plan) -> None:
    """Raise ValueError where a model of a program's own does not return what a loss needs."""
    classes = getattr(model.net, "classes", None)
    if plan.classes is not None and classes not in (None, plan.classes):
        raise ValueError(
            f"model: its network has {classes} classes, the data {plan.classes}; make them equal"
        )
    x = torch.zeros(2, *shape, device=model.device)
    t = torch.full((2,), model.sde.t_max, dtype=torch.float64)
    label = {} if plan.classes is None else {"label": torch.zeros(2, dtype=torch.long)}
    label = {name: value.to(model.device) for name, value in label.items()}
    if not any(p.numel() for p in model.parameters()):
        raise ValueError("model: its network has no parameters to train")
    try:
        with evaluating(model), torch.no_grad():
            model(x, t, **label)
    except OutputError:
        raise
    except Exception as error:  # a network raises whatever it stumbles over
        also = "".join(f" and {name}" for name in label)
        raise ValueError(
            f"model: its network fails for x of shape {tuple(x.shape)}, noise of shape "
            f"(2,){also}: {type(error).__name__}: {error}"
        ) from error


def takes_labels(net: nn.Module) -> bool:
    """Whether a network can be conditional: its ``forward`` takes ``label``, or any keyword."""
    taken = signature(net.forward).parameters
    return "label" in taken or any(p.kind is Parameter.VAR_KEYWORD for p in taken.values())


def described(counts: Mapping[str, int], most: int = 12) -> list[str]:
    """The classes of the training examples with the number of each, in a line; none without."""
    if not counts:
        return []
    listed = [f"{name} ({n})" for name, n in list(counts.items())[:most]]
    rest = list(counts.values())[most:]
    more = f", and {len(rest)} more of {min(rest)} to {max(rest)}" if rest else ""
    return [f"{len(counts)} classes (training examples): {', '.join(listed)}{more}"]
