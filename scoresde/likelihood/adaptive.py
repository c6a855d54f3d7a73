"""The likelihood at a tolerance, every sample by steps of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.likelihood.divergence import Divergence, exact
from scoresde.likelihood.flow import LogLikelihood, closed, require_law, standard_error_of
from scoresde.samplers import solve_adaptive
from scoresde.sde import match
from scoresde.solvers import SolverError, require_continuous, time_of


def adaptive_log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    divergence: Divergence = exact,
    *,
    prior: Any = None,
    t0: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 10_000,
) -> LogLikelihood:
    """Log-density (10) of ``x`` (B, ...) at ``t0`` (``t_min``), error control per sample.

    The Dormand-Prince pair of ``samplers.solve_adaptive`` on the state and its log-density
    together: batch mates never change a value. Arguments as ``log_likelihood``. Raises ValueError
    for an empty batch or integers, SolverError for samples that ``max_nfe`` calls do not suffice.
    """
    require_law(denoiser)
    require_continuous(x)
    sde, dim = denoiser.sde, x[0].numel()
    first, last = time_of(sde, sde.t_min if t0 is None else t0), time_of(sde, sde.t_max)
    joint = Denoiser(sde, _Joint(denoiser, divergence, x.shape[1:]))
    y = torch.cat([x.double().flatten(1), x.new_zeros(len(x), divergence.estimates).double()], 1)
    end = solve_adaptive(joint, y, float(first), float(last), rtol, atol, max_nfe)
    if late := int((~end.finished).sum()):
        raise SolverError(
            f"adaptive: {late} of {len(x)} samples did not reach t={float(last):g} within "
            f"{max_nfe} calls; loosen rtol and atol"
        )
    latent = end.x[:, :dim].reshape(x.shape)
    gain = end.x[:, dim:].T / float(sde.norm(last))
    log_prob = closed(sde, latent, prior, first, last) + gain.mean(0)
    return LogLikelihood(log_prob, latent, end.nfe, standard_error_of(gain, divergence))


@dataclass(frozen=True)
class _Joint:
    """State and log-density as one state, whose x0_hat turns (8) into the rate of both.

    dl/dlam = a (div - a D) = a (x0_l - a l)   with   x0_l = div - a D + a l
    """

    denoiser: Denoiser
    divergence: Divergence
    shape: torch.Size

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        sde, dim = self.denoiser.sde, math.prod(self.shape)
        alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
        n = torch.hypot(alpha, sigma).to(y)
        a = (alpha.to(y) / n).unsqueeze(1)
        w, gain = (y / n.unsqueeze(1)).split([dim, y.shape[1] - dim], 1)
        w = w.reshape(-1, *self.shape)
        x0, div = self.divergence(lambda w: self.denoiser(w * match(n, w), t), w)
        return torch.cat([x0.flatten(1), div.T - a * dim + a * gain], 1)
