"""The loss on held-out examples, comparable between steps and models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from scoresde.data import Scaling, Split
from scoresde.parameterization import ScoreModel
from scoresde.training import losses
from scoresde.training.batches import Batch, dequantised, derived_seed
from scoresde.training.said import said


def held_out_loss(
    model: ScoreModel,
    split: Split,
    scaling: Scaling,
    *,
    weight: losses.Weight | None = losses.sigma2,
    conditional: bool = False,
    dither: bool = True,
    draws: int = 8,
    batch: int = 256,
    seed: int = 0,
) -> float:
    """Mean loss over a split at fixed dequantisation, noise and times, without dropout.

        mean |eps - eps_hat|^2 over lam uniform on [lam(t_max), lam(t_min)]

    With the default weight this is the diffusion term of the likelihood bound per dimension,
    divided by the range of lam. All models and steps see the same random numbers.

    Args:
        model: the model.
        split: held-out examples.
        scaling: scaling of the data.
        weight: weight of the loss.
        conditional: pass the labels to the network.
        dither: add uniform noise within each pixel level.
        draws: times for each example, one in each of ``draws`` equal parts of the range of lam.
        batch: examples per network call.
        seed: seed of the random numbers.

    Variational Diffusion Models, arXiv 2107.00630, eq. 17.
    """
    times = losses.held_out_times(model.sde, draws * len(split)).reshape(draws, -1)
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    with evaluating(model), torch.no_grad():
        for part, ts in enumerate(times):
            generator = torch.Generator().manual_seed(derived_seed(seed, part, "held out"))
            own = torch.Generator().manual_seed(derived_seed(seed, part, "held-out latents"))
            x0 = dequantised(split.drawn(own), scaling, generator, dither)
            t = ts[torch.randperm(len(ts), generator=generator)]
            eps = torch.randn(x0.shape, generator=generator)
            label = split.label if conditional else None
            whole = Batch(x0, t, eps, label, said=said(split, x0, model.conditions))
            for rows in torch.arange(len(split)).split(batch):
                b = whole.rows(rows).on(model.device)
                loss = losses.dsm_loss(model, b.x0, b.t, b.eps, weight, **b.cond)
                total += loss.double().sum()
    return float(total) / times.numel()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and restore the mode of every module at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
