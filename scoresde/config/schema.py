"""Schema of the configuration: its sections, and rules that relate two sections.

A section holds the arguments of constructors (``scoresde.config.sections``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from scoresde import registry
from scoresde.arguments import Count, Natural, arguments
from scoresde.config.sections import Group, Named, Problem, build, contents, read
from scoresde.latent.losses import Loss
from scoresde.latent.training import CodecPlan, CodecRecords
from scoresde.training import Plan, Reporting
from scoresde.training.vlb import require_trained

LABEL_DROPOUT = arguments(Plan)["label_dropout"].default
TRAIN = Group((Plan, Reporting), frozenset(Plan.OUTSIDE))
TRAIN_AUTOENCODER = Group((CodecPlan, CodecRecords), frozenset(CodecPlan.OUTSIDE))


class ConfigError(ValueError):
    """Invalid configuration; the message is one line with file, key and remedy."""


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Args:
        sampler: method that takes the steps, or solver.
        grid: times of the steps.
        steps: steps of the grid; the solver ode uses it for its fixed-step methods only, the
            solver sde for equal steps of log-SNR.
        denoise: end with the denoised state.
    """

    sampler: Annotated[Any, registry.SAMPLERS] = "recommended"
    grid: Annotated[Any, registry.GRIDS] = "recommended"
    steps: Count = 18
    denoise: bool = True


