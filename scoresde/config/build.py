"""Builds objects from the sections of a configuration."""

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
from scoresde.samplers import Grid, Step, suited_grid
from scoresde.sde import SDE
from scoresde.training import Plan, Reporting
from scoresde.training.distributed import Rank


class Described(Protocol):
    """Properties of the data that a model needs: a ``Dataset`` or a ``DataDescription``."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def scaling(self) -> Scaling: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...


def build_sde(section: Section) -> SDE:
    """Build the process of ``config.sde``. Raises ValueError for inconsistent values."""
    sde: SDE = build(section)
    return sde


def build_dataset(section: Section, progress: Progress = silent) -> Dataset:
    """Build the data set of ``config.data``; ``progress`` shows how many files have been read.

    Raises ValueError when the path is missing from the configuration, DataError for bad data.
    """
    known = arguments(section.makers[0])
    if section.values.get("path", "") is None and known["path"].default is EMPTY:
        raise ConfigError(f"data.path is not given for data.kind={section.kind}")
    found = build(section, **({"progress": progress} if "progress" in known else {}))
    return dataset_of(found)


def build_network(config: Config, described: Described) -> nn.Module:
    """Build the network for these data, initialised from ``config.seed``.

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
    with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator
        torch.manual_seed(config.seed)
        network = make(inputs, **given)
    return network if middles is None else LevelMean(network, middles)


def build_model(config: Config, described: Described) -> ScoreModel:
    """Build an untrained model for a data set or its description.

    Raises ConfigError when they do not fit.
    """
    network = build_network(config, described)
    parameterization = build(config.parameterization)
    return ScoreModel(network, build_sde(config.sde), parameterization)


def build_plan(config: Config, described: Described, rank: Rank | None = None) -> Plan:
    """Build the training plan for these data.

    Raises ValueError if the data or the number of processes do not fit.
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
    """Build the reporting settings of ``config.train``."""
    reporting: Reporting = build(config.train, Reporting)
    return reporting


def build_sampler(sample: Section, grid: Grid | None = None, std: float | None = None) -> Sampler:
    """Build the sampler of ``config.sample``; ``grid`` replaces its grid if given.

    ``std`` is the standard deviation of the model's data, ``ScoreModel.std``, for the default
    sampler and grid.
    """
    kind = sample.sampler.kind
    if kind in STEPS:
        step = build_step(kind, sample.sampler.values, sample.steps, std)
        found = build_grid(sample.grid, step, std) if grid is None else grid
        return GridSampler(found, step, grid_steps(step, sample.steps), sample.denoise)
    solver: Sampler = build(sample.sampler, steps=sample.steps, denoise=sample.denoise)
    return solver


def build_grid(section: Section, step: Step, std: float | None = None) -> Grid:
    """Build the grid of ``config.sample.grid`` for a step and data of deviation ``std``.

    Raises ConfigError for a missing path.
    """
    if section.kind == "recommended":
        return suited_grid(step, std)
    if section.values.get("path", "") is None:
        raise ConfigError("sample.grid.path is not given for sample.grid.kind=file")
    grid: Grid = build(section)
    return grid


def _inputs(config: Config, argument: str, described: Described) -> int:
    """Input size of a network, according to the name of its first argument.

    ``dim`` is the number of values of an example, ``channels`` the channels of an image, and any
    other name the length of the first axis of an example.
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
    """Middles of the pixel levels, in model units."""
    if described.scaling.levels is None:
        raise ConfigError(
            f"network.head=levels needs pixel levels, but data {described.name} has real numbers; "
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
