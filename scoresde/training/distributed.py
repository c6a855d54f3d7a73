"""A batch shared between processes: the rows of each, and sums over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Share:
    """The place of this process among those that train together, all in one process group."""

    rank: int = 0
    size: int = 1

    def parts(self, batch: int, accumulate: int) -> list[tuple[int, Tensor]]:
        """Number and rows of the parts of a batch that are this process's.

        A batch has ``size * accumulate`` equal parts, numbered over all processes, so that what is
        drawn for a part is the same wherever it is computed.
        """
        rows = torch.arange(batch).chunk(self.size * accumulate)
        return [(k, rows[k]) for k in range(self.rank * accumulate, (self.rank + 1) * accumulate)]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes, in one message.

        Raises RuntimeError when another process has ended.
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
        """The largest of the numbers of all processes. Raises RuntimeError as ``add``."""
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
