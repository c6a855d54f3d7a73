"""What the names in a configuration stand for: constructors, by the kind of a section."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from scoresde import data
from scoresde import parameterization as parameterizations
from scoresde.config import ConfigError
from scoresde.config.base import Section
from scoresde.config.problems import nearest
from scoresde.data import Dataset
from scoresde.nn import EDM2, MLP, DiT, UNet, adm, ddpmpp, ncsnpp
from scoresde.parameterization import Parameterization
from scoresde.samplers import ArctanGrid, Grid, grids
from scoresde.sde import EDM, SDE, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP, linear_betas
from scoresde.training import augment, losses, times

Value = TypeVar("Value")
Table = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Given(Generic[Value]):
    """A constructor without arguments for an object that needs no construction."""

    value: Value

    def __call__(self) -> Value:
        return self.value

    @property
    def documented(self) -> Value:
        return self.value


def discrete_vp(
    levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteVP:
    """The linear table of DDPM lifted to continuous time: log alpha linear between its levels."""
    return DiscreteVP(linear_betas(levels, beta_start, beta_end))


def optimised(budget: int = 2000, starts: int = 32) -> Grid:
    """Found for the model, the sampler and the steps at first use; kept beside the checkpoint."""
    raise ConfigError("grid 'optimised' means something beside a trained model only")


def unit() -> None:
    """Weight 1 on the squared error of the network output."""


def none() -> None:
    """Images as they are."""


def table(**entries: Value) -> Mapping[str, Value]:
    """A mapping that nobody can add to."""
    return MappingProxyType(entries)


SDES: Mapping[str, Callable[..., SDE]] = table(
    vp=VP,
    sub_vp=SubVP,
    ve=VE,
    edm=EDM,
    cosine=Cosine,
    linear_flow=LinearFlow,
    discrete_vp=discrete_vp,
)
PARAMETERIZATIONS: Mapping[str, Callable[..., Parameterization]] = table(
    eps=Given(parameterizations.eps),
    x0=Given(parameterizations.x0),
    v=Given(parameterizations.v),
    score=Given(parameterizations.score),
    flow=Given(parameterizations.flow),
    edm=parameterizations.edm,
)
GRIDS: Mapping[str, Callable[..., Grid]] = table(
    uniform=Given(grids.uniform),
    quadratic=Given(grids.quadratic),
    log_snr=Given(grids.log_snr),
    karras=grids.karras,
    polyexponential=grids.polyexponential,
    arctan=ArctanGrid,
    linspace=grids.linspace,
    leading=grids.leading,
    trailing=grids.trailing,
    file=grids.from_file,
    optimised=optimised,
)
# Those that need a file or a model.
NEEDY_GRIDS = frozenset({"file", "optimised"})
NETWORKS: Mapping[str, Callable[..., nn.Module]] = table(
    mlp=MLP,
    unet=UNet,
    ddpmpp=ddpmpp,
    ncsnpp=ncsnpp,
    adm=adm,
    edm2=EDM2,
    dit=DiT,
)
DATASETS: Mapping[str, Callable[..., Dataset]] = table(
    digits=data.digits,
    idx=data.idx_folder,
    cifar_subset=data.cifar_subset,
    folder=data.image_folder,
    arrays=data.arrays,
    moons=data.moons,
    checkerboard=data.checkerboard,
    swiss_roll=data.swiss_roll,
    gaussians25=data.gaussians25,
)
WEIGHTINGS: Mapping[str, Callable[..., losses.Weight | None]] = table(
    unit=unit,
    sigma2=Given(losses.sigma2),
    likelihood=Given(losses.likelihood),
    min_snr=losses.min_snr,
    edm=losses.edm,
)
TIMES: Mapping[str, Callable[..., times.Times]] = table(
    uniform=times.Uniform,
    log_snr=times.LogSNR,
    lognormal=times.LogNormal,
    levels=times.DiscreteTimes,
)
AUGMENTATIONS: Mapping[str, Callable[..., augment.Augmentation | None]] = table(
    none=none,
    plain=augment.PlainAugment,
    edm=augment.EDMAugment,
)
DRAWS: Mapping[str, times.Draw] = table(
    independent=times.independent,
    antithetic=times.antithetic,
    stratified=times.stratified,
)
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = table(
    adam=torch.optim.Adam,
    adamw=torch.optim.AdamW,
)


def construct(table: Table, section: Section) -> Any:
    """The object a section describes: the constructor its ``kind`` names, with its other keys."""
    arguments = section.model_dump()
    return constructor(table, arguments.pop("kind"))(**arguments)


def constructor(table: Mapping[str, Value], name: str) -> Value:
    """The entry of a table. Raises ConfigError with the nearest name, or all, if it is unknown."""
    if name not in table:
        raise ConfigError(f"unknown name {name!r}; {nearest(name, table)}")
    return table[name]


def summary(entry: Callable[..., Any]) -> str:
    """The first sentence of the documentation of a table's entry."""
    documented = getattr(entry, "documented", entry)
    paragraph = " ".join((documented.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"\.(?: (?=[A-Z]|arXiv)|$)", paragraph.replace("`", ""))[0]
