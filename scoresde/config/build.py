"""The objects that the sections of a configuration describe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from scoresde.arguments import EMPTY, arguments
from scoresde.config.schema import Config, ConfigError
from scoresde.config.sections import Section, build
from scoresde.data import Dataset, Scaling
from scoresde.data.cache import Progress, silent
from scoresde.nn import LevelMean
from scoresde.parameterization import ScoreModel
from scoresde.registry import (
    DRAWS,
    NETWORKS,
    OPTIMIZERS,
    STEPS,
    GridSampler,
    Sampler,
    build_step,
    constructor,
    grid_steps,
)
from scoresde.samplers import Grid
from scoresde.sde import SDE
from scoresde.training import losses, times
from scoresde.training.augment import Augmentation
from scoresde.training.plan import Plan
from scoresde.training.schedules import LearningRate, cosine, inverse_sqrt, warmup


class Described(Protocol):
    """What a model must know of its data; a ``Dataset`` or the description in a checkpoint."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def scaling(self) -> Scaling: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...


def build_sde(section: Section) -> SDE:
    """The process of ``config.sde``. Raises ValueError for inconsistent values."""
    sde: SDE = build(section)
    return sde


def build_dataset(section: Section, progress: Progress = silent) -> Dataset:
    """The data of ``config.data``, read or drawn; ``progress`` shows how far files are read.

    Raises ValueError when the path is missing from the configuration, DataError for bad data.
    """
    known = arguments(section.makers[0])
    if section.values.get("path", "") is None and known["path"].default is EMPTY:
        raise ConfigError(f"data.path is not given for data.kind={section.kind}")
    dataset: Dataset = build(section, **({"progress": progress} if "progress" in known else {}))
    return dataset


def build_network(config: Config, described: Described) -> nn.Module:
    """The network for data of this shape and these classes, initialised from ``config.seed``.

    Raises ConfigError when network and data do not fit.
    """
    given = dict(config.network.values)
    middles = _middles(described) if given.pop("head", "value") == "levels" else None
    inputs = _inputs(str(config.network.kind), described)
    if middles is not None:
        given["outputs"] = inputs * len(middles)
    augment = build(config.train.augment)
    if augment is not None and augment.labels is not None:
        given["augments"] = augment.labels
    make = constructor(NETWORKS, str(config.network.kind))
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        network = make(inputs, classes=_classes(config, described), **given)
    return network if middles is None else LevelMean(network, middles)


def build_model(config: Config, described: Described) -> ScoreModel:
    """A fresh model for a data set (or its description).

    Raises ConfigError when they do not fit.
    """
    network = build_network(config, described)
    parameterization = build(config.parameterization)
    return ScoreModel(network, build_sde(config.sde), parameterization)


def build_weight(train: Section) -> losses.Weight | None:
    """The loss weight of ``config.train``; None weighs the network output.

    The likelihood weighting at uniform log-SNR is divided by the density of its times, which
    leaves the expectation as it is under uniform ones: importance sampling.
    """
    weight: losses.Weight | None = build(train.weighting)
    law = build(train.times)
    if weight is losses.likelihood and isinstance(law, times.LogSNR):
        return losses.reweighted(weight, law.density)
    return weight


def build_learning_rate(train: Section) -> LearningRate:
    """The learning rate of every step: a warm-up, then what ``train.schedule`` says."""
    if train.decay_from is not None:
        return inverse_sqrt(train.lr, train.warmup, train.decay_from)
    if train.schedule == "cosine":
        return cosine(train.lr, train.warmup, train.steps)
    return warmup(train.lr, train.warmup)


def build_augmentation(train: Section) -> Augmentation | None:
    """What is done to the images of ``config.train``; None leaves them as they are."""
    augment: Augmentation | None = build(train.augment)
    return augment


def build_optimizer(train: Section, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam, or AdamW with its decoupled weight decay, in the fused form."""
    make = constructor(OPTIMIZERS, train.optimizer)
    return make(parameters, lr=train.lr, weight_decay=train.weight_decay, fused=True)


def build_plan(config: Config, described: Described) -> Plan:
    """What does not change while training. Raises ConfigError for classes without labels."""
    train, classes = config.train, _classes(config, described)
    return Plan(
        steps=train.steps,
        batch=train.batch,
        seed=config.seed,
        times=build(train.times),
        draw=constructor(DRAWS, train.draw),
        weight=build_weight(train),
        learning_rate=build_learning_rate(train),
        ema_decay=train.ema[0],
        clip=train.clip,
        classes=classes,
        label_dropout=0.0 if classes is None else train.label_dropout,
        dither=train.dither,
        augment=build_augmentation(train),
        accumulate=train.accumulate,
        precision=train.precision,
        prefetch=train.prefetch,
    )


def build_sampler(sample: Section, grid: Grid | None = None) -> Sampler:
    """The sampler of ``config.sample``, on ``grid`` in place of the one it names."""
    kind = sample.sampler.kind
    if kind in STEPS:
        step = build_step(kind, sample.sampler.values, sample.steps)
        found = build_grid(sample.grid) if grid is None else grid
        return GridSampler(found, step, grid_steps(step, sample.steps), sample.denoise)
    solver: Sampler = build(sample.sampler, steps=sample.steps, denoise=sample.denoise)
    return solver


def build_grid(section: Section) -> Grid:
    """The grid of ``config.sample.grid``. Raises ConfigError without a file that it needs."""
    if section.values.get("path", "") is None:
        raise ConfigError("sample.grid.path is not given for sample.grid.kind=file")
    grid: Grid = build(section)
    return grid


def _inputs(kind: str, described: Described) -> int:
    """The size a network is built for: channels of a U-Net, numbers per sample of an MLP."""
    shape = tuple(described.shape)
    if kind == "mlp":
        return math.prod(shape)
    if len(shape) != 3:
        raise ConfigError(
            f"network.kind={kind} needs images (C, H, W), but data {described.name} is {shape}; "
            "set network.kind to mlp"
        )
    return shape[0]


def _middles(described: Described) -> Tensor:
    """The middles of the levels, in model units."""
    if described.scaling.levels is None:
        raise ConfigError(
            f"network.head=levels needs data of levels, but data {described.name} is continuous; "
            "set network.head to value"
        )
    return described.scaling.encode(torch.arange(described.scaling.levels))


def _classes(config: Config, described: Described) -> int | None:
    if not config.conditional:
        return None
    if described.classes is None:
        raise ConfigError(
            f"conditional=true needs labels, but data {described.name} has none; "
            "set conditional to false"
        )
    return len(described.classes)
