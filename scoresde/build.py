"""From names to objects: the one place where a configuration's strings mean something.

The tables map the names of one ``kind`` to constructors whose keyword arguments are the other keys
of its section; those of ``SDES PARAMETERIZATIONS STEPS GRIDS WEIGHTINGS TIMES`` work without any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from scoresde import data, samplers
from scoresde import parameterization as parameterizations
from scoresde.config import Config, ConfigError, config_from
from scoresde.config.base import Section
from scoresde.config.problems import nearest
from scoresde.config.schema import Sample, Train
from scoresde.data import Dataset
from scoresde.denoiser import Denoiser
from scoresde.nn import MLP, UNet
from scoresde.parameterization import Parameterization, ScoreModel
from scoresde.samplers import Grid, Noise, Step, grids
from scoresde.sde import EDM, SDE, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP, linear_betas
from scoresde.solvers import solve_ode, solve_sde
from scoresde.training import losses, times
from scoresde.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    DataDescription,
    load,
    load_tensors,
    load_weights,
    newest,
    step_files,
)
from scoresde.training.loop import LearningRate, Plan, cosine, warmup

Value = TypeVar("Value")
Table = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Given(Generic[Value]):
    """A constructor without arguments for an object that needs no construction."""

    value: Value

    def __call__(self) -> Value:
        return self.value


def discrete_vp(
    levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> DiscreteVP:
    """The linear table of DDPM lifted to continuous time: log alpha linear between its levels."""
    return DiscreteVP(linear_betas(levels, beta_start, beta_end))


def predictor_corrector(snr: float = 0.16, corrector_steps: int = 1) -> Step:
    """Predictor-corrector: a reverse-diffusion step after Langevin steps at the same time."""
    kernel = samplers.langevin(snr, corrector_steps)
    return samplers.corrected(samplers.ReverseDiffusion(), kernel)


def annealed_langevin(snr: float = 0.176, corrector_steps: int = 5) -> Step:
    """Predictor-corrector with the Langevin settings of NCSNv2: several smaller steps a level."""
    kernel = samplers.annealed_langevin(snr, corrector_steps)
    return samplers.corrected(samplers.ReverseDiffusion(), kernel)


def unit() -> None:
    """Weight 1 on the squared error of the network output."""


def _table(**entries: Value) -> Mapping[str, Value]:
    return MappingProxyType(entries)


SDES: Mapping[str, Callable[..., SDE]] = _table(
    vp=VP,
    sub_vp=SubVP,
    ve=VE,
    edm=EDM,
    cosine=Cosine,
    linear_flow=LinearFlow,
    discrete_vp=discrete_vp,
)
PARAMETERIZATIONS: Mapping[str, Callable[..., Parameterization]] = _table(
    eps=Given(parameterizations.eps),
    x0=Given(parameterizations.x0),
    v=Given(parameterizations.v),
    score=Given(parameterizations.score),
    flow=Given(parameterizations.flow),
    edm=parameterizations.edm,
)
STEPS: Mapping[str, Callable[..., Step]] = _table(
    euler_maruyama=samplers.EulerMaruyama,
    reverse_diffusion=samplers.ReverseDiffusion,
    ancestral=samplers.Ancestral,
    ddim=samplers.DDIM,
    heun=samplers.Heun,
    pc=predictor_corrector,
    annealed_langevin=annealed_langevin,
)
GRIDS: Mapping[str, Callable[..., Grid]] = _table(
    uniform=Given(grids.uniform),
    quadratic=Given(grids.quadratic),
    log_snr=Given(grids.log_snr),
    karras=grids.karras,
)
NETWORKS: Mapping[str, Callable[..., nn.Module]] = _table(
    mlp=MLP,
    unet=UNet,
)
DATASETS: Mapping[str, Callable[..., Dataset]] = _table(
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
WEIGHTINGS: Mapping[str, Callable[..., losses.Weight | None]] = _table(
    unit=unit,
    sigma2=Given(losses.sigma2),
    likelihood=Given(losses.likelihood),
    min_snr=losses.min_snr,
    edm=losses.edm,
)
TIMES: Mapping[str, Callable[..., times.Times]] = _table(
    uniform=times.Uniform,
    log_snr=times.LogSNR,
    lognormal=times.LogNormal,
    levels=times.Levels,
)
DRAWS: Mapping[str, times.Draw] = _table(
    independent=times.independent,
    antithetic=times.antithetic,
    stratified=times.stratified,
)
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = _table(
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
    documented = entry.value if isinstance(entry, Given) else entry
    paragraph = " ".join((documented.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"\.(?: (?=[A-Z]|arXiv)|$)", paragraph.replace("`", ""))[0]


# Models and training --------------------------------------------------------------------------


class Described(Protocol):
    """What a model must know of its data; a ``Dataset`` or the description in a checkpoint."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...


