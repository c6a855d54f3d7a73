"""3 x 3 convolutions with a quarter of the multiplications, for training on a CPU.

Tiles of 4 x 4 outputs need 6 x 6 inputs d and the kernel g, and are

    Y = A^T [(G g G^T) * (B^T d B)] A,

with * number by number: 36 products where the definition has 144. Summed over channels, each of
the 36 is a matrix product over all tiles at once. In float32 the result is off by some 1e-5 of
its largest number, a direct one by some 1e-6.
Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from scoresde.nn.first import first_only, is_first

Shape = Sequence[int]

NARROW = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether this CPU has vectors of 256 bits: with longer ones, moving the tiles costs too much."""

TILE, WINDOW = 4, 6
PART = 1 << 19
"""Numbers in the windows of the images that are worked on together: they stay in a cache."""
WAY = 1024
"""Numbers whose addresses a multiple of this apart push each other out of the nearest cache."""
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
    of the weights takes half the time.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and _is_worth_it(x, self.weight, self.bias):
            return convolve(x, self.weight, self.bias)
        return super().forward(x)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) for weight (O, C, 3, 3), channels side by side.

    Differentiable once, and not in forward mode; raises RuntimeError under create_graph=True.
    """
    y: Tensor = _forward(x, weight, bias)
    return y


def _is_worth_it(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu"
    plain = plain and not torch.is_autocast_enabled("cpu")
    fits = x.ndim == 4 and x.shape[1] == weight.shape[1]
    large = fits and min(weight.shape[:2]) >= 48 and x.numel() * len(weight) >= 1 << 24
    return NARROW and plain and large and is_first(x, weight, bias)


# Operators of their own, so that a compiler takes them as they are. What it is told of them says
# x.shape[0], which may stand for any number, where len(x) would be one.
@torch.library.custom_op("scoresde::convolve", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernels, y, (one, two, _) = _kernels(weight), _grid(x, len(weight)), _space(x, weight)
    for part, rows in _parts(x, x, y):
        _place(_products(_windows(part, one, two), kernels, two, bias), rows, one, two)
    return _cut(y, x)


@torch.library.custom_op("scoresde::convolve_backward", mutates_args=())
def _backward(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the input, a convolution by the kernel turned, and that of the kernel,

    dg = G^T [sum over tiles (B^T d B) * (A dY A^T)] G.
    """
    kernels = _kernels(weight.flip(2, 3).transpose(0, 1))
    dx, (one, two, three) = _grid(x, x.shape[1]), _space(x, weight)
    total = x.new_zeros(WINDOW**2, x.shape[1], len(weight))
    for part, dy, rows in _parts(x, x, g, dx):
        _place(_products(_windows(dy, one, two), kernels, two), rows, one, two)
        tiles = len(part) * math.prod(_counts(x))  # without the idle one
        d = _windows(part, one, two)[:, :tiles]
        total.baddbmm_(d.mT, _tiles(dy, three, two)[:, :tiles])
    dw = _both(x.new_tensor(G).mT, _square(total)).unflatten(0, (3, 3)).permute(3, 2, 0, 1)
    return _cut(dx, x), dw


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _cut(_grid(x, len(weight)), x)


@_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dw = x.new_empty(3, 3, x.shape[1], len(weight)).permute(3, 2, 0, 1)
    return _cut(_grid(x, x.shape[1]), x), dw


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


@first_only
def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw = _backward(g, *ctx.saved_tensors)
    return dx, dw, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


_forward.register_autograd(_gradients, setup_context=_keep)


# Operations are counted as those of the definition, whoever counts.
@register_flop_formula(torch.ops.scoresde.convolve)
def _(x: Shape, weight: Shape, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0] * 9


@register_flop_formula(torch.ops.scoresde.convolve_backward)
def _(g: Shape, x: Shape, *_: object, **__: object) -> int:
    return 2 * 2 * math.prod(x) * g[1] * 9


def _counts(x: Tensor) -> tuple[int, int]:
    """Tiles from top to bottom of (B, C, H, W), and from left to right."""
    return -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)


