"""What the names in a configuration stand for: constructors, by the kind of a section."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn

from scoresde import data, sde
from scoresde import parameterization as parameterizations
from scoresde.arguments import EMPTY, Argument, Count, Open, Range, arguments, check, nearest
from scoresde.data import Dataset
from scoresde.nn import EDM2, MLP, DiT, UNet, adm, ddpmpp, ncsnpp
from scoresde.parameterization import Parameterization
from scoresde.registry.grid_files import from_file
from scoresde.samplers import ArctanGrid, Grid, grids
from scoresde.sde import SDE, DiscreteVP, linear_betas
from scoresde.training import augment, losses, times

Value = TypeVar("Value")
Entry = TypeVar("Entry")


class UnknownName(ValueError):
    """A name that is in no table."""


@final
class Table(Mapping[str, Entry]):
    """Names and what they stand for; ``register`` adds to it.

    Args:
        entries: the names, each with a constructor, or with an object if not ``constructs``.
        also: a table whose names belong to this one too.
        supplied: arguments that whoever calls an entry supplies, so that no configuration has
            them; 1 stands for the first of all.
        constructs: entries are called to get what their name stands for.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        also: Table[Any] | None = None,
        supplied: tuple[str | int, ...] = (),
        constructs: bool = True,
    ) -> None:
        self._entries, self._also = dict(entries), also
        self.supplied, self.constructs = supplied, constructs

    def __getitem__(self, name: str) -> Entry:
        """The entry of a name. Raises KeyError."""
        if name in self._entries or self._also is None:
            return self._entries[name]
        found: Entry = self._also[name]
        return found

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __iter__(self) -> Iterator[str]:
        yield from (() if self._also is None else self._also)
        yield from self._entries

    def __len__(self) -> int:
        return len(list(iter(self)))

    def arguments(self, name: str) -> dict[str, Argument]:
        """The arguments of an entry that a configuration may give."""
        found = arguments(constructor(self, name)) if self.constructs else {}
        owner = self if name in self._entries or self._also is None else self._also
        left_out = {list(found)[n - 1] if isinstance(n, int) else n for n in owner.supplied}
        return {key: argument for key, argument in found.items() if key not in left_out}

    def name_of(self, value: object) -> str:
        """The first name whose object, with the defaults of its constructor, equals the value."""
        for name, entry in self.items():
            needs = any(a.default is EMPTY for a in self.arguments(name).values())
            make: Any = entry
            if not needs and (make() if self.constructs else make) == value:
                return name
        raise UnknownName(f"no name stands for {value!r}")

    def add(self, name: str, entry: Entry) -> None:
        """Add a name. Raises ValueError for one that is there, or for no constructor."""
        if self.constructs and not callable(entry):
            raise ValueError(f"{name}: need a constructor, got {entry!r}")
        if name in self:
            raise ValueError(f"{name!r} is there already; choose another name")
        if not re.fullmatch(r"[a-z][a-z0-9_+]*", name):
            raise ValueError(f"need a name of small letters, digits and _, got {name!r}")
        self._entries[name] = entry


def constructor(table: Mapping[str, Value], name: str) -> Value:
    """The entry of a table. Raises UnknownName with the nearest name, or all of them."""
    if name not in table:
        raise UnknownName(f"unknown name {name!r}; {nearest(name, table)}")
    return table[name]


def summary(entry: Callable[..., Any]) -> str:
    """The first sentence of the documentation of a table's entry."""
    documented = getattr(entry, "documented", entry)
    paragraph = " ".join((documented.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"\.(?: (?=[A-Z]|arXiv)|$)", paragraph.replace("`", ""))[0]


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
    levels: Annotated[int, Range(ge=2, le=1_000_000)] = 1000,
    beta_start: Open = 1e-4,
    beta_end: Open = 0.02,
) -> DiscreteVP:
    """The linear table of DDPM lifted to continuous time: log alpha linear between its levels.

    Args:
        levels: length of the table of variances.
        beta_start: variance added by its first level.
        beta_end: variance added by its last level.
    """
    check(discrete_vp, locals())
    if beta_start > beta_end:
        raise ValueError(
            f"need beta_start <= beta_end, got beta_start={beta_start:g}, beta_end={beta_end:g}"
        )
    return DiscreteVP(linear_betas(levels, beta_start, beta_end))


