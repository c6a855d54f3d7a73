"""The one sampling loop: a time grid and a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.noise import Noise, white_noise
from scoresde.samplers.protocols import State, Step
from scoresde.samplers.recommended import recommended
from scoresde.sde import SDE, floating


def trajectory(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    step: Step,
    noise: Noise | None = None,
    *,
    grad: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk ``x`` (B, ...) down the grid ``ts``, yielding (s, x_s) after every step.

    It is an ordinary generator: the caller shows progress, records states and stops early.
    Without ``noise``, draws come from the global generator of the device of ``x``. Integer states
    are converted to floats. The clean end of the grid may be 0 if sigma(0) = 0; x0_hat = x there.
    With ``grad`` the states keep the autograd graph to ``x`` and to the parameters of the model;
    without it they have none, even if ``x`` requires gradients. Raises ValueError unless ``ts`` is
    a strictly monotone 1-D tensor of at least two times of the process, 0 < t <= t_max.
    """
    times, x = _checked(ts, denoiser.sde), floating(x)
    noise = noise or white_noise()
    if times.min() == 0:
        denoiser = replace(denoiser, predict=partial(_known, denoiser.predict))
    state: State = None
    for t, s in pairwise(times):
        with torch.set_grad_enabled(grad):
            x, state = step(denoiser, x, t, s, state, noise)
        yield s, x


def sample(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor | None = None,
    step: Step | None = None,
    noise: Noise | None = None,
    denoise: bool = True,
    *,
    nfe: int | None = None,
    grad: bool = False,
) -> Tensor:
    """The end of ``trajectory`` from ``x`` (B, ...) at ``ts[0]``, denoised if ``denoise``.

    Denoising costs one more network call. ``nfe`` replaces the grid and the step: it selects those
    of ``recommended`` for ``nfe`` calls in total. ``grad`` is that of ``trajectory``. Raises
    ValueError as ``trajectory`` does, and unless the arguments are either a grid and a step, or
    ``nfe``.
    """
    if (ts is None) != (step is None) or (ts is None) == (nfe is None):
        raise ValueError("sample needs a grid and a step, or nfe, the number of network calls")
    if ts is None or step is None:
        step, grid = recommended(nfe or 0)
        ts = grid(denoiser.sde, (nfe or 0) - denoise)
    ((last, end),) = deque(trajectory(denoiser, x, ts, step, noise, grad=grad), maxlen=1)
    if not denoise or last == 0:
        return end
    with torch.set_grad_enabled(grad):
        return denoiser(end, last)


def _known(predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    """x0_hat on a grid that ends at 0. There it is x: networks are not trained without noise."""
    return x if t.ndim == 0 and float(t) == 0 else predict(x, t)


def _checked(ts: Tensor, sde: SDE) -> Tensor:
    """The grid on the host in float64, clamped to ``t_max``."""
    times = ts.detach().to("cpu", torch.float64)
    steps = times.diff() if times.ndim == 1 else times.new_empty(0)
    if not len(steps) or not (float(steps.max()) < 0 or float(steps.min()) > 0):
        raise ValueError(
            "a grid is a strictly monotone 1-D tensor of at least 2 times, "
            f"got shape {tuple(ts.shape)}"
        )
    # A float32 grid may exceed t_max by a rounding error.
    low, high = float(times.min()), float(times.max())
    if low <= 0 or high > sde.t_max * (1 + 1e-6):
        clean = float(sde.sigma(times.new_zeros(()))) == 0
        if low == 0 and clean and high <= sde.t_max * (1 + 1e-6):
            return times.clamp(max=sde.t_max)
        last = ", or 0 at the end" if clean else ""
        raise ValueError(
            f"times of {type(sde).__name__} are 0 < t <= t_max={sde.t_max:g}{last}, got a grid "
            f"from {float(times[0]):g} to {float(times[-1]):g}; scoresde.samplers.grids makes them"
        )
    return times.clamp(max=sde.t_max)
