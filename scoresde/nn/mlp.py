"""A network for vectors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Fraction
from scoresde.nn.blocks import ResidualVector, zeroed
from scoresde.nn.embeddings import Conditioning


class MLP(nn.Module):
    """A residual perceptron on (B, dim), or on any (B, ...) with ``dim`` numbers per sample.

    width: hidden units; depth: residual blocks; embedding: noise features (even); fourier: random
    instead of geometric frequencies; classes: number of labels or None; dropout: in each block.
    The output is zero at the start. Raises ValueError for sizes that do not fit.

    Args:
        width: hidden units.
        depth: residual blocks.
        embedding: features of the noise level.
        fourier: embed the noise level by random frequencies instead of geometric ones.
        dropout: probability of dropout within each block.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: Count = 256,
        depth: Count = 4,
        embedding: Even = 64,
        fourier: bool = False,
        classes: int | None = None,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if min(dim, width, depth) < 1:
            raise ValueError(f"need dim, width and depth >= 1, got {dim}, {width} and {depth}")
        self.dim = dim
        self.condition = Conditioning(embedding, width, fourier=fourier, classes=classes)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            ResidualVector(width, width, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = zeroed(nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, ...), noise (B,), label (B,) int64 or None -> the shape of x.

        Raises ValueError for another number of values per sample.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise ValueError(
                f"this MLP takes {self.dim} numbers per sample, got x of shape {tuple(x.shape)}"
            )
        condition = self.condition(noise, label)
        h = self.stem(flat)
        for block in self.blocks:
            h = block(h, condition)
        result: Tensor = self.head(F.silu(self.norm(h))).reshape(x.shape)
        return result
