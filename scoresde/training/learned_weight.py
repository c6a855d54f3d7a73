"""A weight on the loss of every noise level that is learned beside the network.

    exp(-u(noise)) loss + u(noise)

is least where exp(u) is the expected loss at that level, so that all levels come to count alike,
whatever the size of their losses. Multi-Task Learning Using Uncertainty to Weigh Losses, arXiv
1705.07115; arXiv 2312.02696, eq. 14 and 15.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.nn import sinusoidal
from scoresde.nn.blocks import zeroed

# Losses change slowly with the level: a turn over all of them, and up to one in 0.4 of noise.
WIDTH, LOW, HIGH = 32, 0.25, 16.0


class Uncertainty(nn.Module):
    """u(noise), (B,) -> (B,): linear in fixed sines and cosines and a constant, 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.features = sinusoidal(WIDTH, low=LOW, high=HIGH)
        self.linear = zeroed(nn.Linear(WIDTH, 1))

    def forward(self, noise: Tensor) -> Tensor:
        u: Tensor = self.linear(self.features(noise))[:, 0]
        return u


class LearnedWeight:
    """u and the optimiser that trains it, apart from those of the network.

    So the gradient of the network is clipped by itself, and its weights may be split between
    processes; u is small and whole in each of them.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.u = Uncertainty().to(device)
        self.optimizer = torch.optim.Adam(self.u.parameters())

    def __call__(self, loss: Tensor, noise: Tensor) -> Tensor:
        """exp(-u) loss + u of losses (B,) at noise coordinates (B,) on any device."""
        u = self.u(noise.to(loss))
        weighed: Tensor = torch.exp(-u) * loss + u
        return weighed

    def gradients(self) -> list[Tensor]:
        """Those of the last backward pass, to be changed in place."""
        return [p.grad for p in self.u.parameters() if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """The weights of u and the moments of its optimiser: tensors are not copied."""
        return {"u": self.u.state_dict(), "optimizer": self.optimizer.state_dict()}
