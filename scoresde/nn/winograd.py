"""3 x 3 convolutions with a quarter of the multiplications, for training on a CPU.

Tiles of 4 x 4 outputs need 6 x 6 inputs d and the kernel g, and are

    Y = A^T [(G g G^T) * (B^T d B)] A,

with * number by number: 36 products where the definition has 144. Summed over channels, each of
the 36 is a matrix product over all tiles at once. In float32 the result is off by some 1e-5 of
its largest number, a direct one by some 1e-6.
Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.nn.first import first_only, is_first

TILE, WINDOW = 4, 6
ONE = 7
"""The product whose share in every output is 1: of the 36, that of the point 1 both ways."""
# The interpolation points are 0, 1, -1, 2, -2 and infinity.
A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
B_T = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution of (B, C, H, W) that keeps H and W, with the weights of any other.

    Trained in float32 on a CPU of 256-bit vectors it is computed by ``convolve``, whose gradient
    of the weights takes half the time; with longer vectors moving the tiles would cost more than
    the products saved.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and _is_worth_it(x, self.weight):
            return convolve(x, self.weight, self.bias)
        return super().forward(x)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) for weight (O, C, 3, 3), channels side by side.

    Differentiable once, and not in forward mode; raises RuntimeError under create_graph=True.
    """
    y: Tensor = _Convolved.apply(x, weight, bias)
    return y


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu"
    plain = plain and not torch.is_autocast_enabled("cpu")
    fits = x.ndim == 4 and x.shape[1] == weight.shape[1]
    large = fits and min(weight.shape[:2]) >= 48 and x.numel() >= 1 << 17
    if not (plain and large and torch.backends.cpu.get_cpu_capability() == "AVX2"):
        return False
    return is_first(x)


class _Convolved(torch.autograd.Function):
    """Y of the formula above, and its gradients.

    That of the input is a convolution with the kernel turned by 180 degrees; that of the kernel

        dg = G^T [sum over tiles (B^T d B) * (A dY A^T)] G.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        windows = _windows(x)
        ctx.save_for_backward(weight, windows)
        return _products(windows, weight, bias, x)

    @staticmethod
    @first_only
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, windows = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _products(_windows(g), weight.flip(2, 3).transpose(0, 1), None, g)
        if ctx.needs_input_grad[1]:
            total = _both(g.new_tensor(G).mT, _square(windows.mT @ _tiles(g)))
            dw = total.unflatten(0, (3, 3)).permute(3, 2, 0, 1)
        return dx, dw, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _products(windows: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor) -> Tensor:
    """Y (B, O, H, W), as large as ``like``, for transformed windows (36, tiles, C)."""
    kernels = _both(weight.new_tensor(G), weight.permute(2, 3, 1, 0))
    products = windows @ kernels
    if bias is not None:
        products[ONE] += bias
    tiles = _both(like.new_tensor(A_T), _square(products))
    height, width = like.shape[2:]
    high, wide = -(-height // TILE), -(-width // TILE)
    placed = tiles.view(TILE, TILE, -1, high, wide, len(weight)).permute(2, 3, 0, 4, 1, 5)
    rows = placed.flatten(3, 4).flatten(1, 2)
    return rows[:, :height, :width].permute(0, 3, 1, 2)


def _windows(x: Tensor) -> Tensor:
    """B^T d B of every window of (B, C, H, W), as (36, tiles, C)."""
    high, wide = (-(-side // TILE) for side in x.shape[2:])
    padded = _framed(x, 1, TILE * high + 2, TILE * wide + 2)
    image, row, pixel, _ = padded.stride()
    d = padded.as_strided(
        (WINDOW, WINDOW, len(x), high, wide, x.shape[1]),
        (row, pixel, image, TILE * row, TILE * pixel, 1),
    )
    return _both(x.new_tensor(B_T), d.flatten(2, 4))


def _framed(x: Tensor, first: int, height: int, width: int) -> Tensor:
    """(B, H, W, C) with zeros around: ``first`` before and the rest behind, up to these sizes."""
    x = x.permute(0, 2, 3, 1)
    if x.shape[1:3] == (height, width):
        return x
    framed = x.new_empty(len(x), height, width, x.shape[3])
    last_row, last = first + x.shape[1], first + x.shape[2]
    for border in (
        framed[:, :first],
        framed[:, last_row:],
        framed[:, :, :first],
        framed[:, :, last:],
    ):
        border.zero_()
    framed[:, first:last_row, first:last] = x
    return framed


def _tiles(y: Tensor) -> Tensor:
    """A y A^T of every tile of (B, O, H, W), as (36, tiles, O)."""
    high, wide = (-(-side // TILE) for side in y.shape[2:])
    padded = _framed(y, 0, TILE * high, TILE * wide)
    tiles = padded.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE)).permute(2, 4, 0, 1, 3, 5)
    return _both(y.new_tensor(A_T).mT, tiles.flatten(2, 4))


def _both(t: Tensor, x: Tensor) -> Tensor:
    """t x t^T over the first two dimensions of (n, n, ...), which become one."""
    once = (t @ x.flatten(1)).view(len(t), len(x), -1)
    result: Tensor = (t @ once).view(-1, *x.shape[2:])
    return result


def _square(x: Tensor) -> Tensor:
    """(36, ...) as (6, 6, ...)."""
    return x.view(WINDOW, WINDOW, *x.shape[1:])
