"""Training of autoencoders as a library function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoresde.config import AutoencoderConfig, build, build_codec, build_dataset, to_plain
from scoresde.data import Dataset
from scoresde.data.digest import digest
from scoresde.evaluation import image_grid, save_png
from scoresde.evaluation.figures import captioned
from scoresde.evaluation.reconstruction import WINDOW, frechet_of_patches, psnr, ssim
from scoresde.latent.autoencoder import Autoencoder, VQAutoencoder
from scoresde.latent.codec import Codec
from scoresde.latent.discriminator import Adversarial, Adversary
from scoresde.latent.files import save_codec
from scoresde.latent.losses import Criterion, Loss
from scoresde.latent.perceptual import perceptual
from scoresde.latent.training import (
    UNUSED,
    CodecPlan,
    CodecRecords,
    CodecState,
    Latents,
    fit_codec,
    standardise,
    state_of,
)
from scoresde.progress import Progress, bar, silent
from scoresde.registry import AUTOENCODERS
from scoresde.runs import folder as folders
from scoresde.runs.engine import run_in
from scoresde.runs.folder import RunFolder
from scoresde.runs.load_codec import load_codec
from scoresde.runs.log import Listener, Quiet, Shown
from scoresde.runs.pictures import is_image
from scoresde.runs.preview import into
from scoresde.runs.processes import (
    World,
    backend_of,
    jointly,
    own_device,
    pick_device,
    rank_of,
    together,
)
from scoresde.runs.run import Run, remarks_on, splits, with_absolute_paths
from scoresde.runs.scalars import require_tensorboard
from scoresde.runs.settings import changed, changes_of, config_of, with_data
from scoresde.runs.stopping import Stopping
from scoresde.runs.train_loop import Stop, in_memory
from scoresde.runs.train_resume import stored_config
from scoresde.sde import sent
from scoresde.training import Checkpoint, DataDescription, Metrics, describe
from scoresde.training import checkpoint as checkpoints
from scoresde.training.batches import derived_seed
from scoresde.training.distributed import Rank
from scoresde.training.held_out import evaluating

HELD = 256
"""Held-out pictures that are measured."""
MOST = 4096
"""Training pictures that the statistics of latents are measured on."""
USED = 0.1
"""Share of the deviation of a channel of latents below which its means carry nothing."""
OWN = "own"
"""The name of features that a program gave."""
WINS, PATIENCE = 0.98, 3
"""A discriminator wins with more of the patches told apart, in so many records in a row."""
SHOWN, COLUMNS = 32, 16
"""Pictures of a picture of reconstructions, and of one of its rows."""


@dataclass(frozen=True, eq=False)
class TrainedCodec:
    """A trained codec, with its averaged weights and in evaluation mode, and where it came from.

    ``records`` are the lines of ``metrics.jsonl``. ``stopped`` says that an interrupt ended the
    training early; what there was is kept.
    """

    codec: Autoencoder
    folder: Path | None
    step: int
    records: Sequence[Mapping[str, Any]]
    stopped: bool = False


@dataclass(frozen=True)
class CodecTask:
    """What is to be trained on what: a configuration, and what a program gives in place of it."""

    config: AutoencoderConfig
    codec: Autoencoder | None = None
    dataset: Dataset | None = None
    features: nn.Module | None = None


def train_autoencoder(
    config_or_codec: AutoencoderConfig | Autoencoder | Mapping[str, Any] | str | Path,
    data: Any = None,
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    discriminator: str | Mapping[str, Any] | Adversarial | None = None,
    features: str | Path | nn.Module | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    listener: Listener | None = None,
    progress: Progress = bar,
    **settings: Any,
) -> TrainedCodec:
    """Train an autoencoder on pictures, in a run folder or in memory.

    An interrupt (Ctrl-C) stops after the step: the codec so far is returned and, with ``out``,
    saved. Before the first step it ends the call. Raises ValueError for bad input before anything
    is written, TrainingError for a failure on the way.

    Args:
        config_or_codec: a configuration, as an object, a mapping or a YAML file; or an
            ``Autoencoder``, which may be a program's own.
        data: pictures, in every form that ``train`` takes; by default the data set of the
            configuration.
        out: run folder to write, that of ``scoresde train-autoencoder``; without one nothing is
            written.
        steps: optimiser steps.
        batch: pictures per step.
        lr: learning rate.
        seed: random seed of the weights, the data order and every draw.
        discriminator: discriminator to train against, such as "patch", a section of a
            configuration or ``Adversarial(start=500)``.
        features: network of the perceptual distance: as ``Loss`` has it, or a module that gives
            a list of maps (B, c, h, w) of colour pictures in [0, 1].
        resume: go on with the run in ``out`` from its newest checkpoint, to the same bits.
        overwrite: start anew in a folder that holds a run.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
        listener: receives what the run reports; by default its remarks are printed on standard
            error, and ``progress`` shows steps and loss.
        progress: shows a count of items, such as ``scoresde.progress.silent``.
        settings: further settings of training, those of ``CodecPlan`` and ``CodecRecords``, and
            the weights of ``Loss``.
    """
    module = features if isinstance(features, nn.Module) else None
    named = OWN if module is not None else None if features is None else str(features)
    given = {"steps": steps, "batch": batch, "lr": lr, "features": named, **settings}
    given["discriminator"] = discriminator
    before = AutoencoderConfig()
    if resume and out is not None:
        before = stored_config(out, AutoencoderConfig)
    task = _task(config_or_codec, data, seed, given, before, progress)
    task = replace(task, features=module)
    if listener is None:
        listener = Quiet() if progress is silent else Shown(progress)
    world = World.found()
    with together(world, backend_of(device)), Stopping(late=True) as stopping:
        if out is None:
            if resume or overwrite:
                raise ValueError("resume and overwrite need out, the folder of the run")
            return _in_memory(task, device, world, listener, progress, stopping.number)
        stopped = train_autoencoder_run(
            task,
            out,
            resume=resume,
            overwrite=overwrite,
            device=device,
            world=world,
            listener=listener,
            progress=progress,
            stop=stopping.number,
        )
    folder = RunFolder(Path(out))
    file = checkpoints.step_files(folder.checkpoints)[0]
    own = None if task.codec is None else deepcopy(task.codec)
    codec: Any = load_codec(file if stopped else folder.codec, own)
    step = checkpoints.step_of(file)
    return TrainedCodec(codec, folder.path, step, folders.records(folder), bool(stopped))


def train_autoencoder_run(
    task: CodecTask | AutoencoderConfig,
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
    """Train in the folder ``out``, as ``engine.run_in``."""
    task = CodecTask(task) if isinstance(task, AutoencoderConfig) else task
    return run_in(
        out,
        partial(prepare_codec, task, progress=progress),
        task.config,
        resume=resume,
        overwrite=overwrite,
        device=device,
        world=world,
        listener=listener,
        stop=stop,
    )


@dataclass
class CodecRun(Run):
    """The run of an autoencoder; ``criterion`` is its loss."""

    LEGEND: ClassVar[str] = (
        "loss: mean over the latest batches; held-out: the same of the averaged weights on other "
        "pictures; dB: peak signal-to-noise ratio of their reconstructions"
    )

    config: AutoencoderConfig
    plan: CodecPlan
    reporting: CodecRecords
    state: CodecState
    criterion: Criterion = field(kw_only=True)
    latents: Latents | None = None
    measured_at: int = -1
    wins: int = 0

    @property
    def chunk(self) -> int:
        """Pictures that are coded at a time, for which there is memory in training."""
        return self.plan.batch // (self.plan.accumulate * self.plan.rank.size)

    def updates(self) -> Iterator[Metrics]:
        return fit_codec(self.state, self.plan, self.criterion, self.split, self.dataset.scaling)

    def measured(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        x, seed = self.held_out.x, self.plan.seed
        return measured(self.state.ema, x, self.criterion, self.dataset, seed, self.chunk)

    def draw_picture(self) -> None:
        examples = self.held_out or self.split
        data = examples.take(torch.arange(min(SHOWN, len(examples)))).x
        if not self.leads or not is_image(data):
            return
        scaling = self.dataset.scaling
        x = scaling.encode(data)
        with evaluating(self.state.ema), torch.no_grad():
            parts = (sent(part, self.state.device) for part in x.split(self.chunk))
            y = torch.cat([reconstructed(self.state.ema, part).cpu() for part in parts])
        originals, others = (scaling.to_uint8(each).split(COLUMNS) for each in (x, y))
        rows = [
            image_grid(part, min(COLUMNS, len(x)))
            for pair in zip(originals, others, strict=True)
            for part in pair
        ]
        title = f"{self.dataset.name}: originals above reconstructions"
        grid = captioned(torch.cat([torch.from_numpy(row) for row in rows]).numpy(), title)
        into(self.folder.reconstruction(self.state.step), lambda file: save_png(file, grid))

    def snapshot(self) -> Checkpoint:
        """The checkpoint of the run as it stands, the statistics of its latents included."""
        self.standardised()
        state = self.state
        return Checkpoint(
            config=to_plain(self.config),
            data=self.description(),
            step=state.step,
            model=state.model.state_dict(),
            ema=state.ema.state_dict(),
            optimizer=state.optimizer.state_dict(),
            best=self.best,
            scale=state.scale,
            contents=self.contents,
            learned=self._acted.state_dict() if self._acted else {},
            kind=self.kind,
            adversarial=state.model.adversarial,
        )

    @property
    def _acted(self) -> Adversary | None:
        """The discriminator, if it has made a step."""
        found = self.state.adversary
        return found if found is not None and self.state.step > found.settings.start else None

    def take_over(self, found: Checkpoint, path: Path) -> None:
        checkpoints.load_tensors(self.state.model, found.model, path)
        checkpoints.load_tensors(self.state.ema, found.ema, path)
        self.state.optimizer.load_state_dict(found.optimizer)
        self.state.step, self.state.scale = found.step, found.scale
        if self._acted is not None:
            checkpoints.load_tensors(self._acted.net, found.learned.get("net", {}), path)
            self._acted.optimizer.load_state_dict(found.learned["optimizer"])
        self.state.model.adversarial = self.state.ema.adversarial = found.adversarial

    def export(self, chosen: Checkpoint) -> Path:
        codec = self.state.ema
        codec.data = self.description()
        save_codec(self.folder.codec, codec, chosen.step)
        return self.folder.codec

    def description(self) -> DataDescription:
        return describe(self.dataset)

    def results(self) -> list[str]:
        self.standardised()
        return [] if self.latents is None else said_of(self.latents)

    def remarks(self, device: torch.device) -> list[str]:
        shape = self.state.model.latent_shape(tuple(self.dataset.shape))
        pictures, latents = (torch.Size(s).numel() for s in (self.dataset.shape, shape))
        size = f"latents {shape}, {pictures / latents:.3g} times fewer numbers than a picture"
        found = [*self.dataset.notes, size, *remarks_on(self.plan, self.state.model, device)]
        adversary = self.state.adversary
        if adversary is not None and adversary.settings.start >= self.plan.steps:
            found.append(
                f"discriminator.start={adversary.settings.start} is not before the last of "
                f"{self.plan.steps} steps: the discriminator never acts"
            )
        codec = self.state.model
        if isinstance(codec, VQAutoencoder) and codec.codebook.wait >= self.plan.steps:
            found.append(
                f"autoencoder.wait={codec.codebook.wait} is not before the last of "
                f"{self.plan.steps} steps: there will be no codes, and latents stay as they are"
            )
        return found

    def noticed(self, record: Mapping[str, Any]) -> list[str]:
        self.wins = self.wins + 1 if record.get("discriminator_right", 0.0) > WINS else 0
        found = []
        if self.wins == PATIENCE:
            right, loss = record["discriminator_right"], record["loss_discriminator"]
            found.append(
                f"step {self.state.step}: the discriminator wins: it tells {right:.1%} of the "
                f"patches apart, loss {loss:.2g}, and teaches little; lower discriminator.rate or "
                "discriminator.width, or start it later"
            )
        moved = record.get("round_trip", 0.0)
        if self.state.step == self.plan.steps and moved > 1:
            found.append(
                f"latents: coding a decoded picture again moves them by {moved:.2f} of their "
                "noise, so that a model of them learns what the decoder leaves out; raise loss.kl"
            )
        return found

    def standardised(self) -> None:
        """Measure the statistics of the latents of the average, unless they are of this step."""
        if self.leads and self.measured_at != self.state.step:
            scaling = self.dataset.scaling
            self.latents = standardise(self.state.ema, self.split, scaling, MOST, self.chunk)
            self.measured_at = self.state.step


def prepare_codec(
    task: CodecTask, folder: RunFolder, device: torch.device, rank: Rank, *, progress: Progress
) -> CodecRun:
    """Read the data and build everything of a new run; raises ValueError where they do not fit."""
    config = with_absolute_paths(task.config)
    if config.own and task.codec is None:
        raise ValueError(
            "the autoencoder of this run is one that a program made, which no configuration "
            "describes; train it from Python, with ss.train_autoencoder(codec, data)"
        )
    plan: CodecPlan = build(config.train, CodecPlan, seed=config.seed, rank=rank)
    reporting: CodecRecords = build(config.train, CodecRecords)
    if reporting.tensorboard:
        require_tensorboard()
    dataset = build_dataset(config.data, progress) if task.dataset is None else task.dataset
    shape = tuple(dataset.shape)
    if len(shape) != 3:
        raise ValueError(
            f"data: {dataset.name} has examples of shape {shape}; an autoencoder needs pictures "
            "(C, H, W)"
        )
    codec = task.codec
    if codec is None:
        codec = build_codec(config.autoencoder, shape[0], config.seed)
    elif not any(p.requires_grad for p in codec.parameters()):
        codec.requires_grad_(True)  # of ``load_codec``; one that is frozen in part stays so
    codec.latent_shape(shape)
    require_passes(codec, shape)
    loss: Loss = build(config.loss)
    features = loss.features if task.features is None else task.features
    if features == OWN:
        raise ValueError("features: a module that a program gave; give it again, from Python")
    distance = None if features is None else perceptual(features, device)
    criterion = Criterion(loss, codec, dataset.scaling, distance)
    criterion.require_fit(codec, shape)
    adversarial: Adversarial | None = build(config.discriminator)
    if adversarial is not None:
        adversarial.discriminator(shape[0]).require_fit(shape)
        _ = codec.last  # a codec that does not say it is refused here
    split, held_out = splits(dataset.train, config.train.holdout, config.seed, HELD)
    codec.to(device)
    codec.latents_mean.zero_()
    codec.latents_std.fill_(1.0)
    return CodecRun(
        config,
        folder,
        dataset,
        split,
        held_out,
        plan,
        reporting,
        state_of(codec, plan, adversarial),
        digest(dataset.train),
        criterion=criterion,
    )


def require_passes(codec: Autoencoder, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a codec of a program's own does not return what a loss needs."""
    if not any(p.numel() for p in codec.parameters()):
        raise ValueError("codec: it has no parameters to train")
    device = codec.latents_mean.device
    x = torch.zeros(2, *shape, device=device)
    latents = codec.latent_shape(shape)
    try:
        with evaluating(codec), torch.no_grad():
            found = codec.passed(x, torch.zeros(2, *latents, device=device))
    except Exception as error:  # a network raises whatever it stumbles over
        raise ValueError(
            f"codec: it fails for x of shape {tuple(x.shape)} and noise of shape "
            f"{(2, *latents)}: {type(error).__name__}: {error}"
        ) from error
    channels = shape[0] * (1 if codec.law is None else codec.law.outputs)
    height, width = (n * codec.factor for n in latents[1:])
    for name, expected in (
        ("output", (2, channels, height, width)),
        ("z", (2, *latents)),
        ("penalty", (2,)),
    ):
        if (shape := tuple(getattr(found, name).shape)) != expected:
            raise ValueError(f"codec: {name} of passed is {shape}, expected {expected}")


