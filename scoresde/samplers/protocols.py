"""The protocol of a step."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.noise import Noise

State = Any  # passed from each step to the next; None before the first


class Step(Protocol):
    """One step from time ``t`` to time ``s``: a pure function of its arguments.

    ``order`` is the global order of convergence of paths. For a step that draws noise it is the
    order of moments, which the step also declares as ``weak_order``. ``nfe_per_step`` is the
    largest number of denoiser calls: where x holds no signal or no noise there may be fewer.
    """

    @property
    def order(self) -> int: ...
    @property
    def nfe_per_step(self) -> int: ...

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]: ...
