"""The training loop: one update a step, every random number a function of (seed, step).

Whoever holds the weights, the average and the optimiser's state at step n therefore continues
exactly as an uninterrupted run would, in mid-epoch and with dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.data import Examples, Scaling, Split, batch_indices
from scoresde.nn.magnitude import normalise
from scoresde.parameterization import ScoreModel
from scoresde.sde import SDE
from scoresde.training import ema, losses, profiles, shards
from scoresde.training.augment import Augmentation
from scoresde.training.losses import Weight, dsm_loss
from scoresde.training.precision import MOST_SKIPPED, LossScale, Precision, autocast
from scoresde.training.prefetch import ahead
from scoresde.training.shares import Share
from scoresde.training.times import Draw, Times
from scoresde.training.uncertainty import LearnedWeight

LearningRate = Callable[[int], float]
"""Step 0, 1, ... to the learning rate of its update."""


class TrainingError(RuntimeError):
    """A run that cannot go on: one line with the step, what happened and what to try."""


@dataclass
class TrainState:
    """What changes while training: weights, their averages, the optimiser, and updates made.

    ``ema`` is the average that is used; ``decays`` are further exponential ones by their decay,
    ``averages`` power-function ones by their width, in ascending order; ``scale`` is that of an
    fp16 loss; ``learned`` is the weight of every level, if one is learned.
    """

    model: ScoreModel
    ema: ScoreModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    decays: dict[float, ScoreModel] = field(default_factory=dict)
    averages: dict[float, ScoreModel] = field(default_factory=dict)
    scale: LossScale = field(default_factory=LossScale)
    learned: LearnedWeight | None = None

    @property
    def models(self) -> list[ScoreModel]:
        """The model and every average of it."""
        return [self.model, self.ema, *self.decays.values(), *self.averages.values()]


@dataclass(frozen=True)
class Plan:
    """What does not change while training.

    ``steps`` counts updates from the start of the run, ``batch`` examples per update; ``times``
    of ``draw`` give t, ``weight`` weighs x0_hat (None: the network output). ``classes`` is the
    number of classes of a conditional model, whose labels become ``classes``, that is no label,
    each with probability ``label_dropout``. ``clip`` bounds the gradient norm (None: no bound).
    ``dither`` is that of ``dequantised``; ``augment`` changes the images. The gradient of a batch
    is summed over ``accumulate`` parts of it, in ``precision``, and over the processes that
    ``share`` it. The next ``prefetch`` batches are drawn meanwhile. Raises ValueError for numbers
    out of range.
    """

    steps: int
    batch: int
    seed: int
    times: Times
    draw: Draw
    weight: Weight | None
    learning_rate: LearningRate
    ema_decay: float = 0.999
    clip: float | None = 1.0
    classes: int | None = None
    label_dropout: float = 0.0
    dither: bool = True
    augment: Augmentation | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    prefetch: int = 0
    share: Share = field(default_factory=Share)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.seed < 0:
            found = f"steps={self.steps}, batch={self.batch}, seed={self.seed}"
            raise ValueError(f"need steps >= 1, batch >= 1 and seed >= 0, got {found}")
        if not (0 <= self.ema_decay <= 1 and 0 <= self.label_dropout <= 1):
            found = f"ema_decay={self.ema_decay:g}, label_dropout={self.label_dropout:g}"
            raise ValueError(f"need ema_decay and label_dropout in [0, 1], got {found}")
        if self.accumulate < 1 or self.batch % (self.accumulate * self.share.size):
            raise ValueError(
                f"batch={self.batch} cannot be split into accumulate={self.accumulate} equal "
                f"parts on each of {self.share.size} processes; make it a multiple of them"
            )
        if self.prefetch < 0:
            raise ValueError(f"need prefetch >= 0, got prefetch={self.prefetch}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"need clip > 0 or None, got clip={self.clip:g}")


@dataclass(frozen=True)
class Metrics:
    """One update: updates made so far, loss and gradient norm (0-dim, on the device), rate.

    ``skipped`` counts the updates so far left out because an fp16 gradient overflowed; ``t`` (B,)
    on the host and ``losses`` (B,) are those of the examples of this process.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    skipped: int
    t: Tensor
    losses: Tensor