@torch.no_grad()
def measured(
    codec: Autoencoder,
    data: Tensor,
    criterion: Criterion,
    dataset: Dataset,
    seed: int,
    batch: int = 64,
) -> dict[str, float]:
    """Numbers of reconstructions D(E(x)) of pictures in units of the data, with fixed noise.

    ``held_out`` is the loss, ``psnr`` in dB, ``ssim``, ``frechet`` that of patches, ``noise`` the
    mean ratio of noise and deviation of a channel, and ``round_trip`` the root mean square of
    E(D(E(x))) - E(x) over that of the noise; and what the codec reports of itself.
    """
    device, parts = codec.latents_mean.device, []
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, "held out"))
    shape = codec.latent_shape(tuple(data.shape[1:]))
    noise = torch.randn(len(data), *shape, generator=generator)
    with evaluating(codec):
        for some, drawn in zip(data.split(batch), noise.split(batch), strict=True):
            x = sent(dataset.scaling.encode(some), device)
            mean, std = codec.encode(x)
            passed = criterion.passed(codec, x, sent(drawn, device))
            loss = criterion.total(criterion.terms(passed, x, sent(some, device)))
            y = reconstructed(codec, x, mean)
            again = codec.encode(y).mean
            found = (loss, passed.penalty, passed.z, mean, std, again - mean, x, y)
            parts.append([part.double().cpu() for part in found])
    whole = (torch.cat(part) for part in zip(*parts, strict=True))
    loss, penalty, z, mean, std, moved, x, y = whole
    x, y = in_unit(x, dataset), in_unit(y, dataset)
    result = {"held_out": float(loss.mean()), "psnr": float(psnr(x, y).mean())}
    if min(x.shape[2:]) >= WINDOW:
        result["ssim"] = float(ssim(x, y).mean())
    if len(x) > 1:
        result["frechet"] = frechet_of_patches(x, y)
    rms = std.square().mean().sqrt()
    if float(rms) > 0:
        each = z.transpose(0, 1).flatten(1).std(1)
        ratio = std.square().transpose(0, 1).flatten(1).mean(1).sqrt() / each
        result["noise"] = float(ratio.mean())
        result["round_trip"] = float(moved.square().mean().sqrt() / rms)
    return result | codec.report(z, penalty, x[0].numel())


