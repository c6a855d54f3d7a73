"""A denoiser with an instrument on it: network calls are counted, shown, and can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser


class Stopped(Exception):
    """The sampler was stopped before this call of the network."""


class NetworkCall(NamedTuple):
    """A call of the network: its number, from 1, and what went in and came out (B, ...)."""

    number: int
    t: Tensor
    x: Tensor
    x0: Tensor


@dataclass
class Instrument:
    """Counts calls, keeps the last, hands each to ``show``, and stops when ``stopping`` says so.

    If ``strict``, every prediction on the host is checked: a device would have to be waited for.
    ``dtype`` is that of the weights.
    """

    name: str = "sampler"
    show: Callable[[NetworkCall], None] = lambda call: None
    stopping: Callable[[], bool] = lambda: False
    strict: bool = True
    dtype: torch.dtype | None = None
    count: int = 0
    last: NetworkCall | None = None

    def on(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, instrumented. Its calls raise Stopped, and RuntimeError if not finite."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            if self.stopping():
                raise Stopped
            x0 = denoiser(x, t)
            self.count += 1
            self.last = NetworkCall(self.count, t, x.detach(), x0.detach())
            if self.strict and x0.device.type == "cpu":
                where = f"at t={float(t.flatten()[0]):.3g}, call {self.count}"
                require_finite(x0, self.name, where, self.dtype)
            self.show(self.last)
            return x0

        return replace(denoiser, predict=predict)


def require_finite(x: Tensor, name: str, where: str, dtype: torch.dtype | None = None) -> None:
    """Raise RuntimeError, saying how many, unless all samples (B, ...) are finite.

    ``dtype`` is that of the weights, where it may be the reason.
    """
    if bool(torch.isfinite(x).all()):
        return
    bad = int((~x.isfinite()).flatten(1).any(1).sum())
    remedy = "take more steps or another sampler, or check the model"
    if dtype == torch.float16:
        remedy = "float16 weights overflow: take dtype bfloat16 or float32"
    raise RuntimeError(f"{name}: {bad} of {len(x)} samples are not finite {where}; {remedy}")
