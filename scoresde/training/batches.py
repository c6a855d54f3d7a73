"""The batch of each step as a function of (seed, step): data, dequantisation, noise and times.

Every process draws the whole batch and computes on its part of it, so the random numbers depend
neither on the device nor on the number of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde.conditions import Condition
from scoresde.data import Examples, Scaling, batch_indices
from scoresde.parameterization import ScoreModel
from scoresde.sde import SDE, sent
from scoresde.training.plan import Plan
from scoresde.training.said import said

Value = TypeVar("Value")
THREAD = "scoresde-prefetch"


class Batch(NamedTuple):
    """Clean examples in model units and noise (B, ...), times (B,), labels (B,) or None.

    ``augment`` (B, n) are the augmentation labels, or None; ``said`` are the conditions by name,
    as ``Condition.read`` gives them. ``shaken`` (B, ...) is noise of the input alone, ``weight``
    (B,) a weight of the losses, ``estimated`` (B,) says which examples are trained with
    self-conditioning, or None.
    """

    x0: Tensor
    t: Tensor
    eps: Tensor
    label: Tensor | None
    augment: Tensor | None = None
    said: Mapping[str, Tensor] = MappingProxyType({})
    shaken: Tensor | None = None
    weight: Tensor | None = None
    estimated: Tensor | None = None

    def rows(self, rows: Tensor | slice) -> Batch:
        """Some of the examples."""
        return self._each(lambda part: part[rows])

    def pinned(self, device: torch.device) -> Batch:
        """The batch in pinned memory for a CUDA device, unchanged for others."""
        if device.type != "cuda":
            return self
        return self._replace(x0=self.x0.pin_memory(), eps=self.eps.pin_memory())

    def on(self, device: torch.device) -> Batch:
        """The batch on a device. Its times stay on the host, where schedules are evaluated."""
        return self._each(lambda part: part if part is self.t else sent(part, device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        found = {
            name: change(part) for name, part in self._asdict().items() if isinstance(part, Tensor)
        }
        said = {name: change(y) for name, y in self.said.items()}
        return self._replace(**found, said=said)

    @property
    def cond(self) -> dict[str, Tensor]:
        """The conditional inputs of the network, by name."""
        cond = {"label": self.label, "augment": self.augment, **self.said}
        return {name: value for name, value in cond.items() if value is not None}


def batches(
    plan: Plan, split: Examples, scaling: Scaling, model: ScoreModel, start: int
) -> Iterator[Batch]:
    """The batches of a model from step ``start`` to the end of the plan, pinned for its device.

    A thread draws the next ``plan.prefetch`` batches while one is in use.
    """

    def draw(step: int) -> Batch:
        batch = draw_batch(plan, split, scaling, model.sde, step, model.conditions)
        return batch.pinned(device)

    device = model.device

    return ahead(draw, range(start, plan.steps), plan.prefetch)


def draw_batch(
    plan: Plan,
    split: Examples,
    scaling: Scaling,
    sde: SDE,
    step: int,
    conditions: Mapping[str, Condition] = MappingProxyType({}),
) -> Batch:
    """The batch of a step, drawn on the host so that it does not depend on the device.

    Raises ValueError if the model has classes and the data have no labels.
    """
    generator = torch.Generator().manual_seed(derived_seed(plan.seed, step, "batch"))
    chosen = split.take(batch_indices(len(split), plan.batch, plan.seed, step))
    # A separate seed, so that the noise of latents does not change other noise, times and labels.
    own = torch.Generator().manual_seed(derived_seed(plan.seed, step, "latents"))
    x0, described = _augmented(plan, chosen.drawn(own), scaling, generator, step)
    t = plan.times(sde, plan.draw(plan.batch, generator))
    eps = torch.randn(x0.shape, generator=generator)
    batch = Batch(x0, t, eps, _labels(plan, chosen.label, generator), described)
    # A separate seed, so that conditions do not change noise, times and labels.
    own = torch.Generator().manual_seed(derived_seed(plan.seed, step, "conditions"))
    batch = batch._replace(said=said(chosen, x0, conditions, own))
    return _with_further_noise(plan, batch, step)


def local_microbatches(plan: Plan, batch: Batch) -> Iterator[tuple[int, Batch]]:
    """The numbered microbatches that this process computes."""
    for number, rows in plan.rank.microbatches(plan.batch, plan.accumulate):
        # A slice is a view, which stays pinned.
        yield number, batch.rows(slice(int(rows[0]), int(rows[-1]) + 1))


def dequantised(
    levels: Tensor, scaling: Scaling, generator: torch.Generator, dither: bool = True
) -> Tensor:
    """Pixel levels in model units and float32: uniform within a level, or without ``dither`` its
    middle. Continuous data are only scaled.
    """
    if scaling.levels is None or not dither:
        return scaling.encode(levels)
    return scaling.encode(levels, torch.rand(levels.shape, generator=generator))


def derived_seed(seed: int, step: int, purpose: str) -> int:
    """A 64-bit seed for one purpose at one step, by numpy's stable SeedSequence."""
    words = [seed, step, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def _with_further_noise(plan: Plan, batch: Batch, step: int) -> Batch:
    """The batch with offset noise and input noise, from a seed that changes nothing else."""
    if not plan.offset_noise and not plan.input_noise:
        return batch
    own = torch.Generator().manual_seed(derived_seed(plan.seed, step, "further noise"))
    eps = batch.eps
    flat = torch.randn(*eps.shape[:2], *[1] * (eps.ndim - 2), generator=own)
    shaken = plan.input_noise * torch.randn(eps.shape, generator=own) if plan.input_noise else None
    return batch._replace(eps=eps + plan.offset_noise * flat, shaken=shaken)


def _augmented(
    plan: Plan, levels: Tensor, scaling: Scaling, generator: torch.Generator, step: int
) -> tuple[Tensor, Tensor | None]:
    """The levels in model units (B, ...), augmented, and the augmentation labels."""
    if plan.augment is None:
        return dequantised(levels, scaling, generator, plan.dither), None
    # A separate seed, so that augmentation does not change noise, times and labels.
    own = torch.Generator().manual_seed(derived_seed(plan.seed, step, "augment"))
    levels = plan.augment.on_levels(levels, own)
    return plan.augment.on_units(dequantised(levels, scaling, generator, plan.dither), own)


def _labels(plan: Plan, label: Tensor | None, generator: torch.Generator) -> Tensor | None:
    """The labels of a conditional model, some of them replaced by the label for "no class"."""
    if plan.classes is None:
        return None
    if label is None:
        raise ValueError(f"a model of {plan.classes} classes needs labels; this data set has none")
    dropped = torch.rand(len(label), generator=generator) < plan.label_dropout
    return label.masked_fill(dropped, plan.classes)


def ahead(make: Callable[[int], Value], numbers: Iterable[int], n: int) -> Iterator[Value]:
    """Yield make(k) for each number k in order; a thread computes ``n`` values in advance.

    The thread ends with the iterator; n = 0 starts none. An exception in ``make`` is raised in
    place of its value.
    """
    if n == 0:
        yield from map(make, numbers)
        return
    left = iter(numbers)
    with ThreadPoolExecutor(1, THREAD) as pool:
        waiting = deque(pool.submit(make, k) for k in islice(left, n))
        try:
            while waiting:
                value = waiting.popleft().result()
                waiting.extend(pool.submit(make, k) for k in islice(left, 1))
                yield value
        finally:
            pool.shutdown(cancel_futures=True)
