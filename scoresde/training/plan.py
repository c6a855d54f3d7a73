"""The settings of training and reporting, with their defaults and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch

from scoresde.arguments import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
    check_fields,
)
from scoresde.training.augment import Augmentation
from scoresde.training.distributed import Rank
from scoresde.training.losses import Weight, likelihood, reweighted
from scoresde.training.precision import Precision
from scoresde.training.times import Draw, Times, Uniform, stratified
from scoresde.training.vlb import Objective

Width = Annotated[float, Range(ge=0.001, le=0.28)]


@dataclass(frozen=True, kw_only=True)
class Updates:
    """The settings of the updates of weights that every training has.

    Args:
        steps: optimiser steps, counted from the start of the run
        batch: examples per step, in total over all processes
        optimizer: optimiser of the network's weights
        lr: learning rate after the warm-up
        weight_decay: weight decay of the optimiser; decoupled in adamw
        warmup: steps over which the learning rate rises from 0; half of all steps if it exceeds
            them
        schedule: learning rate after the warm-up; cosine ends at 0, inverse_sqrt falls after
            decay_from steps as 1 / sqrt(step)
        decay_from: step after which inverse_sqrt falls; null for the other schedules
        accumulate: number of microbatches of a batch, computed in sequence to save memory
        precision: number format of the layers; weights, averages and loss are always float32
        prefetch: batches prepared in advance by a thread; the numbers do not depend on it
        channels_last: store the channels of a pixel side by side in memory, for images
        clip: largest norm of the gradient; null does not clip
        augment: random changes of the training images
        seed: random seed of the data order and of every draw
        rank: number of this process and of all processes

    Raises ValueError for values out of range or that exclude each other.
    """

    OUTSIDE: ClassVar[tuple[str, ...]] = ("seed", "rank")
    """Fields that are not keys of the section ``train`` of a configuration."""
    # Learning rate and clipping are the remedies for a loss that is not finite.
    FREE: ClassVar[frozenset[str]] = frozenset(("steps", "lr", "clip", "prefetch"))
    """Fields that may change when a run is resumed."""

    steps: Count = 10_000
    batch: Count = 128
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    lr: Positive = 2e-4
    weight_decay: NonNegative = 0.0
    warmup: Natural = 0
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    decay_from: Count | None = None
    accumulate: Count = 1
    precision: Precision = "float32"
    prefetch: Annotated[int, Range(ge=0, le=64)] = 0
    channels_last: bool = False
    clip: Positive | None = 1.0
    augment: Augmentation | None = None
    seed: Natural = 0
    rank: Rank = field(default_factory=Rank)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch % (self.accumulate * self.rank.size):
            raise ValueError(
                f"batch={self.batch} cannot be split into accumulate={self.accumulate} equal "
                f"parts on each of {self.rank.size} processes; make it a multiple of them"
            )
        if (self.schedule == "inverse_sqrt") != (self.decay_from is not None):
            raise ValueError(
                f"decay_from={self.decay_from} and schedule={self.schedule}; "
                "give decay_from with inverse_sqrt, and only with it"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up: half of all steps if ``warmup`` would last to the end."""
        return self.warmup if self.warmup < self.steps else self.steps // 2

    def learning_rate(self, step: int) -> float:
        """The learning rate of update ``step`` = 0, 1, ...

        cosine: SGDR, arXiv 1608.03983, eq. 5. inverse_sqrt: arXiv 2312.02696, appendix B.
        """
        warmup = self.warmup_steps
        rate = self.lr * min(1.0, (step + 1) / max(warmup, 1))
        if self.schedule == "cosine":
            done = min(max(step - warmup, 0) / (self.steps - warmup), 1.0)
            return rate * (1 + math.cos(math.pi * done)) / 2
        if self.decay_from is not None:
            return rate / math.sqrt(max((step + 1) / self.decay_from, 1.0))
        return rate