class Batch(NamedTuple):
    """Clean examples in model units and noise (B, ...), times (B,), labels (B,) or None.

    ``augment`` (B, n) tells the network what was done to them, if it is told.
    """

    x0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None
    augment: Tensor | None = None


def start(
    model: ScoreModel,
    optimizer: torch.optim.Optimizer,
    widths: Sequence[float] = (),
    decays: Sequence[float] = (),
) -> TrainState:
    """The state before the first update; the averages start at the weights.

    ``widths`` are those of power-function averages, ``decays`` those of exponential ones, to be
    kept beside the one of the plan.
    """
    return TrainState(
        model,
        ema.averaged(model),
        optimizer,
        decays={decay: ema.averaged(model) for decay in sorted(decays)},
        averages={sigma_rel: ema.averaged(model) for sigma_rel in sorted(widths)},
    )


def fit(state: TrainState, plan: Plan, split: Examples, scaling: Scaling) -> Iterator[Metrics]:
    """Train ``state`` in place up to ``plan.steps`` updates, yielding after each one.

    Logging, validation, checkpoints and stopping are the caller's: it is an ordinary generator.
    Raises TrainingError at the first loss or gradient that is not finite, before its update.
    """
    model = state.model

    def draw(step: int) -> Batch:
        return _pinned(draw_batch(plan, split, scaling, model.sde, step), _device(model))

    for batch in ahead(draw, range(state.step, plan.steps), plan.prefetch):
        yield _updated(state, plan, batch)


def update(state: TrainState, plan: Plan, split: Examples, scaling: Scaling) -> Metrics:
    """One update of ``state`` in place, on the batch of its step."""
    batch = draw_batch(plan, split, scaling, state.model.sde, state.step)
    return _updated(state, plan, batch)


def _updated(state: TrainState, plan: Plan, batch: Batch) -> Metrics:
    """One update of ``state`` in place: loss, gradient, clipping, optimiser, averages."""
    model, rate = state.model, plan.learning_rate(state.step)
    _prepare(state.optimizer, rate)
    if state.learned is not None:
        _prepare(state.learned.optimizer, rate)
    t, losses = _backward(state, plan, batch)
    loss = losses.sum() / plan.batch
    norm = shards.sum_gradients(model, loss, plan.share)
    if state.learned is not None:
        plan.share.add(state.learned.gradients())
    if plan.clip is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), plan.clip, norm)
    if _is_finite(state, plan, loss, norm, rate):
        state.optimizer.step()
        normalise(model)
        if state.learned is not None:
            state.learned.optimizer.step()
    for average, kept in _averages(state, plan):
        ema.update(average, model, kept)
    state.step += 1
    return Metrics(state.step, loss, norm, rate, state.scale.skipped, t, losses)


def draw_batch(plan: Plan, split: Examples, scaling: Scaling, sde: SDE, step: int) -> Batch:
    """The batch of a step: examples, times, noise and labels, a function of (plan, step).

    Drawn on the host, so that every device sees the same numbers.
    """
    generator = torch.Generator().manual_seed(stream(plan.seed, step, "batch"))
    chosen = split.take(batch_indices(len(split), plan.batch, plan.seed, step))
    x0, told = _augmented(plan, chosen.x, scaling, generator, step)
    t = plan.times(sde, plan.draw(plan.batch, generator))
    eps = torch.randn(x0.shape, generator=generator)
    return Batch(x0, t, eps, _labels(plan, chosen.label, generator), told)


def dequantised(
    levels: Tensor, scaling: Scaling, generator: torch.Generator, dither: bool = True
) -> Tensor:
    """Model units of pixel levels: with ``dither`` uniform within each, else its middle; float32.

    Continuous data stay as they are.
    """
    if scaling.levels is None or not dither:
        return scaling.encode(levels)
    return scaling.encode(levels, torch.rand(levels.shape, generator=generator))


