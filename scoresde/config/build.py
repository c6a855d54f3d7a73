"""The objects that the sections of a configuration describe."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from scoresde.arguments import EMPTY, arguments
from scoresde.config.schema import Config, ConfigError
from scoresde.config.sections import Section, build
from scoresde.data import Dataset, Scaling, dataset_of
from scoresde.nn import LevelMean
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, silent
from scoresde.registry import (
    NETWORKS,
    STEPS,
    GridSampler,
    Sampler,
    build_step,
    constructor,
    grid_steps,
)
from scoresde.samplers import Grid
from scoresde.sde import SDE
from scoresde.training import Plan, Reporting
from scoresde.training.distributed import Rank


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
    found = build(section, **({"progress": progress} if "progress" in known else {}))
    return dataset_of(found)


def build_network(config: Config, described: Described) -> nn.Module:
    """The network for data of this shape and these classes, initialised from ``config.seed``.

    Raises ConfigError when network and data do not fit.
    """
    given = dict(config.network.values)
    middles = _middles(described) if given.pop("head", "value") == "levels" else None
    make = constructor(NETWORKS, str(config.network.kind))
    taken, classes = arguments(make), _classes(config, described)
    inputs = _inputs(config, next(iter(taken)), described)
    if classes is not None and "classes" not in taken:
        raise ConfigError(
            f"network.kind={config.network.kind} takes no classes; set conditional to false"
        )
    if "classes" in taken:
        given["classes"] = classes
    if middles is not None:
        given["outputs"] = inputs * len(middles)
    augment = build(config.train.augment)
    if augment is not None and augment.labels is not None:
        given["augments"] = augment.labels
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        network = make(inputs, **given)
    return network if middles is None else LevelMean(network, middles)


def build_model(config: Config, described: Described) -> ScoreModel:
    """A fresh model for a data set (or its description).

    Raises ConfigError when they do not fit.
    """
    network = build_network(config, described)
    parameterization = build(config.parameterization)
    return ScoreModel(network, build_sde(config.sde), parameterization)


def build_plan(config: Config, described: Described, rank: Rank | None = None) -> Plan:
    """How the model is trained, for data of this description.

    Raises ValueError where they, or the number of processes, do not fit.
    """
    classes, rank = _classes(config, described), rank or Rank()
    if config.train.shard and rank.size == 1:
        raise ConfigError(
            "train.shard=true splits the weights between processes, and there is one; start "
            "several with torchrun, or set train.shard to false"
        )
    plan: Plan = build(config.train, Plan, seed=config.seed, classes=classes, rank=rank)
    return plan


def build_reporting(config: Config) -> Reporting:
    """What the run records while it trains."""
    reporting: Reporting = build(config.train, Reporting)
    return reporting


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


def _inputs(config: Config, argument: str, described: Described) -> int:
    """The size a network is built for, by the name of its first argument.

    ``dim`` is all numbers of an example, ``channels`` those of an image, another name the length
    of the first axis of an example.
    """
    shape = tuple(described.shape)
    if argument == "dim":
        return math.prod(shape)
    if argument == "channels" and len(shape) != 3:
        raise ConfigError(
            f"network.kind={config.network.kind} needs images (C, H, W), but data "
            f"{described.name} is {shape}; set network.kind to mlp"
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