@dataclass(frozen=True, kw_only=True)
class Plan(Updates):
    """All settings that determine the weights of a trained model.

    Args:
        compile: compile the network; takes minutes at the start and makes steps faster
        shard: split weights, gradients and averages between the processes (FSDP), for networks
            too large for one device
        ema: decay of the averaged weights; 0 does not average. With several decays, such as
            0.999,0.9999, the first is used unless another is chosen when loading
        posthoc: widths (sigma_rel) of power-function averages to store, such as 0.05,0.1; other
            widths can be synthesised from them after training
        objective: the denoising loss, or the variational bound of a chain of levels, which also
            trains a variance (network.head: variance)
        weighting: weight of the denoising loss
        learned_weight: learn a further weight for every noise level, the inverse of its expected
            loss, so that all noise levels contribute equally
        times: distribution of the training times
        draw: dependence between the times of a batch
        dither: add uniform noise within each pixel level; false trains on the middles of the
            levels, for likelihoods by truncated-normal dequantisation or a decoder
        offset_noise: deviation of further noise that is the same for all pixels of a channel, so
            that samples may be as dark or as bright as an image; x at t_max is then another one
            than the samplers start from
        input_noise: deviation of further noise in the input of the network alone, in units of the
            noise of its level; against the exposure bias of long chains, 0.1 in its paper
        label_dropout: fraction of examples trained without their class, in a conditional model
        classes: number of classes of a conditional model; None is unconditional

    Raises ValueError for values out of range or that exclude each other.
    """

    OUTSIDE: ClassVar = (*Updates.OUTSIDE, "classes")
    FREE: ClassVar = Updates.FREE | {"shard"}

    compile: bool = False
    shard: bool = False
    ema: Annotated[tuple[Fraction, ...], Range(length=1)] = (0.999,)
    posthoc: tuple[Width, ...] = ()
    objective: Objective | None = None
    weighting: Weight | None = None
    learned_weight: bool = False
    times: Times = Uniform()
    draw: Draw = stratified
    dither: bool = True
    offset_noise: NonNegative = 0.0
    input_noise: NonNegative = 0.0
    label_dropout: Fraction = 0.1
    classes: Count | None = None

    def __post_init__(self) -> None:
        for name in ("ema", "posthoc"):  # a single number becomes a tuple
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, tuple | list) else (value,)
            object.__setattr__(self, name, values)
            if len(set(values)) < len(values):
                raise ValueError(f"need different values of {name}, got {name}={list(values)}")
        super().__post_init__()
        if self.shard and (self.channels_last or self.compile):
            other = "channels_last" if self.channels_last else "compile"
            raise ValueError(f"shard=true does not work with {other}=true; set one to false")
        self._density()
        if self.objective is not None and not hasattr(self.times, "n"):
            raise ValueError(
                f"objective={self.objective} is of a chain of levels, got times={self.times}; "
                "choose times: levels or loss_aware"
            )
        if self.objective is not None and self.learned_weight:
            raise ValueError(
                f"objective={self.objective} may be negative, which learned_weight=true cannot "
                "weigh; set one of the two"
            )

    @property
    def chain(self) -> int:
        """The number of levels of the chain of ``times``; 0 for continuous times."""
        return getattr(self.times, "n", 0)

    @property
    def weight(self) -> Weight | None:
        """The weight on the squared error of x0_hat; None is a unit weight on the network output.

        The likelihood weight is divided by the density of ``times`` (importance sampling).
        """
        density = self._density()
        return self.weighting if density is None else reweighted(likelihood, density)

    def _density(self) -> Any:
        """The density of ``times`` for the likelihood weighting, otherwise None."""
        if self.weighting is not likelihood:
            return None
        if not hasattr(self.times, "density"):
            raise ValueError(
                "the expectation of weighting=likelihood is over uniform times, its importance "
                f"sampler log_snr, got times={self.times}; choose one of the two"
            )
        return self.times.density


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records and checkpoints that every training writes.

    Args:
        holdout: fraction of the training examples reserved for the held-out loss
        log_every: steps between two records of the loss
        validate_every: steps between two measurements of the held-out loss
        sample_every: steps between two pictures of samples
        checkpoint_every: steps between two checkpoints
        keep: number of checkpoints to keep
        on_failed_save: reaction to a checkpoint that cannot be written; a failure of the last one,
            or at an interruption, always stops
        tensorboard: also write the records for TensorBoard, into tensorboard/ of the run folder;
            needs pip install scoresde[tensorboard]

    Raises ValueError for values out of range.
    """

    FREE: ClassVar[frozenset[str]] = frozenset(
        (
            *("log_every", "validate_every", "sample_every", "checkpoint_every"),
            *("keep", "on_failed_save", "tensorboard"),
        )
    )
    """Fields that may change when a run is resumed."""

    holdout: Fraction = 0.1
    log_every: Count = 100
    validate_every: Count = 500
    sample_every: Count = 2_000
    checkpoint_every: Count = 1_000
    keep: Count = 3
    on_failed_save: Literal["stop", "go_on"] = "stop"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Reporting(Records):
    """The records and checkpoints of the training of a model.

    Args:
        keep_best: choose the weights of the step with the lowest held-out loss
        posthoc_every: steps between two snapshots of the averages of posthoc

    Raises ValueError for values out of range or that exclude each other.
    """

    FREE: ClassVar = Records.FREE | {"posthoc_every"}

    keep_best: bool = True
    posthoc_every: Count = 1_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_best and self.holdout == 0:
            raise ValueError(
                "keep_best=true needs held-out data, got holdout=0; set one of the two"
            )