def stream(seed: int, step: int, purpose: str) -> int:
    """A 64-bit seed for one purpose at one step, mixed by numpy's SeedSequence.

    Neighbouring seeds and steps give unrelated streams; numpy promises the mixing never to change.
    """
    words = [seed, step, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def held_out_loss(
    model: ScoreModel,
    split: Split,
    scaling: Scaling,
    *,
    weight: Weight | None = losses.sigma2,
    conditional: bool = False,
    dither: bool = True,
    draws: int = 8,
    batch: int = 256,
    seed: int = 0,
) -> float:
    """Mean loss over a split at fixed dequantisation, noise and times, without dropout.

        mean |eps - eps_hat|^2 over lam uniform on [lam(t_max), lam(t_min)]

    With the default weight this is the diffusion part of the likelihood bound per dimension,
    divided by the range of lam. Every example meets ``draws`` times, one in each of as many equal
    parts of the range; two models, or two steps of one, meet the same numbers. Variational
    Diffusion Models, arXiv 2107.00630, eq. 17.
    """
    times = losses.held_out_times(model.sde, draws * len(split)).reshape(draws, -1)
    total = torch.zeros((), dtype=torch.float64, device=_device(model))
    with evaluating(model), torch.no_grad():
        for part, ts in enumerate(times):
            generator = torch.Generator().manual_seed(stream(seed, part, "held out"))
            label = split.label if conditional else None
            x0 = dequantised(split.x, scaling, generator, dither)
            b = _held_out_batch(x0, ts, label, generator)
            for rows in torch.arange(len(split)).split(batch):
                total += _loss_of(model, _take(b, rows), weight).double().sum()
    return float(total) / times.numel()


def warmup(rate: float, steps: int) -> LearningRate:
    """A linear rise to ``rate`` over ``steps`` updates, then constant.

    Raises ValueError for a rate <= 0 or steps < 0.
    """
    if not (rate > 0 and steps >= 0):
        raise ValueError(f"need rate > 0 and steps >= 0, got rate={rate:g}, steps={steps}")
    return lambda step: rate * min(1.0, (step + 1) / max(steps, 1))


def cosine(rate: float, steps: int, total: int) -> LearningRate:
    """The rise of ``warmup``, then half a cosine to 0 at update ``total``.

    Raises ValueError unless steps < total. SGDR, arXiv 1608.03983, eq. 5.
    """
    if not steps < total:
        raise ValueError(f"need warm-up steps < total, got {steps} and {total}")
    rising = warmup(rate, steps)

    def learning_rate(step: int) -> float:
        done = min(max(step - steps, 0) / (total - steps), 1.0)
        return rising(step) * (1 + math.cos(math.pi * done)) / 2

    return learning_rate


def inverse_sqrt(rate: float, steps: int, start: int) -> LearningRate:
    """The rise of ``warmup``, then constant up to update ``start``, then rate / sqrt(t / start).

    Raises ValueError for start < 1. arXiv 2312.02696, appendix B.
    """
    if start < 1:
        raise ValueError(f"need start >= 1, got start={start}")
    rising = warmup(rate, steps)
    return lambda step: rising(step) / math.sqrt(max((step + 1) / start, 1.0))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and back in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _averages(state: TrainState, plan: Plan) -> Iterator[tuple[ScoreModel, float]]:
    """Every average, and what an update keeps of it."""
    yield state.ema, ema.warmed_up(plan.ema_decay, state.step)
    for decay, average in state.decays.items():
        yield average, ema.warmed_up(decay, state.step)
    for sigma_rel, average in state.averages.items():
        yield average, profiles.decay(profiles.power(sigma_rel), state.step)


def _prepare(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def _backward(state: TrainState, plan: Plan, batch: Batch) -> tuple[Tensor, Tensor]:
    """Leave our share of the gradient in the parameters; times and losses of our examples."""
    scale = state.scale.value if plan.precision == "fp16" else 1.0
    times, found = [], []
    for part, rows in plan.share.parts(plan.batch, plan.accumulate):
        # A view, which stays pinned; the rows of a part are neighbours.
        ours = _take(batch, slice(int(rows[0]), int(rows[-1]) + 1))
        loss = _loss(state.model, plan, ours, state.step, part)
        (_weighed(state, ours, loss).sum() * (scale / plan.batch)).backward()
        times.append(ours.t)
        found.append(loss.detach())
    if scale != 1:
        for parameter in state.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(scale)
        for gradient in [] if state.learned is None else state.learned.gradients():
            gradient.div_(scale)
    return torch.cat(times), torch.cat(found)


def _weighed(state: TrainState, batch: Batch, loss: Tensor) -> Tensor:
    """What is minimised: the losses (B,), or under a learned weight those of eq. 14."""
    if state.learned is None:
        return loss
    model = state.model
    return state.learned(loss, model.parameterization(model.sde, batch.t).noise)


def _loss(model: ScoreModel, plan: Plan, batch: Batch, step: int, part: int) -> Tensor:
    """The losses (B,) of a part in training mode, its dropout masks drawn from (seed, step)."""
    model.train()
    purpose = f"dropout {part}" if part else "dropout"
    with (
        _dropout_from(stream(plan.seed, step, purpose), _device(model)),
        autocast(plan.precision, _device(model)),
    ):
        return _loss_of(model, batch, plan.weight)


def _loss_of(model: ScoreModel, batch: Batch, weight: Weight | None) -> Tensor:
    device = _device(model)
    copied_meanwhile = device.type == "cuda"  # where the batch is pinned; harmless where it is not
    x0, eps = (part.to(device, non_blocking=copied_meanwhile) for part in (batch.x0, batch.eps))
    # Times stay on the host: schedules are a few numbers each, and only coefficients travel.
    told = {"label": batch.label, "augment": batch.augment}
    cond = {name: value.to(device) for name, value in told.items() if value is not None}
    return dsm_loss(model, x0, batch.t, eps, weight, **cond)


@contextmanager
def _dropout_from(seed: int, device: torch.device) -> Iterator[None]:
    """Layers draw from the global generators: seed them inside, and put them back after."""
    on_host = device.type == "cpu"  # whose generator fork_rng always keeps
    with torch.random.fork_rng(
        [] if on_host else [device], device_type="cuda" if on_host else device.type
    ):
        torch.manual_seed(seed)
        yield


def _augmented(
    plan: Plan, levels: Tensor, scaling: Scaling, generator: torch.Generator, step: int
) -> tuple[Tensor, Tensor | None]:
    """Model units (B, ...) of the levels, augmented, and what the network is told of it."""
    if plan.augment is None:
        return dequantised(levels, scaling, generator, plan.dither), None
    # A stream of its own: noise, times and labels are those of a run without augmentation.
    own = torch.Generator().manual_seed(stream(plan.seed, step, "augment"))
    levels = plan.augment.on_levels(levels, own)
    return plan.augment.on_units(dequantised(levels, scaling, generator, plan.dither), own)


def _labels(plan: Plan, label: Tensor | None, generator: torch.Generator) -> Tensor | None:
    if plan.classes is None:
        return None
    if label is None:
        raise ValueError(f"a model of {plan.classes} classes needs labels; this data set has none")
    dropped = torch.rand(len(label), generator=generator) < plan.label_dropout
    return label.masked_fill(dropped, plan.classes)


def _held_out_batch(
    x0: Tensor, ts: Tensor, label: Tensor | None, generator: torch.Generator
) -> Batch:
    t = ts[torch.randperm(len(ts), generator=generator)]
    return Batch(x0, t, torch.randn(x0.shape, generator=generator), label)


def _pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in memory that a CUDA device reads by itself; as it is for others.

    Times stay where they are, as they are never copied as a whole.
    """
    if device.type != "cuda":
        return batch
    return batch._replace(x0=batch.x0.pin_memory(), eps=batch.eps.pin_memory())


def _take(batch: Batch, rows: Tensor | slice) -> Batch:
    label, augment = (None if p is None else p[rows] for p in (batch.label, batch.augment))
    return Batch(batch.x0[rows], batch.t[rows], batch.eps[rows], label, augment)


def _is_finite(state: TrainState, plan: Plan, loss: Tensor, norm: Tensor, rate: float) -> bool:
    """Whether the update is to be made; raises TrainingError where there is no going on."""
    # The one wait for the device a step: stopping before a bad update needs its answer.
    finite = bool(torch.isfinite(loss + norm))
    remedy = "lower train.lr, clip gradients, or look at the data"
    if plan.precision == "fp16":
        state.scale = state.scale.after(finite)
        if not finite and bool(torch.isfinite(loss)) and state.scale.in_a_row < MOST_SKIPPED:
            return False
        overflows = f"{state.scale.in_a_row} overflows in a row"
        remedy = f"{overflows}; take train.precision bf16, or {remedy}"
    if not finite:
        raise TrainingError(
            f"step {state.step + 1}: loss {float(loss):g}, gradient norm {float(norm):g}, "
            f"learning rate {rate:g}; {remedy}"
        )
    return True


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
