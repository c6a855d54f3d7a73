"""One denoising-score-matching loss for every process, parameterisation and weighting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.arguments import NonNegative, Positive, check
from scoresde.parameterization import Coeffs, ScoreModel
from scoresde.sde import SDE, match, sent

Weight = Callable[[SDE, Tensor], Tensor]
"""A weight on the squared error of x0_hat, shaped like ``t``."""


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Weight | None = None,
    **cond: Tensor | None,
) -> Tensor:
    """Denoising score matching: the mean squared error (B,) of x0_hat times ``weight``.

        |F(inp x, noise) - target|^2 out^2 weight,
        target = ((1 - skip alpha) x0 - skip sigma eps) / out

    ``x0`` and ``eps`` are (B, ...), ``t`` is (B,). Without a weight the network output has unit
    weight. Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364,
    eq. 8.
    """
    return predicted(model, x0, t, eps, cond).loss(weight)


class Prediction(NamedTuple):
    """The output of a network on noised data, against its target.

    ``error`` (B, ...) is F - target, and ``out`` times it is x0_hat - x0; ``mix`` (B, ...) is that
    of a learned reverse variance, or None.
    """

    sde: SDE
    t: Tensor
    out: Tensor
    error: Tensor
    mix: Tensor | None

    def loss(self, weight: Weight | None) -> Tensor:
        """The loss (B,) of ``dsm_loss``."""
        loss = self.error.square().flatten(1).mean(1)
        if weight is None:
            return loss
        factor = weight(self.sde, self.t.double()) * self.out**2
        return sent(factor, loss.device, loss.dtype) * loss


def predicted(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Mapping[str, Tensor | None],
    shaken: Tensor | None = None,
    estimated: Tensor | None = None,
) -> Prediction:
    """Evaluate the network on alpha x0 + sigma (eps + ``shaken``), with the target of ``eps``.

    ``estimated`` (B,) are the samples with self-conditioning, of ``ScoreModel.outputs``.
    """
    sde = model.sde
    c = model.parameterization(sde, t)
    x = sde.perturb(x0, t, eps if shaken is None else eps + shaken)
    value, mix = model.outputs(c, x, model.told_of(x, cond), estimated=estimated)
    return Prediction(sde, t, c.out, value - network_target(sde, c, x0, t, eps), mix)


def network_target(sde: SDE, c: Coeffs, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The F that reconstructs x0 from x = alpha x0 + sigma eps exactly, shaped like ``x0``."""
    t = t.double()
    on_x0 = (1 - c.skip * sde.alpha(t)) / c.out
    on_eps = -c.skip * sde.sigma(t) / c.out
    return match(on_x0, x0) * x0 + match(on_eps, x0) * eps


def sigma2(sde: SDE, t: Tensor) -> Tensor:
    """sigma^2 on the score error, or 1 on the noise error: alpha^2 / sigma^2 on x0.

    arXiv 2011.13456, section 3.3.
    """
    return (2 * sde.lam(t)).exp()


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """g^2 on the score error: g^2 alpha^2 / sigma^4 on x0.

    Maximum Likelihood Training of Score-Based Diffusion Models, arXiv 2101.09258, eq. 8.
    """
    return sde.g2(t) / sde.sigma(t) ** 2 * sigma2(sde, t)


def min_snr(gamma: Positive = 5.0) -> Weight:
    """min(SNR, gamma) on x0.

    Efficient Diffusion Training via Min-SNR Weighting Strategy, arXiv 2303.09556, eq. 6.

    Args:
        gamma: largest weight
    """
    check(min_snr, locals())
    return lambda sde, t: sigma2(sde, t).clamp(max=gamma)


def p2(gamma: NonNegative = 1.0, k: Positive = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma on x0, which is 1 / (k + SNR)^gamma on the noise.

    Perception Prioritized Training of Diffusion Models, arXiv 2204.00227, eq. 8.

    Args:
        gamma: exponent; 0 gives the weight sigma2
        k: signal-to-noise ratio below which the weight on the noise is flat
    """
    check(p2, locals())
    return lambda sde, t: sigma2(sde, t) * (k + sigma2(sde, t)) ** -gamma


def edm(sigma_data: Positive = 0.5) -> Weight:
    """(r^2 + sd^2) / (r sd)^2 with r = sigma / alpha: unit weight on the output of EDM's network.

    arXiv 2206.00364, table 1.

    Args:
        sigma_data: standard deviation of the scaled data
    """
    check(edm, locals())
    return lambda sde, t: sigma2(sde, t) + 1 / sigma_data**2


def reweighted(weight: Weight, density: Callable[[SDE, Tensor], Tensor]) -> Weight:
    """``weight`` / ``density``: the expected loss is that of uniform times."""
    return lambda sde, t: weight(sde, t) / density(sde, t)


def held_out_times(sde: SDE, n: int) -> Tensor:
    """n times at the midpoints of equal intervals of lam, for validation."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    low, high = sde.span(sde.t_min)
    return sde.time(high + u * (low - high))
