"""Builds objects from the sections of a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoresde.arguments import EMPTY, arguments
from scoresde.conditions import Condition, sizes
from scoresde.config.schema import Config, ConfigError
from scoresde.config.sections import Section, build, plain
from scoresde.data import Dataset, Scaling, dataset_of
from scoresde.latent import Codec
from scoresde.latent.autoencoder import Autoencoder
from scoresde.nn import LevelMean
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, silent
from scoresde.registry import (
    AUTOENCODERS,
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
from scoresde.training.checkpoint import DataDescription
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
        raise ConfigError(
            f"data.path is not given for data.kind={section.kind}; say where the data are, or "
            "give them"
        )
    found = build(section, **({"progress": progress} if "progress" in known else {}))
    return dataset_of(found)


def build_network(
    config: Config, described: Described, conditions: Mapping[str, Condition] | None = None
) -> nn.Module:
    """Build the network for these data and conditions, initialised from ``config.seed``.

    Raises ConfigError when network and data do not fit.
    """
    given = dict(config.network.values)
    head = given.pop("head", "value")
    middles = _middles(described) if head == "levels" else None
    make = constructor(NETWORKS, str(config.network.kind))
    conditions = conditions or {}
    taken, classes = arguments(make), _classes(config, described)
    inputs = _inputs(config, next(iter(taken)), described)
    if classes is not None and "classes" not in taken:
        raise ConfigError(
            f"network.kind={config.network.kind} takes no classes; set conditional to false"
        )
    if "classes" in taken:
        given["classes"] = classes
    if "image_size" in taken:
        given["image_size"] = tuple(described.shape[1:])
    noise = config.parameterization.values.get("noise", "log")
    if "indexed" in taken:
        given["indexed"] = noise != "log"
    elif noise != "log":
        raise ConfigError(
            f"network.kind={config.network.kind} is made for parameterization.noise=log, got "
            f"{noise}; choose another network, such as adm or dit"
        )
    told = sizes(conditions)
    if config.self_conditioning:
        told["concat"] = (told["concat"] or 0) + inputs
    for name, size in told.items():
        if name in taken:
            given[name] = size
        elif size:
            less = ", or tokens with pooled: false, or frozen_text with padded: true"
            raise ConfigError(
                f"network.kind={config.network.kind} takes no {name}, which conditions need; "
                f"choose another network{less if name == 'embed' else ''}"
            )
    if middles is not None:
        given["outputs"] = inputs * len(middles)
    elif head == "variance":
        given["outputs"] = 2 * inputs
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
    conditions = build_conditions(config, described)
    network = build_network(config, described, conditions)
    parameterization = build(config.parameterization)
    variance = config.network.values.get("head") == "variance"
    sde = build_sde(config.sde)
    return ScoreModel(
        network,
        sde,
        parameterization,
        variance=variance,
        self_conditioning=config.self_conditioning,
        conditions=conditions,
    )


def build_codec(section: Section, channels: int, seed: int = 0) -> Autoencoder:
    """Build the autoencoder of ``config.autoencoder``, initialised from ``seed``.

    Raises ValueError for values that do not fit.
    """
    make = constructor(AUTOENCODERS, str(section.kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = make(channels, **section.values)
    codec.kind, codec.arguments = section.kind, {"channels": channels, **plain(section)}
    codec.arguments.pop("kind")
    return codec


def build_conditions(config: Config, described: Described) -> dict[str, Condition]:
    """Build the conditions of a model, initialised from ``config.seed``.

    Raises ConfigError where the data do not have them.
    """
    found: dict[str, Condition] = {}
    decided = measured(config, described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for name, section in config.conditions.values.items():
            try:
                found[name] = build(section, **decided[name])
            except ValueError as error:
                raise ConfigError(f"conditions.{name}: {error}") from None
    return found


def measured(
    config: Config, described: Described, codec: Codec | None = None
) -> dict[str, dict[str, Any]]:
    """The arguments of each condition that the training data decide, as JSON values.

    Those of pictures are fitted to the latents of a ``codec``. Raises ConfigError for a condition
    that is no column of the data, or one of another kind.
    """
    if isinstance(described, DataDescription):
        return {name: dict(found) for name, found in described.told.items()}
    if not config.conditions.values:
        return {}
    assert isinstance(described, Dataset)
    found: dict[str, dict[str, Any]] = {}
    for name, section in config.conditions.values.items():
        kind: Any = section.makers[0]
        try:
            made = section.values.get("of", "column")
            if made != "column" and codec is not None:
                raise ValueError(
                    f"of={made} is made of the example, which is a latent here; give the pictures "
                    "as a column of the data"
                )
            if made != "column":  # of the example itself
                first = kind.measured(described.train.x[:1], **section.values)
                found[name] = first | {"levels": described.scaling.levels}
                continue
            if name not in described.conditions:
                raise ValueError(
                    f"data {described.name} has no column {name!r}; it has "
                    f"{', '.join(described.conditions) or 'none'}"
                )
            found[name] = kind.measured(described.conditions[name], **section.values)
            words = described.classes if name == "label" else described.words.get(name)
            if words is not None and "classes" in found[name]:
                found[name]["classes"] = list(words)
            if codec is not None and "fold" in arguments(kind):
                found[name]["fold"] = codec.factor
        except ValueError as error:
            raise ConfigError(f"conditions.{name}: {error}") from None
    return found


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