def _together(x: Tensor) -> int:
    """How many images are worked on at a time."""
    return max(1, PART // (WINDOW**2 * math.prod(_counts(x)) * x.shape[1]))


def _parts(x: Tensor, *of: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Images that are worked on together, and as many of the rest."""
    return zip(*(each.split(_together(x)) for each in of), strict=True)


def _space(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Memory for three results on the way of any part.

    Fresh memory for each would have to be cleared by the system every time.
    """
    tiles = min(len(x), _together(x)) * math.prod(_counts(x))
    return x.new_empty(3, WINDOW**2 * (tiles + 1) * max(weight.shape[:2])).unbind()


def _shaped(space: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """The first numbers of ``space``, or new ones, in this shape."""
    return like.new_empty(shape) if space is None else space[: math.prod(shape)].view(shape)


def _grid(x: Tensor, channels: int) -> Tensor:
    """(B, H, W, channels) for whole tiles."""
    high, wide = _counts(x)
    return x.new_empty(x.shape[0], TILE * high, TILE * wide, channels)


def _cut(y: Tensor, like: Tensor) -> Tensor:
    """(B, H, W, O) as (B, O, H, W), as large as ``like``."""
    return y[:, : like.shape[2], : like.shape[3]].permute(0, 3, 1, 2)


def _kernels(weight: Tensor) -> Tensor:
    """G g G^T of (O, C, 3, 3), as (36, C, O)."""
    return _both(weight.new_tensor(G), weight.permute(2, 3, 1, 0))


def _products(
    windows: Tensor, kernels: Tensor, space: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The 36 products of every tile with the kernels, written to ``space``."""
    out = _shaped(space, windows, *windows.shape[:2], kernels.shape[2])
    products = torch.bmm(windows, kernels, out=out)
    if bias is not None:
        products[ONE] += bias
    return products


def _place(products: Tensor, rows: Tensor, one: Tensor, two: Tensor) -> None:
    """Write A^T products A of every tile to its pixels of (B, H, W, O)."""
    tiles = _both(products.new_tensor(A_T), _square(products), one, two).unflatten(0, (TILE, TILE))
    pixels = _by_tile(rows)
    pixels.copy_(_split(tiles, pixels))


def _windows(x: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """B^T d B of every window of (B, C, H, W), as (36, tiles, C) in ``one``."""
    high, wide = _counts(x)
    padded = _framed(x, 1, TILE * high + 2, TILE * wide + 2)
    image, row, pixel, _ = padded.stride()
    d = padded.as_strided(
        (WINDOW, WINDOW, len(x), high, wide, x.shape[1]),
        (row, pixel, image, TILE * row, TILE * pixel, 1),
    )
    return _both(x.new_tensor(B_T), _gathered(d, one), two, one)


def _tiles(y: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """A y A^T of every tile of (B, O, H, W), as (36, tiles, O) in ``one``."""
    high, wide = _counts(y)
    padded = _framed(y, 0, TILE * high, TILE * wide)
    return _both(y.new_tensor(A_T).mT, _gathered(_by_tile(padded), one), two, one)


def _by_tile(rows: Tensor) -> Tensor:
    """(B, H, W, C) as (4, 4, B, H / 4, W / 4, C)."""
    cut: Tensor = rows.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
    return cut.permute(2, 4, 0, 1, 3, 5)


def _gathered(d: Tensor, space: Tensor) -> Tensor:
    """(n, n, B, high, wide, C) as (n, n, tiles, C) in ``space``, perhaps with an idle tile behind.

    That is where rows would otherwise lie a multiple of ``WAY`` apart.
    """
    tiles = math.prod(d.shape[2:5])
    idle = tiles * d.shape[5] % WAY == 0
    gathered = _shaped(space, d, *d.shape[:2], tiles + idle, d.shape[5])
    _split(gathered, d).copy_(d)
    return gathered


def _split(tiles: Tensor, like: Tensor) -> Tensor:
    """(n, n, tiles, C) as (n, n, B, high, wide, C), without the idle tile."""
    split: Tensor = tiles[:, :, : math.prod(like.shape[2:5])].unflatten(2, like.shape[2:5])
    return split


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


def _both(t: Tensor, x: Tensor, once: Tensor | None = None, twice: Tensor | None = None) -> Tensor:
    """t x t^T over the first two dimensions of (m, m, ...), which become one.

    Written to ``twice`` by way of ``once``, or to new memory; ``twice`` may hold x.
    """
    n, m = t.shape
    half = torch.mm(t, x.reshape(m, -1), out=_shaped(once, x, n, x[0].numel())).view(n, m, -1)
    full = torch.bmm(t.expand(n, n, m), half, out=_shaped(twice, x, n, n, half.shape[2]))
    return full.view(-1, *x.shape[2:])


def _square(x: Tensor) -> Tensor:
    """(36, ...) as (6, 6, ...)."""
    return x.view(WINDOW, WINDOW, *x.shape[1:])
