"""The training loop: one update a step, every random number a function of (seed, step).

Whoever holds the weights, the average and the optimiser's state at step n therefore continues
exactly as an uninterrupted run would, in mid-epoch and with dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde.data import Examples, Scaling, Split
from scoresde.nn.magnitude import normalise
from scoresde.parameterization import ScoreModel
from scoresde.training import averages, fsdp
from scoresde.training.batches import (
    Batch,
    batches,
    derived_seed,
    draw_batch,
    local_microbatches,
)
from scoresde.training.losses import dsm_loss
from scoresde.training.plan import Plan
from scoresde.training.precision import MOST_SKIPPED, autocast
from scoresde.training.state import TrainState

REAL = Scaling(None)


class TrainingError(RuntimeError):
    """A run that cannot go on: one line with the step, what happened and what to try."""


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


def fit(
    state: TrainState, plan: Plan, examples: Examples | Tensor, scaling: Scaling = REAL
) -> Iterator[Metrics]:
    """Train ``state`` in place up to ``plan.steps`` updates, yielding after each one.

    A tensor is real numbers (N, ...), as they are. Logging, validation, checkpoints and stopping
    are the caller's: it is an ordinary generator.
    Raises TrainingError at the first loss or gradient that is not finite, before its update.
    """
    model = state.model
    split = Split(examples) if isinstance(examples, Tensor) else examples
    for batch in batches(plan, split, scaling, model.sde, model.device, state.step):
        yield _updated(state, plan, batch)


def update(state: TrainState, plan: Plan, split: Examples, scaling: Scaling) -> Metrics:
    """One update of ``state`` in place, on the batch of its step."""
    batch = draw_batch(plan, split, scaling, state.model.sde, state.step)
    return _updated(state, plan, batch)


def _updated(state: TrainState, plan: Plan, batch: Batch) -> Metrics:
    """One update of ``state`` in place: loss, gradient, clipping, optimiser, averages."""
    rate = plan.learning_rate(state.step)
    _prepare(state, rate)
    t, losses = _backward(state, plan, batch)
    loss, norm = _summed(state, plan, losses)
    if _is_finite(state, plan, loss, norm, rate):
        for optimizer in state.optimizers:
            optimizer.step()
        normalise(state.model)
    for average, kept in _averages(state, plan):
        averages.update(average, state.model, kept)
    state.step += 1
    return Metrics(state.step, loss, norm, rate, state.scale.skipped, t, losses)


def _prepare(state: TrainState, rate: float) -> None:
    """Give the optimisers the learning rate, and forget the gradients of the last step."""
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)


def _backward(state: TrainState, plan: Plan, batch: Batch) -> tuple[Tensor, Tensor]:
    """Leave the gradient of our microbatches in the parameters; their times and losses."""
    scale = state.scale.value if plan.precision == "fp16" else 1.0
    times, found = [], []
    for number, part in local_microbatches(plan, batch):
        loss = _loss(state.model, plan, part, state.step, number)
        (_weighed(state, part, loss).sum() * (scale / plan.batch)).backward()
        times.append(part.t)
        found.append(loss.detach())
    if scale != 1:
        for gradient in state.gradients():
            gradient.div_(scale)
    return torch.cat(times), torch.cat(found)


def _loss(model: ScoreModel, plan: Plan, part: Batch, step: int, number: int) -> Tensor:
    """The losses (B,) of a part in training mode, its dropout masks drawn from (seed, step)."""
    model.train()
    purpose = f"dropout {number}" if number else "dropout"
    seed = derived_seed(plan.seed, step, purpose)
    with _dropout_from(seed, model.device), autocast(plan.precision, model.device):
        b = part.on(model.device)
        return dsm_loss(model, b.x0, b.t, b.eps, plan.weight, **b.cond)


@contextmanager
def _dropout_from(seed: int, device: torch.device) -> Iterator[None]:
    """Layers draw from the global generators: seed them inside, and put them back after."""
    on_host = device.type == "cpu"  # whose generator fork_rng always keeps
    with torch.random.fork_rng(
        [] if on_host else [device], device_type="cuda" if on_host else device.type
    ):
        torch.manual_seed(seed)
        yield


def _weighed(state: TrainState, part: Batch, loss: Tensor) -> Tensor:
    """What is minimised: the losses (B,), or those under a learned weight."""
    if state.learned is None:
        return loss
    model = state.model
    return state.learned(loss, model.parameterization(model.sde, part.t).noise)


def _summed(state: TrainState, plan: Plan, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Sum loss and gradients over all processes and clip; the mean loss and the gradient's norm.

    The norm is that before clipping, of the network alone.
    """
    loss = losses.sum() / plan.batch
    norm = fsdp.sum_gradients(state.model, loss, plan.rank)
    if state.learned is not None:
        plan.rank.add(state.learned.gradients())
    if plan.clip is not None:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), plan.clip, norm)
    return loss, norm


def _is_finite(state: TrainState, plan: Plan, loss: Tensor, norm: Tensor, rate: float) -> bool:
    """Whether the update is to be made; raises TrainingError where there is no going on."""
    # The one wait for the device a step: stopping before a bad update needs its answer.
    finite = bool(torch.isfinite(loss + norm))
    remedy = f"lower lr={plan.lr:g}, clip gradients, or look at the data"
    if plan.precision == "fp16":
        state.scale = state.scale.after(finite)
        if not finite and bool(torch.isfinite(loss)) and state.scale.in_a_row < MOST_SKIPPED:
            return False
        overflows = f"{state.scale.in_a_row} overflows in a row"
        remedy = f"{overflows}; take precision=bf16, or {remedy}"
    if not finite:
        raise TrainingError(
            f"step {state.step + 1}: loss {float(loss):g}, gradient norm {float(norm):g}, "
            f"learning rate {rate:g}; {remedy}"
        )
    return True


def _averages(state: TrainState, plan: Plan) -> Iterator[tuple[ScoreModel, float]]:
    """Every average, and what an update keeps of it."""
    yield state.ema, averages.warmed_up(plan.ema[0], state.step)
    for decay, average in state.decays.items():
        yield average, averages.warmed_up(decay, state.step)
    for sigma_rel, average in state.averages.items():
        yield average, averages.decay(averages.power(sigma_rel), state.step)
