"""The mean loss in equal parts of the range of lam."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.sde import SDE
from scoresde.training.distributed import Rank

PARTS = 10


class LossByNoise:
    """Sums of losses by the half log-SNR of their examples, on the device of the losses."""

    def __init__(self, sde: SDE) -> None:
        self._sde = sde
        low, high = map(float, sde.span(sde.t_min))
        self._edges = torch.linspace(low, high, PARTS + 1, dtype=torch.float64)
        self._total: Tensor | None = None
        self._count = torch.zeros(PARTS)

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Count the losses (B,) of examples at times (B,) on the host."""
        part = torch.bucketize(self._sde.lam(t.double()), self._edges[1:-1])
        self._count += part.bincount(minlength=PARTS)
        total = losses.new_zeros(PARTS) if self._total is None else self._total
        self._total = total.index_add(0, part.to(losses.device, non_blocking=True), losses)

    def take(self, rank: Rank | None = None) -> list[tuple[float, float]]:
        """Return (middle, mean loss) of the parts that have examples, and reset the sums.

        With ``rank`` the sums are over all processes.
        """
        middles = (self._edges[1:] + self._edges[:-1]) / 2
        total = torch.zeros(PARTS) if self._total is None else self._total
        count = self._count.to(total)
        if rank is not None:
            rank.add([total, count])
        seen = torch.nonzero(count.cpu()).flatten()
        means = (total.cpu() / count.cpu())[seen]
        self._total, self._count = None, torch.zeros(PARTS)
        return [
            (round(lam, 3), loss)
            for lam, loss in zip(middles[seen].tolist(), means.tolist(), strict=True)
        ]
