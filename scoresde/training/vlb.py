"""The variational bound of a discrete chain as a loss, and the hybrid that learns its variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from scoresde.arguments import Positive, check_fields
from scoresde.data import Scaling
from scoresde.likelihood.discrete import SMALL, decoded
from scoresde.sde import match, sent
from scoresde.training.losses import Prediction, Weight


class Objective(Protocol):
    """The loss (B,) of predictions for data ``x0`` at the levels of a chain of ``n``.

    ``weight`` is that of the denoising loss, ``levels`` the scaling of data that are the middles
    of pixel levels, or None.
    """

    def __call__(
        self, found: Prediction, x0: Tensor, n: int, weight: Weight | None, levels: Scaling | None
    ) -> Tensor: ...


@final
@dataclass(frozen=True)
class Vlb:
    """L_vlb, the variational bound, in bits per number; it weighs low noise most.

    The gradient of the mean and, with head: variance, of the variance. The weighting has no
    effect. Improved DDPM, arXiv 2102.09672, eq. 4-7.
    """

    def __call__(
        self, found: Prediction, x0: Tensor, n: int, weight: Weight | None, levels: Scaling | None
    ) -> Tensor:
        return vlb(found, x0, n, levels)


@final
@dataclass(frozen=True)
class Hybrid:
    """L_hybrid, the weighted denoising loss plus a little L_vlb, which trains the variance only.

        loss + share L_vlb,   L_vlb at constant mean and in bits per number

    Improved DDPM, arXiv 2102.09672, eq. 16, where the loss is that of the noise, weighting sigma2.

    Args:
        share: weight of L_vlb.
    """

    share: Positive = 0.001

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, found: Prediction, x0: Tensor, n: int, weight: Weight | None, levels: Scaling | None
    ) -> Tensor:
        constant = found._replace(error=found.error.detach())
        return found.loss(weight) + self.share * vlb(constant, x0, n, levels)


def require_trained(variance: bool, objective: Objective | None) -> None:
    """Raise ValueError where nothing trains the variance of a model, or it has none to train."""
    if variance and objective is None:
        raise ValueError(
            "nothing trains the variance of this model (network.head=variance); set "
            "train.objective to hybrid or vlb"
        )
    if isinstance(objective, Hybrid) and not variance:
        raise ValueError(
            "train.objective=hybrid trains a variance, which this model lacks; set "
            "network.head to variance, or variance=True in ScoreModel"
        )


def vlb(found: Prediction, x0: Tensor, n: int, levels: Scaling | None = None) -> Tensor:
    """n times the term of the transition t -> t - t_max / n, (B,), in bits per number of ``x0``.

        n KL(p(x_s | x_t, x_0) | model),   and n (-log p(x_0 | x_t)) at the lowest of the n levels

    Its mean over levels is the bound without the prior, which has nothing to train. Without a
    learned variance it is the ``small`` one. DDPM, arXiv 2006.11239, eq. 5.
    """
    sde, t = found.sde, found.t.double().cpu()
    step = sde.t_max / n
    first = t < 1.5 * step
    mix = torch.tensor(SMALL, dtype=torch.float64) if found.mix is None else found.mix
    error = match(found.out, x0) * found.error
    reverse = sde.reverse(t, torch.where(first, t / 2, t - step)).to(error)
    nats = reverse.kl(error, mix).flatten(1).sum(1)
    if bool(first.any()):
        rows = sent(torch.nonzero(first).flatten(), x0.device)
        own = None if found.mix is None else found.mix[rows]
        x, at = x0[rows], t[first]
        log_prob = decoded(sde, x, x + error[rows], at, at + step, own, levels)
        nats = nats.index_copy(0, rows, -log_prob.to(nats))
    return nats * (n / (x0[0].numel() * math.log(2)))
