"""Group normalisation of images, joined with the scale and shift that follow it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.nn.first import first_only, is_first


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (B, C, H, W) for any number of channels.

        y = scale (x - mean) / sqrt(var + eps) + shift

    Mean and variance are those of a group of channels of one sample. The number of groups is the
    largest divisor of C that is at most 32 and leaves 4 channels or more in each, else 1.
    Group Normalization, arXiv 1803.08494.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        limit = max(1, min(32, channels // 4))
        groups = next(n for n in range(limit, 0, -1) if channels % n == 0)
        super().__init__(groups, channels, eps, affine)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Scale and shift are weight and bias, or 1 + scale and shift in ``modulation`` (B, 2 C).

        Raises ValueError for a modulation beside a weight and a bias.
        """
        if modulation is not None and self.affine:
            raise ValueError("the modulation is the affine map; build GroupNorm with affine=False")
        first = is_first(x, self.weight, self.bias, modulation)
        if self.training and first and _is_ours(x):
            scale, shift = self._scale_shift(x, modulation)
            y: Tensor = _forward(x, scale, shift, self.num_groups, self.eps)[0]
            return y
        y = super().forward(x) if first and self._is_safe(x) else self._by_channel(x)
        return y if modulation is None else modulate(y, modulation[:, :, None, None])

    def _is_safe(self, x: Tensor) -> bool:
        """Whether PyTorch's kernel for the layout of x has all the gradients that may follow.

        That for channels side by side on a CPU ends the process where the gradient of a weight is
        asked for and that of x is not.
        """
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.is_contiguous():
            return True
        trained = self.affine and (self.weight.requires_grad or self.bias.requires_grad)
        return not (trained and torch.is_grad_enabled())

    def _by_channel(self, x: Tensor) -> Tensor:
        """By PyTorch's kernel for channels one after the other, which has all derivatives.

        The layout is that of x.
        """
        y = super().forward(x.contiguous())
        return y if torch._C._are_functorch_transforms_active() else _laid_out(y, x)

    def _scale_shift(self, x: Tensor, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C) each."""
        if modulation is not None:
            scale, shift = modulation.chunk(2, dim=1)
            return 1 + scale, shift
        if self.affine:
            return self.weight.expand(x.shape[:2]), self.bias.expand(x.shape[:2])
        return x.new_ones(x.shape[:2]), x.new_zeros(x.shape[:2])


def modulate(h: Tensor, scale_shift: Tensor) -> Tensor:
    """(1 + scale) h + shift, the two halves of ``scale_shift`` along dimension 1."""
    scale, shift = scale_shift.chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


def _is_ours(x: Tensor) -> bool:
    """Whether to compute by ``_forward``: images on a CPU in single or double precision."""
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return plain and x.ndim == 4 and x.numel() > 0


def _laid_out(y: Tensor, like: Tensor) -> Tensor:
    side_by_side = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last) if side_by_side else y


# y = a x + b, with a and b of each sample and channel, in as few passes over x as it takes.
# PyTorch's kernel takes five times as long on a CPU where channels lie side by side in memory, and
# scale and shift would be passes of their own. Operators, so that a compiler takes them as they
# are: what it makes of the formulas is slower.
@torch.library.custom_op("scoresde::normalise", mutates_args=())
def _forward(
    x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, and (B, groups, 1 or channels) each: mean, rate = 1 / sqrt(var + eps) and a."""
    grouped = (len(x), groups, -1)
    channel = x.mean((2, 3))
    within = (x - _each(channel, x)).square_().mean((2, 3)).view(grouped)
    channel = channel.view(grouped)
    mean = channel.mean(2, keepdim=True)
    var = (within + (channel - mean).square()).mean(2, keepdim=True)
    rate = (var + eps).rsqrt()
    a = rate * scale.reshape(grouped)
    b = shift.reshape(grouped) - a * mean
    y = torch.empty_like(x)  # so that its layout is the one the compiler is told
    return torch.addcmul(_each(b, x), x, _each(a, x), out=y), mean, rate, a


@torch.library.custom_op("scoresde::normalise_backward", mutates_args=())
def _backward(
    g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rate: Tensor, a: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift. With n numbers in a group and sums over it,

    dx = a g + (mean S_2 - S_1) rate^3 / n (x - mean) - S_2 rate / n,
    S_1 = sum scale g x,   S_2 = sum scale g.
    """
    d_shift = g.sum((2, 3)).view_as(a)
    gx = (g * x).sum((2, 3)).view_as(a)
    scale = scale.reshape(a.shape)
    s1, s2 = (scale * gx).sum(2, keepdim=True), (scale * d_shift).sum(2, keepdim=True)
    n = x[0].numel() // a.shape[1]
    slope = (mean * s2 - s1) * rate**3 / n
    level = -slope * mean - s2 * rate / n
    dx = torch.empty_like(x)
    torch.addcmul(_each(level.expand_as(a), x), x, _each(slope.expand_as(a), x), out=dx)
    d_scale = rate * (gx - mean * d_shift)
    flat = x.shape[:2]
    return dx.addcmul_(g, _each(a, x)), d_scale.view(flat), d_shift.view(flat)


@_forward.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = x.new_empty(x.shape[0], groups, x.shape[1] // groups)
    mean = x.new_empty(x.shape[0], groups, 1)
    return torch.empty_like(x), mean, torch.empty_like(mean), a


@_backward.register_fake
def _(
    g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rate: Tensor, a: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:2], *output[1:])


@first_only
def _gradients(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(g, *ctx.saved_tensors), None, None


_forward.register_autograd(_gradients, setup_context=_keep)


def _each(values: Tensor, x: Tensor) -> Tensor:
    """Numbers of every sample, group and channel within it, to lie beside x (B, C, H, W)."""
    return values.reshape(*x.shape[:2], 1, 1)
