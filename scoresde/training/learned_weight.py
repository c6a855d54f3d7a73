"""A loss weight for every noise level, learned together with the network.

    exp(-u(noise)) loss + u(noise)

is minimal if exp(u) is the expected loss at that noise, so all noise levels contribute equally.
Multi-Task Learning Using Uncertainty to Weigh Losses, arXiv 1705.07115; arXiv 2312.02696, eq. 14
and 15.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.nn import sinusoidal
from scoresde.nn.blocks import zeroed
from scoresde.sde import sent

# Losses vary slowly with the noise coordinate: periods range from all of it down to 0.4.
WIDTH, LOW, HIGH = 32, 0.25, 16.0


class Uncertainty(nn.Module):
    """u(noise), (B,) -> (B,): linear in fixed sines and cosines, initially 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features = sinusoidal(WIDTH, low=LOW, high=HIGH)
        self.linear = zeroed(nn.Linear(WIDTH, 1))

    def forward(self, noise: Tensor) -> Tensor:
        u: Tensor = self.linear(self.features(noise))[:, 0]
        return u


class LearnedWeight:
    """u with its own optimiser: the gradient of the network is clipped without that of u, and u is
    whole in every process even if the network is split.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.u = Uncertainty().to(device)
        self.optimizer = torch.optim.Adam(self.u.parameters())

    def __call__(self, loss: Tensor, noise: Tensor) -> Tensor:
        """exp(-u) loss + u for losses (B,) at noise coordinates (B,) on any device."""
        u = self.u(sent(noise, loss.device, loss.dtype))
        weighed: Tensor = torch.exp(-u) * loss + u
        return weighed

    def gradients(self) -> list[Tensor]:
        """The gradients of the last backward pass, to be changed in place."""
        return [p.grad for p in self.u.parameters() if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """The weights of u and the state of its optimiser. Tensors are not copied."""
        return {"u": self.u.state_dict(), "optimizer": self.optimizer.state_dict()}