def reconstructed(codec: Codec, x: Tensor, mean: Tensor | None = None) -> Tensor:
    """D(E(x)) of pictures in model units, of their size; ``mean`` is E(x) if it is known."""
    found = codec.decode(codec.encode(x).mean if mean is None else mean)
    return found[..., : x.shape[-2], : x.shape[-1]]


def in_unit(x: Tensor, dataset: Dataset) -> Tensor:
    """Pictures in model units as numbers in [0, 1], from the least to the largest level."""
    scaling = dataset.scaling
    a, b = (part.to(x.device) for part in scaling.affine(x))
    low, high = (scaling.low, scaling.high) if scaling.levels is None else (0, scaling.levels - 1)
    return ((a * x + b - low) / (high - low)).clamp(0, 1)


def said_of(latents: Latents) -> list[str]:
    """Lines about the statistics of latents."""

    def listed(numbers: Tensor) -> str:
        few = ", ".join(f"{n:.3g}" for n in numbers[:8].tolist())
        return few + (", ..." if len(numbers) > 8 else "")

    found = [f"latents by channel: mean {listed(latents.mean)}; deviation {listed(latents.std)}"]
    unused = torch.nonzero(latents.of_means < USED * latents.std).flatten().tolist()
    unused += torch.nonzero(latents.std < UNUSED).flatten().tolist()
    if unused:
        channels = ", ".join(str(k) for k in sorted(set(unused)))
        found.append(
            f"latents: channel {channels} is unused, as it hardly depends on the picture; give "
            "fewer latent_channels or a smaller kl"
        )
    return found


