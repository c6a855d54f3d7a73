"""A network for vectors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Even, Fraction, check
from scoresde.nn.blocks import ResidualVector, zeroed
from scoresde.nn.embeddings import Conditioning


class MLP(nn.Module):
    """A residual perceptron on any (B, ...) with ``dim`` numbers per sample.

    The output is initially zero. Raises ValueError for sizes out of range.

    Args:
        dim: numbers per sample.
        width: hidden units.
        depth: residual blocks.
        embedding: features of the noise level.
        fourier: draw the frequencies of the noise features at random.
        classes: number of classes; None without labels.
        embed: length of an embedding of what is said; None without.
        dropout: probability of dropout in each block.
        outputs: numbers of the output, a multiple of dim; None for those of the input.
    """

    def __init__(
        self,
        dim: Count,
        *,
        width: Count = 256,
        depth: Count = 4,
        embedding: Even = 64,
        fourier: bool = False,
        classes: Count | None = None,
        embed: Count | None = None,
        dropout: Fraction = 0.0,
        outputs: Count | None = None,
    ) -> None:
        super().__init__()
        check(MLP, locals())
        self.dim, self.classes = dim, classes
        self.condition = Conditioning(
            embedding, width, fourier=fourier, classes=classes, embed=embed
        )
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            ResidualVector(width, width, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = zeroed(nn.Linear(width, outputs or dim))

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        embed: Tensor | None = None,
    ) -> Tensor:
        """x (B, ...), noise (B,), label (B,) int64, embed (B, n) -> the shape of x, or a multiple
        of its channels.

        Raises ValueError for another number of values per sample.
        """
        flat = x.flatten(1)
        if flat.shape[1] != self.dim:
            raise ValueError(
                f"this MLP takes {self.dim} numbers per sample, got x of shape {tuple(x.shape)}"
            )
        condition = self.condition(noise, label, embed=embed)
        h = self.stem(flat)
        for block in self.blocks:
            h = block(h, condition)
        result: Tensor = self.head(F.silu(self.norm(h))).reshape(len(x), -1, *x.shape[2:])
        return result
