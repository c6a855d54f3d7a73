"""Samplers: a grid with a step, or a black-box solver."""

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
    """A sampler maps states at ``t_max`` (B, ...) to samples of the same shape.

    ``noise`` is the noise of grid steps, ``seed`` that of a black-box SDE solver.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor: ...


@final
@dataclass(frozen=True)
class GridSampler:
    """A step applied along a time grid.

    Args:
        grid: time grid of the steps.
        step: method of each step.
        steps: number of steps.
        denoise: denoise the final state, with one more network call.
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
    """The probability flow ODE from t_max to t_eps, solved by torchdiffeq.

    Adaptive methods use one step size for the whole batch, so a sample depends on its batch within
    the tolerances.

    Args:
        method: solver of torchdiffeq.
        rtol: relative tolerance of adaptive methods.
        atol: absolute tolerance of adaptive methods.
        steps: number of steps of the methods with a fixed step size.
        denoise: denoise the final state, with one more network call.
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
    """The reverse SDE from t_max to t_eps, solved by torchsde.

    The whole batch has one Brownian path, so a sample depends on its batch.

    Args:
        method: solver of torchsde.
        eta: size of the noise: 1 for the reverse SDE, 0 for the probability flow.
        steps: number of equal steps of log-SNR.
        denoise: denoise the final state, with one more network call.
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


# The samplers of a configuration: black-box solvers, and steps, which need a grid.
SAMPLERS: Table[Callable[..., Any]] = Table(
    {"ode": ODESampler, "sde": SDESampler}, also=STEPS, supplied=("steps", "denoise")
)


def _denoised(denoiser: Denoiser, x: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(x, torch.tensor(denoiser.sde.t_eps, dtype=torch.float64))
