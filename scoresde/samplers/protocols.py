"""What a step is."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.samplers.noise import Noise

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
