"""Tables of constructors, which resolve the names in a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from scoresde import betas, conditions, data, sde
from scoresde import parameterization as parameterizations
from scoresde.arguments import EMPTY, Argument, Count, Range, arguments, check, nearest
from scoresde.betas import Betas
from scoresde.coordinates import Coordinate, Index, Level, Time, place, ratio
from scoresde.data import Dataset
from scoresde.interop.native import diffusers
from scoresde.latent.autoencoder import Autoencoder, KLAutoencoder, VQAutoencoder
from scoresde.latent.discriminator import Adversarial
from scoresde.nn import EDM2, MLP, DiT, ImageV1, LucidUNet, UNet, adm, ddpmpp, ncsnpp
from scoresde.parameterization import Informed, Parameterization
from scoresde.registry.grid_files import from_file
from scoresde.samplers import WIDE, ArctanGrid, Grid, grids
from scoresde.sde import SDE, DiscreteVP
from scoresde.training import augment, losses, times
from scoresde.training.vlb import Hybrid, Objective, Vlb

Value = TypeVar("Value")
Entry = TypeVar("Entry")


class UnknownName(ValueError):
    """Raised for a name that is not in a table."""


@final
class Table(Mapping[str, Entry]):
    """A mapping from names to constructors or objects, to which ``register`` adds.

    Args:
        entries: names with their constructors, or with objects if not ``constructs``.
        also: another table, whose names this table includes.
        supplied: arguments that the caller of an entry supplies, by name or by position from 1;
            a configuration cannot set them.
        constructs: entries are constructors, which are called to get the object.
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
        """The arguments of an entry that a configuration may set."""
        found = arguments(constructor(self, name)) if self.constructs else {}
        owner = self if name in self._entries or self._also is None else self._also
        left_out = {list(found)[n - 1] if isinstance(n, int) else n for n in owner.supplied}
        return {key: argument for key, argument in found.items() if key not in left_out}

    def name_of(self, value: object) -> str:
        """The first name whose object equals the value, built with default arguments."""
        for name, entry in self.items():
            needs = any(a.default is EMPTY for a in self.arguments(name).values())
            make: Any = entry
            if not needs and (make() if self.constructs else make) == value:
                return name
        raise UnknownName(f"no name stands for {value!r}")

    def add(self, name: str, entry: Entry) -> None:
        """Add a name. Raises ValueError if the name is taken or the entry is not callable."""
        if self.constructs and not callable(entry):
            raise ValueError(f"{name}: need a constructor, got {entry!r}")
        if name in self:
            raise ValueError(f"{name!r} is there already; choose another name")
        if not re.fullmatch(r"[a-z][a-z0-9_+]*", name):
            raise ValueError(f"need a name of small letters, digits and _, got {name!r}")
        self._entries[name] = entry


def constructor(table: Mapping[str, Value], name: str) -> Value:
    """The entry of a table. Raises UnknownName, whose message suggests names."""
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
    """A constructor without arguments that returns an existing object."""

    value: Value

    def __call__(self) -> Value:
        return self.value

    @property
    def documented(self) -> Value:
        return self.value


@dataclass(frozen=True)
class Telling:
    """A constructor of a parameterisation that may tell the network another number of the noise.

    Args:
        noise: what the network is told of the noise level. log, log(sigma / alpha) / 4, is the
            same under every process. index is the place in the table of sde.kind=discrete_vp and
            time is 1000 t of sde.kind=linear_flow; networks in folders of diffusers are told
            these.
    """

    value: Parameterization

    def __call__(self, noise: Literal["log", "index", "time"] = "log") -> Parameterization:
        if noise == "log":
            return self.value
        if noise == "index":
            return Informed(self.value, place)
        return Informed(self.value, Time(1000), scaled=False)

    @property
    def documented(self) -> Parameterization:
        return self.value


BETAS: Table[Callable[..., Betas]] = Table(
    {
        "linear": betas.linear,
        "scaled_linear": betas.scaled_linear,
        "quadratic": betas.quadratic,
        "cosine": betas.cosine,
        "sigmoid": betas.sigmoid,
        "sigmoid_alpha_bar": betas.sigmoid_alpha_bar,
        "const": betas.const,
        "exp": betas.exponential,
        "jsd": betas.jsd,
        "warm_up": betas.warm_up,
        "laplace": betas.laplace,
        "given": betas.given,
    }
)


def discrete_vp(
    levels: Annotated[int, Range(ge=2, le=1_000_000)] = 1000,
    table: Annotated[Any, BETAS] = "linear",
    zero_terminal: bool = False,
) -> DiscreteVP:
    """A variance table of DDPM in continuous time; log alpha is interpolated linearly.

    Args:
        levels: length of the table of variances.
        table: how the variances rise.
        zero_terminal: scale the table so that its last level has no signal; needs a
            parameterization that does not divide by alpha, such as v.
    """
    check(discrete_vp, locals())
    found = (BETAS[table]() if isinstance(table, str) else table)(levels)
    return DiscreteVP(betas.zero_terminal(found) if zero_terminal else found)


def suited() -> Grid:
    """The default: arctan, or arctan_wide for a sampler that draws noise, for the model's data."""
    return ArctanGrid()


