"""Samplers: a grid and a step, or a black-box solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, final

import torch
from torch import Tensor

from scoresde import samplers
from scoresde.arguments import Count, NonNegative, Positive, check_fields
from scoresde.denoiser import Denoiser
from scoresde.registry.steps import STEPS
from scoresde.registry.tables import Table
from scoresde.samplers import Grid, Noise, Step
from scoresde.solvers import ODE_METHODS, SDE_METHODS, solve_ode, solve_sde

if TYPE_CHECKING:
    ODEMethod = str
    SDEMethod = str
else:
    ODEMethod, SDEMethod = Literal[ODE_METHODS], Literal[SDE_METHODS]


class Sampler(Protocol):
    """A whole sampler: from a state at ``t_max`` (B, ...) to a sample, shaped alike.

    ``noise`` serves the steps of a grid; ``seed`` the Brownian path of a black-box SDE solver.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor: ...


@final
@dataclass(frozen=True)
class GridSampler:
    """A step that is taken down a grid.

    Args:
        grid: times between which the steps are taken.
        step: method that takes the steps.
        steps: number of steps.
        denoise: end with the denoised state.
    """

    grid: Grid
    step: Step
    steps: Count
    denoise: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        ts = self.grid(denoiser.sde, self.steps)
        return samplers.sample(denoiser, x, ts, self.step, noise, self.denoise)


@final
@dataclass(frozen=True)
class ODESampler:
    """The probability flow, solved by torchdiffeq from ``t_max`` to ``t_eps``.

    Adaptive methods share their step size over a batch, so samples agree between batches only
    within the tolerances.

    Args:
        method: solver of torchdiffeq.
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods.
        steps: steps of the methods with a fixed step size.
        denoise: end with the denoised state.
    """

    method: ODEMethod = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: Count = 50
    denoise: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        sde = denoiser.sde
        end, _ = solve_ode(
            denoiser,
            x,
            sde.t_max,
            sde.t_eps,
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            steps=self.steps,
        )
        return _denoised(denoiser, end) if self.denoise else end


@final
@dataclass(frozen=True)
class SDESampler:
    """The reverse SDE, solved by torchsde from ``t_max`` to ``t_eps``.

    The Brownian path is that of a whole batch, so samples depend on their batch.

    Args:
        method: solver of torchsde.
        eta: share of the noise: 1 is the reverse SDE, 0 the probability flow.
        steps: equal steps of log-SNR.
        denoise: end with the denoised state.
    """

    method: SDEMethod = "euler"
    eta: NonNegative = 1.0
    steps: Count = 50
    denoise: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        sde = denoiser.sde
        end = solve_sde(
            denoiser,
            x,
            sde.t_max,
            sde.t_eps,
            self.steps,
            method=self.method,
            eta=self.eta,
            seed=seed,
        )
        return _denoised(denoiser, end) if self.denoise else end


# What a configuration may name: a step, which takes a grid, or a black-box solver.
SAMPLERS: Table[Callable[..., Any]] = Table(
    {"ode": ODESampler, "sde": SDESampler}, also=STEPS, supplied=("steps", "denoise")
)


def _denoised(denoiser: Denoiser, x: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(x, torch.tensor(denoiser.sde.t_eps, dtype=torch.float64))
