"""What a run is made of, as plain checked values: the one place that knows the configuration.

Sections with a ``kind`` are choices; their other keys are the arguments of the constructor that
``scoresde.registry`` finds under that name. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from scoresde.config.base import (
    Choice,
    Count,
    Fraction,
    Fractions,
    Positive,
    Real,
    Section,
    Whole,
)
from scoresde.config.model import (
    Data,
    DigitsData,
    DiTNetwork,
    ImageNetwork,
    LinearBetaSDE,
    NetworkChoice,
    Parameterization,
    PlainParameterization,
    Process,
    UNetNetwork,
)
from scoresde.config.sampling import ODEMethod, Sample

LABEL_DROPOUT = 0.1

Probability = Annotated[Real, Field(ge=0, le=1)]

# Training -----------------------------------------------------------------------------------


class PlainWeighting(Section):
    """Weight of the loss: 1 on the network output, sigma^2 or g^2 (likelihood) on the score."""

    kind: Literal["unit", "sigma2", "likelihood"] = "unit"


class MinSNRWeighting(Section):
    """min(SNR, gamma) on x0."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: Positive = 5.0


class EDMWeighting(Section):
    """Unit weight of the EDM network."""

    kind: Literal["edm"] = "edm"
    sigma_data: Positive = 0.5
    """standard deviation of the scaled data"""


class PlainTimes(Section):
    """Uniform t, or uniform log-SNR."""

    kind: Literal["uniform", "log_snr"] = "uniform"


class LogNormalTimes(Section):
    """log(sigma / alpha) normal."""

    kind: Literal["lognormal"] = "lognormal"
    mean: Real = -1.2
    std: Positive = 1.2


class LevelTimes(Section):
    """Equally likely levels of a discrete process."""

    kind: Literal["levels"] = "levels"
    n: Count = 1000


class NoAugmentation(Section):
    """Images as they are."""

    kind: Literal["none"] = "none"


class PlainAugmentation(Section):
    """Mirror images and shifts, which the model then makes as well."""

    kind: Literal["plain"] = "plain"
    flip: Probability = 0.5
    """probability of a mirror image, left to right"""
    crop: Annotated[Whole, Field(ge=0, le=1024)] = 0
    """most pixels of a random shift, with reflection at the border"""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.flip == 0 and self.crop == 0:
            raise ValueError("flip=0 and crop=0 do nothing; raise one, or set augment: none")
        return self


class EDMAugmentation(Section):
    """Flips, scalings, rotations and translations that the network is told of."""

    kind: Literal["edm"] = "edm"
    probability: Annotated[Real, Field(gt=0, le=1)] = 0.12
    """of each of the five besides the mirror image"""
    flip: Probability = 0.5
    """probability of a mirror image, left to right"""


class Train(Section):
    """How it is trained."""

    steps: Count = 10_000
    """optimiser steps"""
    batch: Count = 128
    """images a step, in total over all processes"""
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Positive = 2e-4
    """learning rate after the warm-up"""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    warmup: Annotated[Whole, Field(ge=0)] = 0
    """steps over which the learning rate rises from 0"""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """of the learning rate after the warm-up; cosine ends at 0"""
    decay_from: Count | None = None
    """step from which inverse_sqrt falls; null for the other schedules"""
    accumulate: Count = 1
    """parts of a batch whose gradients are summed, one after the other"""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """of the layers; weights, their averages and the loss are float32"""
    prefetch: Annotated[Whole, Field(ge=0, le=64)] = 0
    """batches drawn ahead in a thread while the device computes; the numbers are the same"""
    compile: bool = False
    """compile the network: minutes at the start, faster steps"""
    channels_last: bool = False
    """channels side by side in memory, for images"""
    shard: bool = False
    """split weights, gradients and averages between the processes (FSDP), for large networks"""
    clip: Positive | None = 1.0
    """largest gradient norm; null is off"""
    ema: Fractions = (0.999,)
    """decay of the averaged weights; 0 is off. Of several, such as 0.999,0.9999, the first is the
    one that is used unless `--ema-decay` chooses another"""
    posthoc: tuple[Annotated[Real, Field(ge=0.001, le=0.28)], ...] = ()
    """widths (sigma_rel) of power-function averages kept beside it, such as 0.05,0.1, which give
    any other width afterwards: `scoresde sample --ema-width`"""
    posthoc_every: Count = 1_000
    """steps between two snapshots of them"""
    weighting: Annotated[PlainWeighting | MinSNRWeighting | EDMWeighting, Choice] = (
        PlainWeighting()
    )
    learned_weight: bool = False
    """learn a further weight of every noise level beside the network, one over the loss expected
    there, so that all levels count alike"""
    times: Annotated[PlainTimes | LogNormalTimes | LevelTimes, Choice] = PlainTimes()
    draw: Literal["independent", "antithetic", "stratified"] = "stratified"
    """how the times of a batch hang together"""
    dither: bool = True
    """uniform noise within each level; false trains on the middles of the levels, for likelihoods
    by truncated-normal dequantisation or a decoder"""
    augment: Annotated[NoAugmentation | PlainAugmentation | EDMAugmentation, Choice] = (
        NoAugmentation()
    )
    label_dropout: Fraction = LABEL_DROPOUT
    """share of examples trained without their class, when conditional"""
    holdout: Fraction = 0.1
    """share of the training split kept for the held-out loss; 0 is none"""
    keep_best: bool = True
    """choose the stopping step on the held-out loss"""
    log_every: Count = 100
    validate_every: Count = 500
    sample_every: Count = 2_000
    checkpoint_every: Count = 1_000
    keep: Count = 3
    """checkpoints kept"""
    on_failed_save: Literal["stop", "go_on"] = "stop"
    """when a checkpoint cannot be written; at the last step or an interruption it always stops"""
    tensorboard: bool = False
    """also write the records for TensorBoard, into tensorboard/ of the run folder; an extra:
    pip install scoresde[tensorboard]"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weighting.kind == "likelihood" and self.times.kind not in ("uniform", "log_snr"):
            raise ValueError(
                "the expectation of weighting=likelihood is over uniform times, its importance "
                f"sampler log_snr, got times={self.times.kind}; choose one of the two"
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
        return self


# Likelihood and the whole ------------------------------------------------------------------

OWN_METHODS = ("path", "adaptive", "elbo", "discrete")
if TYPE_CHECKING:
    ScoringMethod = str
else:
    ScoringMethod = Literal[(*OWN_METHODS, *get_args(ODEMethod))]


class Likelihood(Section):
    """How it is scored: by the probability flow, or by a variational bound."""

    method: ScoringMethod = "path"
    """path: orthogonal probes at equal steps of log-SNR; adaptive: steps of every image's own;
    elbo, discrete: the bound in continuous time, or of a chain; the others are torchdiffeq's"""
    dequantisation: Literal["uniform", "truncated_normal", "decoder"] = "uniform"
    """of levels; the last two for a model of the levels themselves (train.dither false)"""
    t0: Positive | None = None
    """time at which the model takes over; null: t_min, or where a level is 16 deviations wide"""
    steps: Count = 64
    """of path, of fixed-step methods, of discrete"""
    between: Count = 1
    """steps of the walk of path between two nodes of its quadrature"""
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    trace: Literal["hutchinson", "exact", "hutch++"] = "hutchinson"
    """the divergence: estimated by random probes, or exact"""
    probes: Count = 1
    """of hutchinson and hutch++"""
    times: Count = 32
    """levels of noise an image of elbo, or transitions of discrete"""
    chain: Literal["uniform", "log_snr"] = "uniform"
    """what the levels of discrete are equal steps of; uniform: t, as in a DDPM table"""
    variance: Literal["small", "large", "learned"] = "small"
    """of the reverse steps of discrete"""
    repeats: Count = 1
    """draws of the dequantisation, the probes and the times an image"""
    importance: bool = False
    """combine the repeats to the importance-weighted bound instead of their mean"""
    check: Annotated[Whole, Field(ge=0)] = 32
    """images scored twice more, by other draws and a coarser solver, to tell those errors"""
    batch: Count = 128

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
        return self


