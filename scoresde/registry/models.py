"""Models and training: the objects that the sections of a configuration describe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from scoresde.config import Config, ConfigError
from scoresde.config.base import Section
from scoresde.config.schema import Train
from scoresde.data import Dataset, Scaling
from scoresde.data.cache import Progress, silent
from scoresde.nn import LevelMean
from scoresde.parameterization import ScoreModel
from scoresde.registry.tables import (
    AUGMENTATIONS,
    DATASETS,
    DRAWS,
    NETWORKS,
    OPTIMIZERS,
    PARAMETERIZATIONS,
    SDES,
    TIMES,
    WEIGHTINGS,
    construct,
    constructor,
)
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
    sde: SDE = construct(SDES, section)
    return sde


def build_dataset(section: Section, progress: Progress = silent) -> Dataset:
    """The data of ``config.data``, read or drawn; ``progress`` shows how far files are read.

    Raises ConfigError when the path is missing from the configuration, DataError for bad data.
    """
    arguments = section.model_dump()
    kind = arguments.pop("kind")
    if "path" in arguments and arguments["path"] is None:
        raise ConfigError(f"data.path is not given for data.kind={kind}; pass --data.path PATH")
    for name in ("path", "cache"):
        if arguments.get(name) is not None:
            arguments[name] = Path(arguments[name]).expanduser()
    if "cache" in arguments:
        arguments["progress"] = progress
    return constructor(DATASETS, kind)(**arguments)


def build_network(config: Config, described: Described) -> nn.Module:
    """The network for data of this shape and these classes, initialised from ``config.seed``.

    Raises ConfigError when network and data do not fit.
    """
    arguments = config.network.model_dump()
    kind, head = arguments.pop("kind"), arguments.pop("head", "value")
    middles = _middles(described) if head == "levels" else None
    inputs = _inputs(kind, described)
    if middles is not None:
        arguments["outputs"] = inputs * len(middles)
    augment = build_augmentation(config.train)
    if augment is not None and augment.labels is not None:
        arguments["augments"] = augment.labels
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        network: nn.Module = constructor(NETWORKS, kind)(
            inputs, classes=_classes(config, described), **arguments
        )
    return network if middles is None else LevelMean(network, middles)


def build_model(config: Config, described: Described) -> ScoreModel:
    """A fresh model for a data set (or its description).

    Raises ConfigError when they do not fit.
    """
    network = build_network(config, described)
    parameterization = construct(PARAMETERIZATIONS, config.parameterization)
    return ScoreModel(network, build_sde(config.sde), parameterization)


def build_weight(train: Train) -> losses.Weight | None:
    """The loss weight of ``config.train``; None weighs the network output.

    The likelihood weighting at uniform log-SNR is divided by the density of its times, which
    leaves the expectation as it is under uniform ones: importance sampling.
    """
    weight: losses.Weight | None = construct(WEIGHTINGS, train.weighting)
    law = construct(TIMES, train.times)
    if weight is losses.likelihood and isinstance(law, times.LogSNR):
        return losses.reweighted(weight, law.density)
    return weight


def build_learning_rate(train: Train) -> LearningRate:
    """The learning rate of every step: a warm-up, then what ``train.schedule`` says."""
    if train.decay_from is not None:
        return inverse_sqrt(train.lr, train.warmup, train.decay_from)
    if train.schedule == "cosine":
        return cosine(train.lr, train.warmup, train.steps)
    return warmup(train.lr, train.warmup)


def build_augmentation(train: Train) -> Augmentation | None:
    """What is done to the images of ``config.train``; None leaves them as they are."""
    augment: Augmentation | None = construct(AUGMENTATIONS, train.augment)
    return augment


def build_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
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
        times=construct(TIMES, train.times),
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
