"""Halving and doubling of images with a fixed separable filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Down(nn.Module):
    """Filter with ``taps`` and keep every second pixel, (B, C, H, W) -> (B, C, H/2, W/2).

    y_i = sum_j k_j x_(2 i + j - p),   p = (taps - 2) / 2,   sum k = 1, x zero outside the image

    in each direction; an odd size is padded with a zero at its end. (1, 1) is the mean of 2 x 2
    pixels. Raises ValueError unless the taps are symmetric, of even number, with a positive sum.
    Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        # Not saved: the arguments determine it.
        self.register_buffer("kernel", _kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        beside = len(self.kernel) // 2 - 1
        return _depthwise(_padded(x, beside), self.kernel, stride=2)


class Up(nn.Module):
    """Double the size, (B, C, H, W) -> (B, C, 2 H, 2 W): four times the adjoint of ``Down``.

        y_m = 2 sum_i k_(m - 2 i + p) x_i

    in each direction. (1, 1) copies every pixel to 2 x 2. Raises ValueError as ``Down`` does.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("kernel", 4 * _kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        beside = len(self.kernel) // 2 - 1
        weight = self.kernel.expand(x.shape[1], 1, -1, -1)
        return F.conv_transpose2d(x, weight, stride=2, padding=beside, groups=x.shape[1])


class DownConv(nn.Module):
    """A filter and a 3x3 convolution with stride 2, (B, into, H, W) -> (B, out, H/2, W/2).

    The image is padded once, before the filter. ``start`` initialises the convolution.
    """

    kernel: Tensor

    def __init__(
        self,
        into: int,
        out: int,
        taps: Sequence[float],
        start: Callable[[nn.Conv2d], nn.Conv2d],
    ) -> None:
        super().__init__()
        self.register_buffer("kernel", _kernel(taps), persistent=False)
        self.conv = start(nn.Conv2d(into, out, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        filtered = _depthwise(_padded(x, len(self.kernel) // 2), self.kernel)
        result: Tensor = self.conv(filtered)
        return result


def reflected(x: Tensor, *, up: bool) -> Tensor:
    """Half or twice the size by the filter (1, 3, 3, 1), with the image reflected at its edges."""
    kernel = _kernel((1, 3, 3, 1)).to(x)
    weight = kernel.expand(x.shape[1], 1, -1, -1)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    if up:
        return F.conv_transpose2d(padded, 4 * weight, stride=2, padding=3, groups=x.shape[1])
    return F.conv2d(padded, weight, stride=2, groups=x.shape[1])


@dataclass(frozen=True)
class Resampling:
    """Constructors of the layers that halve and double feature maps."""

    down: Callable[[], nn.Module]
    up: Callable[[], nn.Module]


def fir(taps: Sequence[float] = (1, 1)) -> Resampling:
    """``Down`` and ``Up`` with the same filter, such as (1, 1) or (1, 3, 3, 1)."""
    return Resampling(partial(Down, taps), partial(Up, taps))


def _padded(x: Tensor, beside: int) -> Tensor:
    height, width = x.shape[2:]
    return F.pad(x, (beside, beside + width % 2, beside, beside + height % 2))


def _depthwise(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    weight = kernel.expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, weight, stride=stride, groups=x.shape[1])


def _kernel(taps: Sequence[float]) -> Tensor:
    k = torch.tensor(taps, dtype=torch.float64, device="cpu")
    if len(k) < 2 or len(k) % 2 or not torch.equal(k, k.flip(0)) or k.sum() <= 0:
        raise ValueError(
            "a filter needs an even number of taps, symmetric and with a positive sum, such as "
            f"1,3,3,1, got {','.join(f'{tap:g}' for tap in taps)}"
        )
    k = k / k.sum()
    return (k[:, None] * k).float()