class Schema:
    """A configuration: a frozen dataclass of keys and sections. Raises ConfigError."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    seed: int
    data: Any
    TRAINS: ClassVar[str] = "model"
    """What a run with it trains: "model" or "autoencoder"."""
    RULES: ClassVar[tuple[Callable[[Any], None], ...]] = ()
    """Rules that relate two sections."""

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        schema: Any = type(self)
        for name, argument in arguments(schema).items():
            value = getattr(self, name)
            section = value is None and contents(argument) is not None
            found = read(argument, {} if section else value, (name,), problems)
            object.__setattr__(self, name, found)
        if problems:
            raise ConfigError("; ".join(f"{'.'.join(map(str, p))}: {t}" for p, t, _ in problems))
        for rule in self.RULES:
            rule(self)


@dataclass(frozen=True, kw_only=True)
class Config(Schema):
    """Configuration of a whole run. Raises ConfigError for invalid values.

    Args:
        seed: seed of the initial weights, the order of the data and all random draws in training.
        data: data set.
        codec: run folder or file of a codec, whose latents are modelled in place of pictures.
        sde: forward process.
        parameterization: meaning of the output of the network.
        network: network.
        conditional: give the network the classes of the data set.
        self_conditioning: give the network its own estimate of x0, for images; an evaluation is
            then two network calls.
        conditions: what else the model is told, by name. A name is that of a column of the data
            set, unless the condition is made of the example itself.
        train: how the model is trained.
        sample: how samples are drawn.
        likelihood: how data are scored.
        own: coefficients of the process and the parameterization of a model built by a program;
            empty if this configuration describes the model.
    """

    seed: Natural = 0
    data: Annotated[Any, registry.DATASETS] = "digits"
    codec: Path | None = None
    sde: Annotated[Any, registry.SDES] = "vp"
    parameterization: Annotated[Any, registry.PARAMETERIZATIONS] = "v"
    network: Annotated[Any, registry.NETWORKS] = "unet"
    conditional: bool = False
    self_conditioning: bool = False
    conditions: Annotated[Any, Named(registry.CONDITIONS)] = None
    train: Annotated[Any, TRAIN] = None
    sample: Annotated[Any, Group((Sampling,))] = None
    likelihood: Annotated[Any, Group((registry.Scoring,))] = None
    own: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Schema):
    """Configuration of the training of an autoencoder. Raises ConfigError for invalid values.

    Args:
        seed: seed of the initial weights, the order of the data and all random draws in training.
        data: data set of pictures.
        autoencoder: what maps pictures to latents and back.
        loss: weights of the terms of the loss.
        discriminator: network that tells reconstructions from pictures, trained against them.
        train: how the autoencoder is trained.
        own: the autoencoder is one that a program built; this configuration does not describe it.
    """

    TRAINS: ClassVar[str] = "autoencoder"

    seed: Natural = 0
    data: Annotated[Any, registry.DATASETS] = "digits"
    autoencoder: Annotated[Any, registry.AUTOENCODERS] = "kl"
    loss: Annotated[Any, Group((Loss,))] = None
    discriminator: Annotated[Any, registry.DISCRIMINATORS] = "none"
    train: Annotated[Any, TRAIN_AUTOENCODER] = None
    own: bool = False


# Rules that need two sections -------------------------------------------------------------------


def _levels_agree(config: Config) -> None:
    sde, law = config.sde, config.train.times
    if sde.kind == "discrete_vp" and law.kind in ("levels", "loss_aware") and law.n != sde.levels:
        raise ConfigError(
            f"train.times.n={law.n} and sde.levels={sde.levels} differ; give both the same"
        )


def _deviations_agree(config: Config) -> None:
    network, loss = config.parameterization, config.train.weighting
    if network.kind == loss.kind == "edm" and network.sigma_data != loss.sigma_data:
        raise ConfigError(
            f"parameterization.sigma_data={network.sigma_data:g} and "
            f"train.weighting.sigma_data={loss.sigma_data:g} differ; give both the same"
        )


def _head_fits(config: Config) -> None:
    if config.network.values.get("head") != "levels":
        return
    if config.parameterization.kind != "x0":
        raise ConfigError(
            "network.head=levels gives x0, got parameterization="
            f"{config.parameterization.kind}; set parameterization: x0"
        )
    if config.train.dither:
        raise ConfigError(
            "network.head=levels needs undithered pixel levels; set train.dither: false"
        )


def _variance_trained(config: Config) -> None:
    if config.own:  # the network is that of a program
        return
    try:
        require_trained(
            config.network.values.get("head") == "variance", build(config.train.objective)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _estimate_fits(config: Config) -> None:
    network = config.network
    if (
        config.self_conditioning
        and not config.own
        and "concat" not in arguments(network.makers[0])
    ):
        raise ConfigError(
            f"self_conditioning=true is for images, got network.kind={network.kind}; "
            "set self_conditioning to false"
        )


def _augmentation_fits(config: Config) -> None:
    kind = config.train.augment.kind
    if kind != "none" and config.network.kind == "mlp":
        raise ConfigError(
            f"train.augment={kind} is for images, got network.kind=mlp; leave it out"
        )
    # network.head=levels requires train.dither=false, so this excludes it as well.
    if kind == "edm" and not config.train.dither:
        raise ConfigError(
            "train.augment=edm interpolates, which leaves the middles of the levels that "
            "train.dither=false and network.head=levels are for; take augment: plain"
        )


def _noise_fits(config: Config) -> None:
    noise, process = config.parameterization.values.get("noise", "log"), config.sde.kind
    needed = {"index": "discrete_vp", "time": "linear_flow"}.get(noise, process)
    if needed != process and not config.own:
        raise ConfigError(
            f"parameterization.noise={noise} is a number of sde.kind={needed}, got sde.kind="
            f"{process}; set sde.kind to {needed}, or parameterization.noise to log"
        )
    if noise != "log" and config.network.values.get("head") == "levels":
        raise ConfigError(
            f"network.head=levels needs parameterization.noise=log, got {noise}; set "
            "network.head to value"
        )


def _layout_used(config: Config) -> None:
    if config.train.channels_last and config.network.kind in ("mlp", "dit"):
        raise ConfigError(
            "train.channels_last=true is for convolutions, got network.kind="
            f"{config.network.kind}; leave it out"
        )


def require_latents(config: Config) -> None:
    """Raise ConfigError for settings of pixels that have no meaning for latents."""
    if (kind := config.train.augment.kind) != "none":
        raise ConfigError(
            f"train.augment={kind} is for pictures, and with codec the model sees latents: a "
            "flipped latent is not that of the flipped picture; leave it out"
        )
    if config.network.values.get("head") == "levels":
        raise ConfigError(
            "network.head=levels is for pixel levels, and with codec the model sees latents; set "
            "network.head to value"
        )


def _latents_fit(config: Config) -> None:
    if config.codec is not None:
        require_latents(config)


def _labels_used(config: Config) -> None:
    dropout = config.train.label_dropout
    if not config.conditional and dropout not in (0, LABEL_DROPOUT):
        raise ConfigError(
            f"train.label_dropout={dropout:g} has no effect with conditional=false; "
            "set conditional: true or leave it out"
        )


Config.RULES = (
    _levels_agree,
    _deviations_agree,
    _head_fits,
    _variance_trained,
    _estimate_fits,
    _augmentation_fits,
    _noise_fits,
    _layout_used,
    _latents_fit,
    _labels_used,
)
