"""The latest losses of every level, and levels drawn in proportion to their size."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.training.times import LossAware


class LossHistory:
    """The last losses of each level; the state of ``LossAware`` times.

        p_i = (1 - least) sqrt(mean L_i^2) / sum_j sqrt(mean L_j^2) + least / n

    once every level has its ``history`` of losses, and before that 1 / n. Improved DDPM, arXiv
    2102.09672, eq. 18.
    """

    def __init__(self, law: LossAware) -> None:
        self.law = law
        self.losses = torch.zeros(law.n, law.history, dtype=torch.float64)
        self.seen = torch.zeros(law.n, dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """The probability of each level (n,)."""
        n, least = self.law.n, self.law.least
        size = self.losses.square().mean(1).sqrt()
        if bool((self.seen < self.law.history).any()) or not size.sum() > 0:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        return (1 - least) * size / size.sum() + least / n

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Levels (B,) from numbers in (0, 1), and the weights 1 / (n p) of their losses."""
        p = self.probabilities
        level = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=self.law.n - 1)
        return level, 1 / (self.law.n * p[level])

    def add(self, levels: Tensor, losses: Tensor) -> None:
        """Record the losses (B,) of levels (B,), in this order, in place of the oldest."""
        kept, seen = self.losses.numpy(), self.seen.numpy()
        for level, loss in zip(levels.tolist(), losses.tolist(), strict=True):
            kept[level, seen[level] % self.law.history] = loss
            seen[level] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The losses and their number for each level. Tensors are not copied."""
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, found: dict[str, Tensor]) -> None:
        """Copy a state. Raises ValueError for that of another number of levels or losses."""
        for name, own in self.state_dict().items():
            if name not in found or found[name].shape != own.shape:
                raise ValueError(f"the {name} of a loss history of another size")
            own.copy_(found[name])
