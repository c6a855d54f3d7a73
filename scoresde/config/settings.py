"""Settings of training and of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scoresde.arguments import Count, Fraction, Natural, NonNegative, Positive, Range
from scoresde.registry import AUGMENTATIONS, DRAWS, OPTIMIZERS, TIMES, WEIGHTINGS
from scoresde.solvers import ODE_METHODS
from scoresde.training import losses
from scoresde.training.times import LogSNR, Uniform

if TYPE_CHECKING:
    ScoringMethod = str
else:
    ScoringMethod = Literal[("path", "adaptive", "elbo", "discrete", *ODE_METHODS)]


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a model is trained.

    Args:
        steps: optimiser steps.
        batch: images a step, in total over all processes.
        optimizer: optimizer.
        lr: learning rate after the warm-up.
        weight_decay: weight_decay.
        warmup: steps over which the learning rate rises from 0.
        schedule: of the learning rate after the warm-up; cosine ends at 0.
        decay_from: step from which inverse_sqrt falls; null for the other schedules.
        accumulate: parts of a batch whose gradients are summed, one after the other.
        precision: of the layers; weights, their averages and the loss are float32.
        prefetch: batches drawn ahead in a thread while the device computes; the numbers are
            the same.
        compile: compile the network: minutes at the start, faster steps.
        channels_last: channels side by side in memory, for images.
        shard: split weights, gradients and averages between the processes (FSDP), for large
            networks.
        clip: largest gradient norm; null is off.
        ema: decay of the averaged weights; 0 is off. Of several, such as 0.999,0.9999, the
            first is the one that is used unless `--ema-decay` chooses another.
        posthoc: widths (sigma_rel) of power-function averages kept beside it, such as
            0.05,0.1, which give any other width afterwards: `scoresde sample --ema-width`.
        posthoc_every: steps between two snapshots of them.
        weighting: weighting.
        learned_weight: learn a further weight of every noise level beside the network, one
            over the loss expected there, so that all levels count alike.
        times: times.
        draw: how the times of a batch hang together.
        dither: uniform noise within each level; false trains on the middles of the levels, for
            likelihoods by truncated-normal dequantisation or a decoder.
        augment: augment.
        label_dropout: share of examples trained without their class, when conditional.
        holdout: share of the training split kept for the held-out loss; 0 is none.
        keep_best: choose the stopping step on the held-out loss.
        log_every: log_every.
        validate_every: validate_every.
        sample_every: sample_every.
        checkpoint_every: checkpoint_every.
        keep: checkpoints kept.
        on_failed_save: when a checkpoint cannot be written; at the last step or an
            interruption it always stops.
        tensorboard: also write the records for TensorBoard, into tensorboard/ of the run
            folder; an extra: pip install scoresde[tensorboard].
    """

    steps: Count = 10000
    batch: Count = 128
    optimizer: Annotated[Any, OPTIMIZERS] = "adam"
    lr: Positive = 0.0002
    weight_decay: NonNegative = 0.0
    warmup: Natural = 0
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    decay_from: Count | None = None
    accumulate: Count = 1
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    prefetch: Annotated[int, Range(ge=0, le=64)] = 0
    compile: bool = False
    channels_last: bool = False
    shard: bool = False
    clip: Positive | None = 1.0
    ema: tuple[Fraction, ...] = (0.999,)
    posthoc: tuple[Annotated[float, Range(ge=0.001, le=0.28)], ...] = ()
    posthoc_every: Count = 1000
    weighting: Annotated[Any, WEIGHTINGS] = "unit"
    learned_weight: bool = False
    times: Annotated[Any, TIMES] = "uniform"
    draw: Annotated[Any, DRAWS] = "stratified"
    dither: bool = True
    augment: Annotated[Any, AUGMENTATIONS] = "none"
    label_dropout: Fraction = 0.1
    holdout: Fraction = 0.1
    keep_best: bool = True
    log_every: Count = 100
    validate_every: Count = 500
    sample_every: Count = 2000
    checkpoint_every: Count = 1000
    keep: Count = 3
    on_failed_save: Literal["stop", "go_on"] = "stop"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(f"need warmup < steps, got warmup={self.warmup}, steps={self.steps}")
        if self.weighting is losses.likelihood and not isinstance(self.times, Uniform | LogSNR):
            raise ValueError(
                "the expectation of weighting=likelihood is over uniform times, its importance "
                f"sampler log_snr, got times={self.times}; choose one of the two"
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch={self.batch} is not divisible by accumulate={self.accumulate}"
            )
        if (self.schedule == "inverse_sqrt") != (self.decay_from is not None):
            raise ValueError(
                f"decay_from={self.decay_from} and schedule={self.schedule}; "
                "give decay_from with inverse_sqrt, and only with it"
            )
        if not self.ema or len(set(self.ema)) < len(self.ema):
            raise ValueError(f"need one decay or different ones, got ema={list(self.ema)}")
        if self.shard and self.channels_last:
            raise ValueError(
                "shard=true lays weights out in its own way; leave out channels_last or shard"
            )
        if self.shard and self.compile:
            raise ValueError(
                "shard=true puts weights together between blocks, where compiled code fails; "
                "leave out compile or shard"
            )
        if len(set(self.posthoc)) < len(self.posthoc):
            raise ValueError(f"need different widths, got posthoc={list(self.posthoc)}")
        if self.keep_best and self.holdout == 0:
            raise ValueError(
                "keep_best=true needs held-out data, got holdout=0; set one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How data are scored: by the probability flow, or by a variational bound.

    Args:
        method: path: orthogonal probes at equal steps of log-SNR; adaptive: steps of every
            image's own; elbo, discrete: the bound in continuous time, or of a chain; the
            others are torchdiffeq's.
        dequantisation: of levels; the last two for a model of the levels themselves
            (train.dither false).
        t0: time at which the model takes over; null: t_min, or where a level is 16 deviations
            wide.
        steps: of path, of fixed-step methods, of discrete.
        between: steps of the walk of path between two nodes of its quadrature.
        rtol: rtol.
        atol: atol.
        trace: the divergence: estimated by random probes, or exact.
        probes: of hutchinson and hutch++.
        times: levels of noise an image of elbo, or transitions of discrete.
        chain: what the levels of discrete are equal steps of; uniform: t, as in a DDPM table.
        variance: of the reverse steps of discrete.
        repeats: draws of the dequantisation, the probes and the times an image.
        importance: combine the repeats to the importance-weighted bound instead of their mean.
        check: images scored twice more, by other draws and a coarser solver, to tell those
            errors.
        batch: batch.
    """

    method: ScoringMethod = "path"
    dequantisation: Literal["uniform", "truncated_normal", "decoder"] = "uniform"
    t0: Positive | None = None
    steps: Count = 64
    between: Count = 1
    rtol: Positive = 1e-05
    atol: Positive = 1e-05
    trace: Literal["hutchinson", "exact", "hutch++"] = "hutchinson"
    probes: Count = 1
    times: Count = 32
    chain: Literal["uniform", "log_snr"] = "uniform"
    variance: Literal["small", "large", "learned"] = "small"
    repeats: Count = 1
    importance: bool = False
    check: Natural = 32
    batch: Count = 128

    def __post_init__(self) -> None:
        if self.method == "path" and self.steps < 12:
            raise ValueError(
                f"method=path needs steps >= 12 for its quadrature, got steps={self.steps}"
            )
        if self.method == "path" and self.trace == "hutch++":
            raise ValueError(
                "method=path has fresh probes at every node, trace=hutch++ holds its sketch; "
                "choose trace: hutchinson, or method: adaptive"
            )
        if self.method == "elbo" and self.dequantisation == "truncated_normal":
            raise ValueError(
                "method=elbo bounds uniform levels or decodes them, got "
                "dequantisation=truncated_normal; choose uniform or decoder"
            )
        if self.method in ("elbo", "discrete") and self.times < 2:
            raise ValueError(f"method={self.method} needs times >= 2, got times={self.times}")
        if self.method == "discrete" and self.steps < 3:
            raise ValueError(f"method=discrete needs steps >= 3, got steps={self.steps}")
        if self.method == "discrete" and self.dequantisation == "truncated_normal":
            raise ValueError("method=discrete decodes levels itself; leave dequantisation out")
        if self.method == "discrete" and self.t0 is not None:
            raise ValueError("method=discrete ends at the last level of its chain; leave t0 out")
        if self.importance and self.method in ("elbo", "discrete"):
            raise ValueError(
                f"importance=true joins densities, method={self.method} estimates a bound, whose "
                "scatter would lift it above the truth; choose method: path"
            )
        if self.importance and self.repeats < 2:
            raise ValueError("importance=true combines repeats >= 2, got repeats=1; raise repeats")