def _task(
    source: Any,
    data: Any,
    seed: int | None,
    given: Mapping[str, Any],
    before: AutoencoderConfig,
    progress: Progress,
) -> CodecTask:
    """The task of a call of ``train_autoencoder``. Raises ValueError for what does not exist."""
    codec = source if isinstance(source, Codec) else None
    if codec is not None and not isinstance(codec, Autoencoder):
        raise ValueError(
            f"need an Autoencoder, got {type(codec).__name__}; a codec that is trained defines "
            "passed(x, noise)"
        )
    config = before
    if codec is None:
        own = "an autoencoder is one of scoresde.latent, or a subclass of Autoencoder"
        config = config_of(source, AutoencoderConfig, ("an Autoencoder or a configuration", own))
    settings = {k: v for k, v in given.items() if v is not None}
    changes = changes_of(config, seed, settings, ("train", "loss"), ("discriminator",))
    config, dataset = with_data(config, data, progress)
    if codec is not None:
        if dataset is None:
            raise ValueError("a codec of your own needs data: give a tensor, a Dataset or a path")
        described = codec.kind in AUTOENCODERS and codec.arguments is not None
        if described:
            made = {k: v for k, v in (codec.arguments or {}).items() if k != "channels"}
            changes |= {f"autoencoder.{k}": v for k, v in {"kind": codec.kind, **made}.items()}
        changes["own"] = not described
    return CodecTask(changed(config, changes), codec, dataset)


def _in_memory(
    task: CodecTask, device: str, world: World, listener: Listener, progress: Progress, stop: Stop
) -> TrainedCodec:
    where, nowhere = own_device(pick_device(device), world), RunFolder(Path())
    run = jointly(
        world, lambda: prepare_codec(task, nowhere, where, rank_of(world), progress=progress)
    )
    records, stopped = in_memory(run, listener, stop)
    codec = run.state.ema
    codec.data = run.description()
    return TrainedCodec(codec, None, run.state.step, records, bool(stopped))
