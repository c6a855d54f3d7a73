"""The training loop: one update per step, with all random numbers functions of (seed, step).

A run that is resumed from the weights, averages and optimiser state of any step is therefore
identical to an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.coordinates import Level
from scoresde.data import Examples, Scaling, Split
from scoresde.nn.magnitude import normalise
from scoresde.parameterization import ScoreModel
from scoresde.sde import sent
from scoresde.training import averages, fsdp
from scoresde.training.batches import (
    Batch,
    batches,
    derived_seed,
    draw_batch,
    local_microbatches,
)
from scoresde.training.loss_aware import LossHistory
from scoresde.training.losses import predicted
from scoresde.training.plan import Plan, Updates
from scoresde.training.precision import MOST_SKIPPED, autocast
from scoresde.training.said import columns_read
from scoresde.training.state import State, TrainState

REAL = Scaling(None)


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the step, the cause and a remedy."""


@dataclass(frozen=True)
class Metrics:
    """The result of one update.

    Args:
        step: updates made so far.
        loss: mean loss, 0-dim on the device.
        grad_norm: gradient norm, 0-dim on the device.
        learning_rate: learning rate of the update.
        skipped: updates skipped so far because an fp16 gradient overflowed.
        t: times (B,) of the examples of this process, on the host; None if they have none.
        losses: losses (B,) of the examples of this process.
        parts: mean of each term of the loss, 0-dim on the device, by name.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    skipped: int
    t: Tensor | None
    losses: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def fit(
    state: TrainState, plan: Plan, examples: Examples | Tensor, scaling: Scaling = REAL
) -> Iterator[Metrics]:
    """Train ``state`` in place up to ``plan.steps`` updates, yielding after each one.

    ``examples`` may be a tensor of real numbers (N, ...). The caller logs, validates, saves and
    stops. Raises TrainingError before an update with a loss or gradient that is not finite.
    """
    model = state.model
    split = Split(examples) if isinstance(examples, Tensor) else examples
    if isinstance(split, Split) and model.conditions:
        split = columns_read(split, model.conditions)
    for batch in batches(plan, split, scaling, model, state.step):
        yield _updated(state, plan, batch, scaling)


def update(state: TrainState, plan: Plan, split: Examples, scaling: Scaling) -> Metrics:
    """One update of ``state`` in place, on the batch of its step."""
    model = state.model
    batch = draw_batch(plan, split, scaling, model.sde, state.step, model.conditions)
    return _updated(state, plan, batch, scaling)


def _updated(state: TrainState, plan: Plan, batch: Batch, scaling: Scaling) -> Metrics:
    """One update of ``state`` in place: loss, gradient, clipping, optimiser, averages."""
    rate = begin(state, plan)
    if state.model.self_conditioning:
        own = torch.Generator().manual_seed(derived_seed(plan.seed, state.step, "estimates"))
        batch = batch._replace(estimated=torch.rand(plan.batch, generator=own) < 0.5)
    if state.history is not None:
        batch, levels = _loss_aware(state.history, plan, batch, state)
    t, losses, total = _backward(state, plan, batch, scaling)
    loss, norm = summed(state, plan, total)
    if state.history is not None:
        state.history.add(levels, _of_all(plan, losses))
    if is_finite(state, plan, loss, norm, rate):
        for optimizer in state.optimizers:
            optimizer.step()
        normalise(state.model)
    for decay, average in [(plan.ema[0], state.ema), *state.decays.items()]:
        averages.update(average, state.model, averages.warmed_up(decay, state.step))
    for sigma_rel, average in state.averages.items():
        decay = averages.decay(averages.power(sigma_rel), state.step)
        averages.update(average, state.model, decay)
    state.step += 1
    return Metrics(state.step, loss, norm, rate, state.scale.skipped, t, losses)


def begin(state: State[Any], plan: Updates) -> float:
    """Set the learning rate of an update, and remove the gradients of the one before."""
    rate = plan.learning_rate(state.step)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
    return rate


def _loss_aware(
    history: LossHistory, plan: Plan, batch: Batch, state: TrainState
) -> tuple[Batch, Tensor]:
    """The batch with the times and weights that its history gives to this step, and the levels."""
    generator = torch.Generator().manual_seed(derived_seed(plan.seed, state.step, "times"))
    levels, weight = history.draw(plan.draw(plan.batch, generator))
    t = history.law.at(state.model.sde, levels.double())
    return batch._replace(t=t, weight=weight), levels


def _of_all(plan: Plan, losses: Tensor) -> Tensor:
    """The losses (B,) of the whole batch, on the host, from those of each process."""
    whole = losses.new_zeros(plan.rank.size, len(losses))
    whole[plan.rank.index] = losses
    plan.rank.add([whole])
    return whole.flatten().double().cpu()


def _backward(
    state: TrainState, plan: Plan, batch: Batch, scaling: Scaling = REAL
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradient of the microbatches of this process.

    Returns their times and losses, and the sum of the losses with the weights of the batch.
    """
    scale = state.scale.value if plan.precision == "fp16" else 1.0
    model = state.model
    times, found, counted = [], [], []
    for number, part in local_microbatches(plan, batch):
        loss = weighted = _loss(model, plan, part, scaling, state.step, number)
        if state.learned is not None:
            weighted = state.learned(loss, Level()(model.sde, part.t))
        # 1 is exact.
        own = torch.ones(()) if part.weight is None else sent(part.weight, loss.device, loss.dtype)
        weighted = weighted * own
        (weighted.sum() * (scale / plan.batch)).backward()
        times.append(part.t)
        found.append(loss.detach())
        counted.append(found[-1] * own)
    if scale != 1:
        for gradient in state.gradients():
            gradient.div_(scale)
    return torch.cat(times), torch.cat(found), torch.cat(counted).sum()


