"""Data-parallel training: the rows of a batch for each process, and sums over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Rank:
    """This process: number ``index`` of the ``size`` processes in one process group."""

    index: int = 0
    size: int = 1

    def microbatches(self, batch: int, accumulate: int) -> list[tuple[int, Tensor]]:
        """Number and rows of each microbatch that this process computes.

        A batch has ``size * accumulate`` equal microbatches, numbered over all processes, so the
        random numbers of a microbatch do not depend on the process that computes it.
        """
        rows = torch.arange(batch).chunk(self.size * accumulate)
        return [
            (k, rows[k]) for k in range(self.index * accumulate, (self.index + 1) * accumulate)
        ]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, in one message.

        Raises RuntimeError if another process has ended.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _reaching():
            distributed.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def largest(self, number: int) -> int:
        """The maximum of a number over all processes. Raises RuntimeError as ``add`` does."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with _reaching():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0][:80]
        raise RuntimeError(f"another process has ended ({reason}); see its message") from error
