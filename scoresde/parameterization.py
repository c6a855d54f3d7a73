"""How a network's output becomes a denoiser, and the model that is trained and saved.

    x0_hat = skip x + out F(inp x, noise)                                                    (7)

A parameterisation is nothing but the four coefficients. Inputs are scaled to unit size for data
of unit size, and the noise level is given to the network as log(sigma / alpha) / 4 (the coordinate
of EDM), so that one network sees the same numbers under every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.arguments import Positive
from scoresde.denoiser import Denoiser
from scoresde.sde import SDE, match


class Coeffs(NamedTuple):
    """The coefficients of (7), float64, each of the shape of ``t``."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    noise: Tensor


Parameterization = Callable[[SDE, Tensor], Coeffs]


def eps(sde: SDE, t: Tensor) -> Coeffs:
    """F is the noise: x0_hat = (x - sigma F) / alpha. DDPM, arXiv 2006.11239, eq. 15."""
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(1 / alpha, -sigma / alpha, 1 / norm, noise)


def x0(sde: SDE, t: Tensor) -> Coeffs:
    """F is the clean sample: x0_hat = F."""
    _, _, norm, noise = _levels(sde, t)
    return Coeffs(torch.zeros_like(norm), torch.ones_like(norm), 1 / norm, noise)


def v(sde: SDE, t: Tensor) -> Coeffs:
    """F = (alpha eps - sigma x0) / norm, norm^2 = alpha^2 + sigma^2: of unit size everywhere.

    Progressive Distillation for Fast Sampling of Diffusion Models, arXiv 2202.00512, appendix D
    (norm = 1 there).
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(alpha / norm**2, -sigma / norm, 1 / norm, noise)


def score(sde: SDE, t: Tensor) -> Coeffs:
    """F / sigma is the score: x0_hat = (x + sigma F) / alpha.

    arXiv 2011.13456, appendix H (scale by sigma).
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    return Coeffs(1 / alpha, sigma / alpha, 1 / norm, noise)


def flow(sde: SDE, t: Tensor) -> Coeffs:
    """F = eps - x0, the velocity of the straight path: x0_hat = (x - sigma F) / (alpha + sigma).

    arXiv 2210.02747.
    """
    alpha, sigma, norm, noise = _levels(sde, t)
    total = alpha + sigma
    return Coeffs(1 / total, -sigma / total, 1 / norm, noise)


def edm(sigma_data: Positive = 0.5) -> Parameterization:
    """The preconditioning of EDM for data of deviation ``sigma_data``, under any process.

        skip = alpha sd^2 / n^2,   out = sigma sd / n,   inp = 1 / n,
        n^2 = sigma^2 + alpha^2 sd^2

    Raises ValueError unless sigma_data > 0. EDM, arXiv 2206.00364, table 1.

    Args:
        sigma_data: standard deviation of the scaled data.
    """
    if not sigma_data > 0:
        raise ValueError(f"need sigma_data > 0, got sigma_data={sigma_data:g}")

    def coeffs(sde: SDE, t: Tensor) -> Coeffs:
        alpha, sigma, _, noise = _levels(sde, t)
        n2 = sigma**2 + (alpha * sigma_data) ** 2
        return Coeffs(
            alpha * sigma_data**2 / n2, sigma * sigma_data / n2.sqrt(), n2.rsqrt(), noise
        )

    return coeffs


def _levels(sde: SDE, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma, sqrt(alpha^2 + sigma^2) and the noise coordinate, in float64."""
    t = t.double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha, sigma, torch.hypot(alpha, sigma), -sde.lam(t) / 4


class ScoreModel(nn.Module):
    """What is trained and saved: a network, its process and its parameterisation.

    ``net(x, noise, **cond)`` takes the scaled state (B, ...), the noise coordinate (B,) and
    conditions such as ``label`` (B,), and returns F with the shape of ``x``. ``data`` describes
    what it was trained on (name, shape, scaling, classes) and ``config`` is the configuration of
    its run, None where nobody has said.
    """

    data: Any = None
    config: Any = None

    def __init__(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__()
        self.net = net
        self.sde = sde
        self.parameterization = parameterization

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters(), torch.empty(0)).device

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor | None) -> Tensor:
        """The raw network output F(inp x, noise), in the dtype of the network."""
        return self._evaluate(self.parameterization(self.sde, t), x, cond)

    def denoiser(self, **cond: Tensor | None) -> Denoiser:
        """The denoiser (7) with the condition bound; state and network may differ in dtype."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            c = self.parameterization(self.sde, t)
            return match(c.skip, x) * x + match(c.out, x) * self._evaluate(c, x, cond).to(x)

        return Denoiser(self.sde, predict)

    def _evaluate(self, c: Coeffs, x: Tensor, cond: dict[str, Tensor | None]) -> Tensor:
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        result: Tensor = self.net(
            (match(c.inp, x) * x).to(dtype), _per_sample(c.noise, x).to(dtype), **cond
        )
        return result


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    """One value per sample of ``x``; a host scalar is filled in without a synchronisation."""
    if value.ndim == 0:
        return torch.full((len(x),), float(value), dtype=value.dtype, device=x.device)
    return value.to(x.device)
