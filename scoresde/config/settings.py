"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from scoresde.arguments import Count, Fraction, Natural, NonNegative, Positive, Range
from scoresde.registry import AUGMENTATIONS, DRAWS, OPTIMIZERS, TIMES, WEIGHTINGS
from scoresde.training import losses
from scoresde.training.times import LogSNR, Uniform


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
