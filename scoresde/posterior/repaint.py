"""RePaint: replacement with repeated steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from scoresde.arguments import Count
from scoresde.denoiser import Denoiser
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.replacement import Replacement, Replacing
from scoresde.samplers import Noise, State, Step
from scoresde.samplers.kernels import marginals, transition


@final
@dataclass(frozen=True)
class RePaint(Replacement):
    """Replacement in which every step is repeated after a forward transition.

        x_t <- a x_s + sqrt(v) z,   then the step from t to s with its replacement again

    The repetitions let the rest adapt to what is measured. Lugmayr and others, RePaint, arXiv
    2201.09865, algorithm 1.

    Args:
        times: number of times that each step is taken.
    """

    times: Count = 2
    name: ClassVar[str] = "repaint"

    def step(self, measurement: Measurement, step: Step) -> Step:
        return Repeating(Replacing(measurement, step), self.times)


@dataclass(frozen=True)
class Repeating:
    """A step without memory, taken several times from the noise it came from."""

    plain: Step
    times: int

    @property
    def order(self) -> int:
        return self.plain.order

    @property
    def nfe_per_step(self) -> int:
        return self.times * self.plain.nfe_per_step

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        a, v = transition(*marginals(denoiser.sde, t, s))
        found, _ = self.plain(denoiser, x, t, s, None, noise)
        for _ in range(self.times - 1):
            again = a * found + math.sqrt(v) * noise(x, s, s)
            found, _ = self.plain(denoiser, again, t, s, None, noise)
        return found, None