def build_sde(section: Section) -> SDE:
    """The process of ``config.sde``. Raises ValueError for inconsistent values."""
    sde: SDE = construct(SDES, section)
    return sde


def build_dataset(section: Section) -> Dataset:
    """The data of ``config.data``, read or drawn.

    Raises ConfigError when the path is missing from the configuration, DataError for bad data.
    """
    arguments = section.model_dump()
    kind = arguments.pop("kind")
    if "path" in arguments and arguments["path"] is None:
        raise ConfigError(f"data.path is not given for data.kind={kind}; pass --data.path PATH")
    if "path" in arguments:
        arguments["path"] = Path(arguments["path"]).expanduser()
    names = {"train": "n_train", "test": "n_test"}
    return constructor(DATASETS, kind)(**{names.get(k, k): v for k, v in arguments.items()})


def build_network(config: Config, described: Described) -> nn.Module:
    """The network for data of this shape and these classes, initialised from ``config.seed``.

    Raises ConfigError when network and data do not fit.
    """
    arguments = config.network.model_dump()
    kind = arguments.pop("kind")
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(config.seed)
        return constructor(NETWORKS, kind)(
            _inputs(kind, described), classes=_classes(config, described), **arguments
        )


def build_model(config: Config, described: Described) -> ScoreModel:
    """A fresh model for a data set (or its description).

    Raises ConfigError when they do not fit.
    """
    network = build_network(config, described)
    parameterization = construct(PARAMETERIZATIONS, config.parameterization)
    return ScoreModel(network, build_sde(config.sde), parameterization)


def build_weight(train: Train) -> losses.Weight | None:
    """The loss weight of ``config.train``; None weighs the network output.

    The likelihood weighting is divided by the density of the times, so that any law of times
    leaves its expectation as it is under uniform ones: importance sampling.
    """
    weight: losses.Weight | None = construct(WEIGHTINGS, train.weighting)
    if weight is losses.likelihood and train.times.kind != "uniform":
        return losses.reweighted(weight, construct(TIMES, train.times).density)
    return weight


def build_learning_rate(train: Train) -> LearningRate:
    """The learning rate of every step: a warm-up, then constant or half a cosine."""
    if train.schedule == "cosine":
        return cosine(train.lr, train.warmup, train.steps)
    return warmup(train.lr, train.warmup)


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
        ema_decay=train.ema,
        clip=train.clip,
        classes=classes,
        label_dropout=0.0 if classes is None else train.label_dropout,
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


def _classes(config: Config, described: Described) -> int | None:
    if not config.conditional:
        return None
    if described.classes is None:
        raise ConfigError(
            f"conditional=true needs labels, but data {described.name} has none; "
            "set conditional to false"
        )
    return len(described.classes)


# Samplers -------------------------------------------------------------------------------------


class Sampler(Protocol):
    """A whole sampler: from a state at ``t_max`` (B, ...) to a sample, shaped alike.

    ``noise`` serves the steps of a grid; ``seed`` the Brownian path of a black-box SDE solver.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class GridSampler:
    """A grid and a step."""

    grid: Grid
    step: Step
    steps: int
    denoise: bool = True

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        ts = self.grid(denoiser.sde, self.steps)
        return samplers.sample(denoiser, x, ts, self.step, noise, self.denoise)


@dataclass(frozen=True)
class ODESampler:
    """The probability flow, solved by torchdiffeq from ``t_max`` to ``t_eps``.

    Adaptive methods share their step size over a batch, so samples agree between batches only
    within the tolerances.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 50
    denoise: bool = True

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        sde = denoiser.sde
        end, _ = solve_ode(
            denoiser,
            x,
            sde.t_max,
            sde.t_eps,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            steps=self.steps,
        )
        return _denoised(denoiser, end) if self.denoise else end


