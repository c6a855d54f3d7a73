"""The classifier two-sample test of samples and references."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.evaluation.finite import require_finite
from scoresde.evaluation.resampling import Estimate, share

HIDDEN = 64
STEPS = 200
FAR = 5.0
LEAST = 20
"""Fewest items of each set."""


def two_sample_test(x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
    """Held-out accuracy of a small network that distinguishes ``x`` (N, D) from ``y`` (M, D).

        1/2 +- sqrt(1 / (4 n)) for the same law, n held-out items

    Equal numbers of both sets are used, half of them for training. The network has one hidden
    layer; its inputs are standardised by the references. Raises ValueError for unequal D, fewer
    than 20 items of either set, NaN or infinity. Lopez-Paz and Oquab, Revisiting classifier
    two-sample tests, arXiv 1610.06545, section 3.
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < LEAST:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"features are {shapes}; expected (N, D) and (M, D), {LEAST} of each")
    require_finite(samples=x, references=y)
    n = min(len(x), len(y))
    x, y = (part[torch.randperm(len(part), generator=generator)[:n]] for part in (x, y))
    seen = torch.cat([x[: n // 2], y[: n // 2]]).float()
    fresh = torch.cat([x[n // 2 :], y[n // 2 :]]).float()
    std, mean = torch.std_mean(y[: n // 2].float(), dim=0)
    scale = torch.where(std > 0, std, 1)
    # Clamp distant outliers, which would dominate the training.
    seen, fresh = (((part - mean) / scale).clamp(-FAR, FAR) for part in (seen, fresh))
    logit = _fitted(seen, _truth(n // 2, x.device), generator)
    return share((logit(fresh) > 0) == _truth(n - n // 2, x.device))


class _Network:
    """One hidden layer of rectified linear units; a positive logit means the first set."""

    def __init__(self, inputs: int, generator: torch.Generator, device: torch.device) -> None:
        first = torch.randn(inputs, HIDDEN, generator=generator) * (2 / inputs) ** 0.5
        weights = [first, torch.zeros(HIDDEN), torch.zeros(HIDDEN), torch.zeros(1)]
        self.weights = [weight.to(device) for weight in weights]

    def __call__(self, x: Tensor) -> Tensor:
        first, shift, second, bias = self.weights
        logit: Tensor = F.relu(x @ first + shift) @ second + bias
        return logit


def _fitted(x: Tensor, truth: Tensor, generator: torch.Generator) -> _Network:
    """Minimise the cross-entropy over all of ``x`` by AdamW for a fixed number of steps."""
    net = _Network(x.shape[1], generator, x.device)
    for weight in net.weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(net.weights, lr=1e-2, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(x), truth.float()).backward()
        optimizer.step()
    for weight in net.weights:
        weight.requires_grad_(False)
    return net


def _truth(n: int, device: torch.device) -> Tensor:
    """Labels of n items of the first set, then n of the second."""
    return torch.arange(2 * n, device=device) < n