def _loss(
    model: ScoreModel, plan: Plan, part: Batch, scaling: Scaling, step: int, number: int
) -> Tensor:
    """The losses (B,) of a microbatch in training mode, with dropout masks from (seed, step)."""
    model.train()
    purpose = f"dropout {number}" if number else "dropout"
    seed = derived_seed(plan.seed, step, purpose)
    with dropout_from(seed, model.device), autocast(plan.precision, model.device):
        b = part.on(model.device)
        found = predicted(model, b.x0, b.t, b.eps, b.cond, b.shaken, b.estimated)
        if plan.objective is None:
            return found.loss(plan.weight)
        levels = None if plan.dither or scaling.levels is None else scaling
        return plan.objective(found, b.x0, plan.chain, plan.weight, levels)


@contextmanager
def dropout_from(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, from which layers draw, and restore them at the end."""
    on_host = device.type == "cpu"  # fork_rng always restores the generator of the host
    with torch.random.fork_rng(
        [] if on_host else [device], device_type="cuda" if on_host else device.type
    ):
        torch.manual_seed(seed)
        yield


def summed(state: State[Any], plan: Updates, total: Tensor) -> tuple[Tensor, Tensor]:
    """Sum loss and gradients over all processes and clip.

    Returns the mean loss and the norm of the gradient of the network before clipping.
    """
    loss = total / plan.batch
    norm = fsdp.sum_gradients(state.model, loss, plan.rank)
    if others := state.others():
        plan.rank.add(others)
    if plan.clip is not None:
        nn.utils.clip_grads_with_norm_(state.model.parameters(), plan.clip, norm)
    return loss, norm


def is_finite(state: State[Any], plan: Updates, loss: Tensor, norm: Tensor, rate: float) -> bool:
    """True if the update is to be made; raises TrainingError if training cannot continue."""
    # The only synchronisation with the device per step; a bad update must not be made.
    finite = bool(torch.isfinite(loss + norm))
    remedy = f"lower lr={plan.lr:g}, clip gradients, or look at the data"
    if state.step == 0:  # before the first update the rate has done nothing yet
        remedy = "look at the data, the network and the process"
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