def optimised(budget: Annotated[int, Range(ge=500)] = 2000, starts: Count = 32) -> Grid:
    """Found for the model, the sampler and the steps at first use; kept beside the checkpoint.

    Args:
        budget: network calls spent to find it.
        starts: trajectories it is found on, which are never those of the samples.
    """
    check(optimised, locals())
    return _needs_a_model


def _needs_a_model(process: SDE, n: int) -> Tensor:
    raise ValueError("grid 'optimised' is found for a trained model only; choose another grid")


def unit() -> None:
    """Weight 1 on the squared error of the network output."""


def none() -> None:
    """Images as they are."""


SDES: Table[Callable[..., SDE]] = Table(
    {
        "vp": sde.VP,
        "sub_vp": sde.SubVP,
        "ve": sde.VE,
        "edm": sde.EDM,
        "cosine": sde.Cosine,
        "linear_flow": sde.LinearFlow,
        "discrete_vp": discrete_vp,
    }
)
PARAMETERIZATIONS: Table[Callable[..., Parameterization]] = Table(
    {
        "eps": Given(parameterizations.eps),
        "x0": Given(parameterizations.x0),
        "v": Given(parameterizations.v),
        "score": Given(parameterizations.score),
        "flow": Given(parameterizations.flow),
        "edm": parameterizations.edm,
    }
)
GRIDS: Table[Callable[..., Grid]] = Table(
    {
        "uniform": Given(grids.uniform),
        "quadratic": Given(grids.quadratic),
        "log_snr": Given(grids.log_snr),
        "karras": grids.karras,
        "polyexponential": grids.polyexponential,
        "arctan": ArctanGrid,
        "linspace": grids.linspace,
        "leading": grids.leading,
        "trailing": grids.trailing,
        "file": from_file,
        "optimised": optimised,
    }
)
# Those that need a file or a model.
NEEDY_GRIDS = frozenset({"file", "optimised"})
# A network is called with the channels (of vectors: the length) of its input, and by name with the
# number of classes or None; where it takes them, with ``augments``, the length of a vector that
# describes an augmentation, and ``outputs``, the channels of its output.
NETWORKS: Table[Callable[..., nn.Module]] = Table(
    {
        "mlp": MLP,
        "unet": UNet,
        "ddpmpp": ddpmpp,
        "ncsnpp": ncsnpp,
        "adm": adm,
        "edm2": EDM2,
        "dit": DiT,
    },
    supplied=(1, "classes", "augments", "outputs"),
)
DATASETS: Table[Callable[..., Dataset]] = Table(
    {
        "digits": data.digits,
        "idx": data.idx_folder,
        "cifar_subset": data.cifar_subset,
        "folder": data.image_folder,
        "arrays": data.arrays,
        "moons": data.moons,
        "checkerboard": data.checkerboard,
        "swiss_roll": data.swiss_roll,
        "gaussians25": data.gaussians25,
    },
    supplied=("progress",),
)
WEIGHTINGS: Table[Callable[..., losses.Weight | None]] = Table(
    {
        "unit": unit,
        "sigma2": Given(losses.sigma2),
        "likelihood": Given(losses.likelihood),
        "min_snr": losses.min_snr,
        "edm": losses.edm,
    }
)
TIMES: Table[Callable[..., times.Times]] = Table(
    {
        "uniform": times.Uniform,
        "log_snr": times.LogSNR,
        "lognormal": times.LogNormal,
        "levels": times.DiscreteTimes,
    }
)
AUGMENTATIONS: Table[Callable[..., augment.Augmentation | None]] = Table(
    {"none": none, "plain": augment.PlainAugment, "edm": augment.EDMAugment}
)
DRAWS: Table[times.Draw] = Table(
    {
        "independent": times.independent,
        "antithetic": times.antithetic,
        "stratified": times.stratified,
    },
    constructs=False,
)
OPTIMIZERS: Table[Callable[..., torch.optim.Optimizer]] = Table(
    {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}, constructs=False
)
