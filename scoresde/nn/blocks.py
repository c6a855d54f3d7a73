"""The blocks of the networks: normalisation, conditioned residual branches, self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (B, C, H, W) for any number of channels.

        y = weight (x - mean) / sqrt(var + eps) + bias

    Mean and variance are over a group of channels of one sample. By default the number of groups
    is the largest divisor of C that is at most 32 and at most C / 4, or 1. Raises ValueError for
    ``groups`` that do not divide C. Group Normalization, arXiv 1803.08494.
    """

    def __init__(
        self, channels: int, *, affine: bool = True, eps: float = 1e-5, groups: int | None = None
    ) -> None:
        if groups is None:
            limit = max(1, min(32, channels // 4))
            groups = next(n for n in range(limit, 0, -1) if channels % n == 0)
        elif channels % groups:
            raise ValueError(f"groups={groups} does not divide the {channels} channels of a norm")
        super().__init__(groups, channels, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        # On a CPU, PyTorch's kernel for channels-last images is several times slower, and crashes
        # if a weight requires a gradient and x does not.
        return super().forward(x.contiguous() if x.device.type == "cpu" else x)


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """(1 + scale) h + shift, with the two halves of ``scale_shift`` along dimension 1."""
    scale, shift = scale_shift.chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


def run(block: Callable[..., Any], *inputs: Any, again: bool) -> Any:
    """block(*inputs); with ``again`` it stores only its inputs and runs again in backward passes.

    Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
    """
    return checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)


class ResidualVector(nn.Module):
    """x + W2 dropout(silu((1 + scale) W1 norm(x) + shift)) on (B, width).

    Scale and shift are linear in the condition. W2 is initially zero, so the block returns x.
    """

    def __init__(self, width: int, condition: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.modulation = nn.Linear(condition, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.outer = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = modulate(self.inner(self.norm(x)), self.modulation(condition))
        out: Tensor = self.outer(self.dropout(F.silu(h)))
        return x + out


class ResidualImage(nn.Module):
    """x + conv(dropout(silu((1 + scale) norm(h) + shift))),  h = conv(silu(norm(x))).

    x is (B, C, H, W), the convolutions are 3x3, and scale and shift are linear in the condition.
    The last convolution is initially zero, so the block returns x. Diffusion Models Beat GANs on
    Image Synthesis, arXiv 2105.05233, section 3.1.
    """

    def __init__(self, channels: int, condition: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * channels)
        self.inner_norm = GroupNorm(channels, affine=False)  # the modulation is its affine map
        self.dropout = nn.Dropout(dropout)
        self.outer = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.inner(F.silu(self.norm(x)))
        h = modulate(self.inner_norm(h), self.modulation(condition)[:, :, None, None])
        out: Tensor = self.outer(self.dropout(F.silu(h)))
        return x + out


class SelfAttention(nn.Module):
    """x + project(attention(norm(x))) over the pixels of (B, C, H, W).

    The projection is initially zero; ``merge`` may replace the sum; ``eps`` and ``groups`` belong
    to the norm.
    Raises ValueError unless heads divides the channels. Attention Is All You Need, arXiv
    1706.03762, eq. 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        merge: Callable[[Tensor, Tensor], Tensor] = torch.add,
        eps: float = 1e-5,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(
                f"heads={heads} does not divide the {channels} channels to attend over"
            )
        self.heads, self.merge = heads, merge
        self.norm = GroupNorm(channels, eps=eps, groups=groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        qkv = torch.unflatten(self.qkv(tokens), 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        out = torch.unflatten(self.project(mixed).transpose(1, 2), 2, x.shape[2:])
        return self.merge(x, out)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on (B, heads, N, d), over the keys where ``mask`` is true.

    The mask broadcasts to (B, heads, N, keys).
    """
    # Fused kernels have no forward-mode derivative, which exact divergences need.
    if all(forward_ad.unpack_dual(z).tangent is None for z in (q, k, v)):
        return F.scaled_dot_product_attention(q, k, v, mask)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero, so that its branch is initially zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