def optimised(budget: Annotated[int, Range(ge=400)] = 400, starts: Count = 32) -> Grid:
    """Grid optimised for the model, the sampler and the steps; stored next to the checkpoint.

    Args:
        budget: number of network calls of the search, for all starts.
        starts: number of trajectories of the search; their noise is never used for samples.
    """
    check(optimised, locals())
    return _needs_a_model


def _needs_a_model(process: SDE, n: int) -> Tensor:
    raise ValueError("grid 'optimised' is found for a trained model only; choose another grid")


def unit() -> None:
    """Weight 1 on the squared error of the network output."""


def simple() -> None:
    """The denoising loss with the weighting, L_simple."""


def none() -> None:
    """No augmentation of the images."""


def alone() -> None:
    """No discriminator: reconstructions are judged by their errors alone."""


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
COORDINATES: Table[Callable[..., Coordinate]] = Table(
    {"level": Level, "index": Index, "time": Time, "ratio": Given(ratio)}
)
BASES: Table[Callable[..., Parameterization]] = Table(
    {
        "eps": Given(parameterizations.eps),
        "x0": Given(parameterizations.x0),
        "v": Given(parameterizations.v),
        "score": Given(parameterizations.score),
        "flow": Given(parameterizations.flow),
        "edm": parameterizations.edm,
    }
)


def informed(
    base: Annotated[Any, BASES] = "eps",
    told: Annotated[Any, COORDINATES] = "level",
    scaled: bool = True,
) -> Informed:
    """A parameterization of a network of another program, told another number of the noise.

    Args:
        base: what the output of the network means.
        told: number of the noise level that the network is told.
        scaled: scale the input of the network to unit size; else it is the noisy sample itself.
    """
    found = BASES[base]() if isinstance(base, str) else base
    noise = COORDINATES[told]() if isinstance(told, str) else told
    return Informed(found, noise, scaled)


PARAMETERIZATIONS: Table[Callable[..., Parameterization]] = Table(
    {
        "eps": Telling(parameterizations.eps),
        "x0": Telling(parameterizations.x0),
        "v": Telling(parameterizations.v),
        "score": Telling(parameterizations.score),
        "flow": Telling(parameterizations.flow),
        "edm": parameterizations.edm,
        "informed": informed,
    }
)
GRIDS: Table[Callable[..., Grid]] = Table(
    {
        "uniform": Given(grids.uniform),
        "quadratic": Given(grids.quadratic),
        "log_snr": Given(grids.log_snr),
        "karras": grids.karras,
        "polyexponential": grids.polyexponential,
        "recommended": suited,
        "arctan": ArctanGrid,
        "arctan_wide": Given(WIDE),
        "linspace": grids.linspace,
        "leading": grids.leading,
        "trailing": grids.trailing,
        "file": from_file,
        "optimised": optimised,
    }
)
# Grids that need a file or a model.
NEEDY_GRIDS = frozenset({"file", "optimised"})
# The first argument of a network is the number of input channels (for vectors: their length), and
# ``classes`` is the number of classes or None. ``augments``, the length of a vector that describes
# an augmentation, ``outputs``, the number of output channels, ``image_size``, height and width,
# and ``indexed``, a noise coordinate other than the logarithm, are passed if it accepts them.
NETWORKS: Table[Callable[..., nn.Module]] = Table(
    {
        "mlp": MLP,
        "unet": UNet,
        "ddpmpp": ddpmpp,
        "ncsnpp": ncsnpp,
        "adm": adm,
        "edm2": EDM2,
        "dit": DiT,
        "lucidrains": LucidUNet,
        "image_v1": ImageV1,
        "diffusers": diffusers,
    },
    supplied=(
        *(1, "classes", "augments", "outputs", "embed", "context", "concat"),
        *("image_size", "indexed"),
    ),
)
# What the training data decide, ``measured`` of the class, is supplied.
CONDITIONS: Table[type[conditions.Condition]] = Table(
    {
        "label": conditions.Label,
        "vector": conditions.Vector,
        "tokens": conditions.Tokens,
        "frozen_text": conditions.FrozenText,
        "picture": conditions.Picture,
        "segmentation": conditions.SegmentationMap,
    },
    supplied=(
        *("classes", "mean", "std", "words", "longest", "rules"),
        *("shape", "levels", "size", "states", "fold"),
    ),
)
# The channels of the pictures are those of the data.
AUTOENCODERS: Table[Callable[..., Autoencoder]] = Table(
    {"kl": KLAutoencoder, "vq": VQAutoencoder}, supplied=("channels",)
)
DISCRIMINATORS: Table[Callable[..., Adversarial | None]] = Table(
    {"none": alone, "patch": Adversarial}
)
DATASETS: Table[Callable[..., Dataset]] = Table(
    {
        "digits": data.digits,
        "avatars": data.avatars,
        "idx": data.idx_folder,
        "cifar_subset": data.cifar_subset,
        "folder": data.image_folder,
        "arrays": data.arrays,
        "digit_pairs": data.digit_pairs,
        "emoji": data.emoji,
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
        "p2": losses.p2,
        "edm": losses.edm,
    }
)
OBJECTIVES: Table[Callable[..., Objective | None]] = Table(
    {"simple": simple, "vlb": Vlb, "hybrid": Hybrid}
)
TIMES: Table[Callable[..., times.Times]] = Table(
    {
        "uniform": times.Uniform,
        "log_snr": times.LogSNR,
        "lognormal": times.LogNormal,
        "levels": times.DiscreteTimes,
        "loss_aware": times.LossAware,
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
