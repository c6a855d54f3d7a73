"""Step -> Step: a step preceded by a kernel that moves x_t at fixed time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from scoresde.arguments import Count, Open, check_fields
from scoresde.denoiser import Denoiser
from scoresde.samplers.kernels import marginal, noised, score_step
from scoresde.samplers.noise import Noise
from scoresde.samplers.protocols import State, Step


class Kernel(Protocol):
    """A Markov kernel at fixed time that leaves p_t (nearly) invariant and makes ``nfe`` calls."""

    @property
    def nfe(self) -> int: ...

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Noise) -> Tensor: ...


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin steps at fixed time.

        x <- x + h score + sqrt(2 h) z,   h = 2 (snr |z| / |score|)^2

    By default the norms are replaced by their root-mean-squares under pure noise, sqrt(D) and
    sqrt(D) / sigma. Then h = 2 (snr sigma)^2, as in annealed Langevin dynamics (arXiv 1907.05600,
    algorithm 1). A step length that depends on the sample would not leave p_t invariant, and one
    averaged over the batch would couple samples. Without a Metropolis adjustment the kernel
    inflates the variance of pure noise by 1 / (1 - snr^2), and it diverges for snr >= 1.
    ``published`` uses the batch means of the norms, as arXiv 2011.13456, algorithm 4, does. The
    defaults are its values for CIFAR-10. Raises ValueError unless 0 < snr < 1 and steps >= 1.

    Args:
        snr: size of a step, as a signal-to-noise ratio.
        steps: number of steps at each time.
        published: use the batch means of the norms.
    """

    snr: Open = 0.16
    steps: Count = 1
    published: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def nfe(self) -> int:
        return self.steps

    def __call__(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        for _ in range(self.steps):
            x = self._once(denoiser, x, t, noise)
        return x

    def _once(self, denoiser: Denoiser, x: Tensor, t: Tensor, noise: Noise) -> Tensor:
        if self.published:
            score, z = denoiser.score(x, t), noise(x, t, t)
            root = self.snr * _mean_norm(z) / _mean_norm(score)
            return x + 2 * root**2 * score + 2 * root * z
        at = marginal(denoiser.sde, t)
        root_h = self.snr * at.sigma
        moved = score_step(x, 1.0, denoiser(x, t), 2 * root_h**2, at)
        return noised(moved, 2 * root_h, noise, t, t)


def annealed_langevin(snr: Open = 0.176, steps: Count = 5) -> Kernel:
    """The Langevin kernel with the settings of NCSNv2 on CIFAR-10, arXiv 2006.09011."""
    return Langevin(snr, steps)


@dataclass(frozen=True)
class Corrected:
    """Predictor-corrector: a kernel at ``t``, then a step from ``t`` to ``s``.

    The order is 1 for every step, provided that snr^2 of the corrector shrinks with the step
    size: a Langevin step of length h has a bias of O(h). arXiv 2011.13456, algorithm 1.
    """

    step: Step
    kernel: Kernel
    order: ClassVar[int] = 1
    weak_order: ClassVar[int] = 1

    @property
    def nfe_per_step(self) -> int:
        return self.step.nfe_per_step + self.kernel.nfe

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        return self.step(denoiser, self.kernel(denoiser, x, t, noise), t, s, state, noise)


def _mean_norm(x: Tensor) -> Tensor:
    """Batch mean of the Euclidean norm of each sample, 0-dim."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.mean()
