"""The one sampling loop: a time grid and a step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.noise import Noise, white_noise

State = Any  # whatever a step hands to its successor; None before the first


class Step(Protocol):
    """One step from time ``t`` to time ``s``: a pure function of its arguments.

    ``order`` is the global order of convergence of paths, and of a step that draws noise that of
    moments, which it declares as ``weak_order`` too; ``nfe_per_step`` counts denoiser calls.
    """

    @property
    def order(self) -> int: ...
    @property
    def nfe_per_step(self) -> int: ...

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]: ...


def trajectory(
    denoiser: Denoiser, x: Tensor, ts: Tensor, step: Step, noise: Noise | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk ``x`` (B, ...) down the grid ``ts``, yielding (s, x_s) after every step.

    Progress, previews, recording and stopping are the caller's: it is an ordinary generator.
    Without ``noise``, draws come from the global generator of the device of ``x``.
    Raises ValueError unless ``ts`` is a strictly monotone 1-D tensor of at least two times.
    """
    times = _checked(ts)
    noise = noise or white_noise()
    state: State = None
    for t, s in pairwise(times):
        with torch.no_grad():
            x, state = step(denoiser, x, t, s, state, noise)
        yield s, x


def sample(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    step: Step,
    noise: Noise | None = None,
    denoise: bool = True,
) -> Tensor:
    """The end of ``trajectory`` from ``x`` (B, ...) at ``ts[0]``, denoised unless told not to.

    One more network call than the steps make when ``denoise``. Raises ValueError as
    ``trajectory`` does.
    """
    end = x
    for _, end in trajectory(denoiser, x, ts, step, noise):  # noqa: B007 - only the last counts
        pass
    if not denoise:
        return end
    with torch.no_grad():
        return denoiser(end, _checked(ts)[-1])


def _checked(ts: Tensor) -> Tensor:
    """The grid on the host in float64."""
    times = ts.detach().to("cpu", torch.float64)
    steps = times.diff() if times.ndim == 1 else times.new_empty(0)
    if not len(steps) or not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError(
            "a grid is a strictly monotone 1-D tensor of at least 2 times, "
            f"got shape {tuple(ts.shape)}"
        )
    return times