@dataclass(frozen=True)
class SDESampler:
    """The reverse SDE, solved by torchsde from ``t_max`` to ``t_eps``.

    The Brownian path is that of a whole batch, so samples depend on their batch.
    """

    method: str = "euler"
    eta: float = 1.0
    steps: int = 50
    denoise: bool = True

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        sde = denoiser.sde
        end = solve_sde(
            denoiser,
            x,
            sde.t_max,
            sde.t_eps,
            self.steps,
            method=self.method,
            eta=self.eta,
            seed=seed,
        )
        return _denoised(denoiser, end) if self.denoise else end


# What a configuration may name: a step, which takes a grid, or a black-box solver.
SAMPLERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {**STEPS, "ode": ODESampler, "sde": SDESampler}
)


def build_sampler(sample: Sample) -> Sampler:
    """The sampler of ``config.sample``."""
    arguments = sample.sampler.model_dump()
    kind = arguments.pop("kind")
    if kind in STEPS:
        step, grid = STEPS[kind](**arguments), construct(GRIDS, sample.grid)
        return GridSampler(grid, step, sample.steps, sample.denoise)
    make = constructor(SAMPLERS, kind)
    solver: Sampler = make(**arguments, steps=sample.steps, denoise=sample.denoise)
    return solver


def _denoised(denoiser: Denoiser, x: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(x, torch.tensor(denoiser.sde.t_eps, dtype=torch.float64))


# Trained models -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with everything its file says about it.

    ``notes`` are lines for the user, such as a damaged newer checkpoint that was passed over.
    """

    model: ScoreModel
    config: Config
    data: DataDescription
    step: int
    source: Path
    notes: tuple[str, ...] = ()


def load_model(run_or_file: str | PathLike[str]) -> ScoreModel:
    """The model of ``load_run`` with its EMA weights."""
    return load_run(run_or_file).model


def load_run(run_or_file: str | PathLike[str], *, ema: bool = True) -> LoadedRun:
    """The model of a run folder, a checkpoint (.pt) or exported weights (.safetensors).

    Of a run folder it is the best checkpoint on held-out data where one was kept, else the newest
    that is intact. Evaluation mode, no gradients to the weights. Raises CheckpointError for
    missing or damaged files, or raw weights (``ema=False``) of an export.
    """
    path = Path(run_or_file).expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        if not ema:
            raise CheckpointError(f"{path}: holds EMA weights only; name a checkpoint instead")
        found = load_weights(path)
        return _loaded(path, found.config, found.data, found.step, found.tensors)
    path, checkpoint, notes = _checkpoint(path)
    weights = checkpoint.ema if ema else checkpoint.model
    return _loaded(path, checkpoint.config, checkpoint.data, checkpoint.step, weights, notes)


def _checkpoint(path: Path) -> tuple[Path, Checkpoint, list[str]]:
    if not path.is_dir():
        return path, load(path), []
    folder = path if step_files(path) or (path / BEST).exists() else path / "checkpoints"
    if not (folder / BEST).exists():
        return newest(folder)
    try:
        return folder / BEST, load(folder / BEST), []
    except CheckpointError as error:
        source, checkpoint, notes = newest(folder)
        return source, checkpoint, [str(error), *notes]


def _loaded(
    path: Path,
    plain: Mapping[str, Any],
    description: DataDescription,
    step: int,
    weights: Mapping[str, Tensor],
    notes: Iterable[str] = (),
) -> LoadedRun:
    config = config_from(plain, path)
    model = build_model(config, description)
    load_tensors(model, weights, path)
    model.eval().requires_grad_(False)
    return LoadedRun(model, config, description, step, path, tuple(notes))