class Config(Section):
    """A whole run."""

    seed: Annotated[Whole, Field(ge=0)] = 0
    """of the weights, the data order and every draw of the training"""
    data: Data = DigitsData()
    sde: Process = LinearBetaSDE()
    parameterization: Parameterization = PlainParameterization()
    network: NetworkChoice = UNetNetwork()
    conditional: bool = False
    """give the network the classes of the data set"""
    train: Train = Train()
    sample: Sample = Sample()
    likelihood: Likelihood = Likelihood()

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        sde, law = self.sde, self.train.times
        if sde.kind == "discrete_vp" and law.kind == "levels" and law.n != sde.levels:
            raise ValueError(
                f"train.times.n={law.n} and sde.levels={sde.levels} differ; give both the same"
            )
        return self

    @model_validator(mode="after")
    def _deviations_agree(self) -> Self:
        network, loss = self.parameterization, self.train.weighting
        if network.kind == loss.kind == "edm" and network.sigma_data != loss.sigma_data:
            raise ValueError(
                f"parameterization.sigma_data={network.sigma_data:g} and "
                f"train.weighting.sigma_data={loss.sigma_data:g} differ; give both the same"
            )
        return self

    @model_validator(mode="after")
    def _head_fits(self) -> Self:
        if isinstance(self.network, ImageNetwork | DiTNetwork) and self.network.head == "levels":
            if self.parameterization.kind != "x0":
                raise ValueError(
                    "network.head=levels gives x0, got parameterization="
                    f"{self.parameterization.kind}; set parameterization: x0"
                )
            if self.train.dither:
                raise ValueError(
                    "network.head=levels knows the middles of the levels only; "
                    "set train.dither: false"
                )
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> Self:
        kind, dither = self.train.augment.kind, self.train.dither
        if kind != "none" and self.network.kind == "mlp":
            raise ValueError(
                f"train.augment={kind} is for images, got network.kind=mlp; leave it out"
            )
        # network.head=levels asks for the middles of the levels, so this refuses it as well.
        if kind == "edm" and not dither:
            raise ValueError(
                "train.augment=edm interpolates, which leaves the middles of the levels that "
                "train.dither=false and network.head=levels are for; take augment: plain"
            )
        return self

    @model_validator(mode="after")
    def _layout_used(self) -> Self:
        if self.train.channels_last and self.network.kind in ("mlp", "dit"):
            raise ValueError(
                "train.channels_last=true is for convolutions, got network.kind="
                f"{self.network.kind}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _labels_used(self) -> Self:
        dropout = self.train.label_dropout
        if not self.conditional and dropout not in (0, LABEL_DROPOUT):
            raise ValueError(
                f"train.label_dropout={dropout:g} has no effect with conditional=false; "
                "set conditional: true or leave it out"
            )
        return self
