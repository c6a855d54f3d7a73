"""What is measured of a sample: operators A, linear ones with their exact adjoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, final

import torch
from torch import Tensor

from scoresde.arguments import Positive, Range, check_fields
from scoresde.sde import sent

Shape = tuple[int, ...]

RANK = 1e-12
"""Rows of a smaller square, relative to the largest, depend on the others."""


class Operator(ABC):
    """A map A of samples x (B, ...) to what is measured of each, (B, ...).

    It takes tensors of any device and float dtype, and maps every sample by itself. ``a @ b`` is
    a after b.
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def outputs(self, shape: Sequence[int]) -> Shape:
        """Shape of A(x) for one sample of this shape. Raises ValueError if x does not fit."""
        return self.outputs_like(torch.zeros(1, *shape))

    def outputs_like(self, x: Tensor) -> Shape:
        """``outputs`` for samples ``x`` (B, ...), with their device and dtype."""
        with torch.no_grad():
            found = self(torch.zeros_like(x[:1]).repeat(2, *[1] * (x.ndim - 1)))
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"operator: need one result for each sample, got {got} for 2 samples")
        if found.is_complex():
            raise ValueError("operator: its results are complex; take torch.view_as_real of them")
        return tuple(found.shape[1:])

    def inputs(self, shape: Sequence[int]) -> Shape | None:
        """Shape of one sample whose measurement has this shape; None if it is not known."""
        return None

    def project(self, y: Tensor) -> Tensor:
        """y (..., *m) without what no sample gives, such as the hidden part behind a mask."""
        return y

    def __matmul__(self, inner: Operator) -> Operator:
        if isinstance(self, LinearOperator) and isinstance(inner, LinearOperator):
            return LinearChain(self, inner)
        return Chain(self, inner)


class LinearOperator(Operator):
    """An operator that is linear, and knows the shape of its samples."""

    def outputs_like(self, x: Tensor) -> Shape:
        return self.outputs(x.shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y (B, ...), with <A x, y> = <x, A* y>. Raises ValueError if y does not fit."""
        shape = self.inputs(tuple(y.shape[1:]))
        if shape is None:
            raise ValueError(f"{type(self).__name__}: the shape of its samples is not known")
        with torch.inference_mode(False):
            pull = torch.func.vjp(self, y.new_zeros(len(y), *shape))[1]
            found: Tensor = pull(y.clone())[0]
            return found


@final
@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """The visible numbers of a sample, y = mask x: the others are 0.

    Of a mask that hides all, the posterior is the prior. Raises ValueError for other values than 0
    and 1, and a mask that keeps all.

    Args:
        mask: True or 1 where a number is visible, broadcastable to a sample.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask).detach()
        if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                "mask: need True or 1 where a number is visible, False or 0 elsewhere"
            )
        mask = mask.bool()
        if mask.all():
            raise ValueError("mask: it keeps all numbers; there is nothing to infer")
        object.__setattr__(self, "mask", mask)

    def __call__(self, x: Tensor) -> Tensor:
        return x * sent(self.mask, x.device, x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def project(self, y: Tensor) -> Tensor:
        return self(y)

    def outputs(self, shape: Sequence[int]) -> Shape:
        _require_fit("mask", self.mask, shape)
        return tuple(shape)

    def inputs(self, shape: Sequence[int]) -> Shape:
        return self.outputs(shape)


@final
@dataclass(frozen=True, eq=False)
class Scale(LinearOperator):
    """Every number of a sample times a weight of its own.

    Args:
        weights: weights that are not 0, broadcastable to a sample.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        if not bool((self.weights.isfinite() & (self.weights != 0)).all()):
            raise ValueError("weights: need finite numbers that are not 0")

    def __call__(self, x: Tensor) -> Tensor:
        return x * sent(self.weights, x.device, x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def outputs(self, shape: Sequence[int]) -> Shape:
        _require_fit("weights", self.weights, shape)
        return tuple(shape)

    def inputs(self, shape: Sequence[int]) -> Shape:
        return self.outputs(shape)


@final
@dataclass(frozen=True)
class Downsample(LinearOperator):
    """Means of blocks of factor x factor pixels, (..., H, W) -> (..., H / factor, W / factor).

    Args:
        factor: width and height of a block.
    """

    factor: Annotated[int, Range(ge=2)]

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor))
        found: Tensor = blocks.mean((-3, -1))
        return found

    def outputs(self, shape: Sequence[int]) -> Shape:
        *others, height, width = _picture(self, shape)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Downsample: pictures of {height} x {width} have no blocks of {self.factor}; "
                "give a factor of both"
            )
        return (*others, height // self.factor, width // self.factor)

    def inputs(self, shape: Sequence[int]) -> Shape:
        *others, height, width = _picture(self, shape)
        return (*others, height * self.factor, width * self.factor)


@final
@dataclass(frozen=True)
class Blur(LinearOperator):
    """Convolution of pictures (..., H, W) with a Gaussian, cut off beyond 4 ``std``.

    Beyond its edges a picture is continued by its mirror image.

    Args:
        std: standard deviation of the Gaussian in pixels.
    """

    std: Positive

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = (self._matrix(n).to(x.dtype) for n in x.shape[-2:])
        found: Tensor = sent(height, x.device) @ x @ sent(width, x.device).T
        return found

    def adjoint(self, y: Tensor) -> Tensor:
        height, width = (self._matrix(n).to(y.dtype) for n in y.shape[-2:])
        return sent(height, y.device).T @ y @ sent(width, y.device)

    def outputs(self, shape: Sequence[int]) -> Shape:
        return _picture(self, shape)

    def inputs(self, shape: Sequence[int]) -> Shape:
        return _picture(self, shape)

    def _matrix(self, n: int) -> Tensor:
        """The convolution along an axis of n pixels, (n, n) in float64."""
        reach = max(1, math.ceil(4 * self.std))
        away = torch.arange(-reach, reach + 1)
        weights = (-(away.double() / self.std).square() / 2).softmax(0)
        places = (torch.arange(n)[:, None] + away) % (2 * n)
        places = torch.minimum(places, 2 * n - 1 - places)
        return torch.zeros(n, n, dtype=torch.float64).scatter_add(
            1, places, weights.expand(n, -1).contiguous()
        )


@final
@dataclass(frozen=True)
class Grey(LinearOperator):
    """The grey picture (1, H, W) of a colour picture (C, H, W), a weighted sum of its channels.

    Args:
        weights: weight of each channel; by default those of ITU-R BT.601 for red, green and blue.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        if not (all(map(math.isfinite, self.weights)) and any(self.weights)):
            raise ValueError(f"weights: need finite numbers that are not all 0: {self.weights}")

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self._along(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self._along(y)

    def outputs(self, shape: Sequence[int]) -> Shape:
        if len(shape) < 2 or shape[0] != len(self.weights):
            raise ValueError(
                f"Grey: need pictures of {len(self.weights)} channels, got samples {tuple(shape)}"
            )
        return (1, *shape[1:])

    def inputs(self, shape: Sequence[int]) -> Shape:
        return (len(self.weights), *shape[1:])

    def _along(self, x: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, dtype=x.dtype)
        return sent(weights, x.device).reshape(-1, *[1] * (x.ndim - 2))


@final
@dataclass(frozen=True)
class Crop(LinearOperator):
    """A rectangle of pictures (..., H, W).

    Args:
        box: top row, left column, height and width of the rectangle.
        size: height and width of the picture.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for name, count in (("box", 4), ("size", 2)):
            found = tuple(map(int, getattr(self, name)))
            if len(found) != count:
                raise ValueError(f"{name}: need {count} numbers, got {found}")
            object.__setattr__(self, name, found)
        top, left, height, width = self.box
        inside = 0 <= top < top + height <= self.size[0]
        if not (inside and 0 <= left < left + width <= self.size[1]):
            raise ValueError(
                f"box: {height} x {width} at ({top}, {left}) is not in a picture of "
                f"{self.size[0]} x {self.size[1]}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        top, left, height, width = self.box
        return x[..., top : top + height, left : left + width]

    def outputs(self, shape: Sequence[int]) -> Shape:
        if _picture(self, shape)[-2:] != self.size:
            raise ValueError(f"Crop: made for pictures of {self.size}, got samples {tuple(shape)}")
        return (*shape[:-2], *self.box[2:])

    def inputs(self, shape: Sequence[int]) -> Shape:
        return (*_picture(self, shape)[:-2], *self.size)


@final
@dataclass(frozen=True, eq=False)
class Fourier(LinearOperator):
    """Visible coefficients of the orthonormal Fourier transform of pictures (..., H, W).

    y (..., H, W, 2) holds the real and imaginary part of each; those not visible are 0.

    Args:
        mask: True or 1 where a coefficient is visible, (H, W), frequency 0 first.
    """

    mask: Tensor
    _kept: Mask = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if torch.as_tensor(self.mask).ndim != 2:
            raise ValueError(f"mask: need (H, W), got {tuple(torch.as_tensor(self.mask).shape)}")
        object.__setattr__(self, "_kept", Mask(torch.as_tensor(self.mask)[..., None]))

    def __call__(self, x: Tensor) -> Tensor:
        return self._kept(torch.view_as_real(torch.fft.fft2(x, norm="ortho")))

    def project(self, y: Tensor) -> Tensor:
        # A coefficient and that of the opposite frequency are conjugate; A A* halves one alone.
        kept = self._kept.mask
        alone = kept & ~kept.flip(0, 1).roll((1, 1), (0, 1))
        return self(self.adjoint(y * sent(1 + alone.to(y.dtype), y.device)))

    def adjoint(self, y: Tensor) -> Tensor:
        kept = torch.view_as_complex(self._kept(y).contiguous())
        found: Tensor = torch.fft.ifft2(kept, norm="ortho").real
        return found

    def outputs(self, shape: Sequence[int]) -> Shape:
        return self._kept.outputs((*_picture(self, shape), 2))

    def inputs(self, shape: Sequence[int]) -> Shape:
        return self._kept.inputs(shape)[:-1]


@final
@dataclass(frozen=True, eq=False)
class Linear(LinearOperator):
    """A matrix applied to the flattened sample.

    Args:
        matrix: matrix (m, D).
        shape: shape of a sample, D numbers; (D,) by default.
    """

    matrix: Tensor
    shape: Shape | None = None

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix).detach()
        if matrix.ndim != 2 or not matrix.is_floating_point() or not matrix.isfinite().all():
            raise ValueError(
                "matrix: need finite real numbers (m, D), got "
                f"{matrix.dtype} of shape {tuple(matrix.shape)}"
            )
        shape = tuple(map(int, self.shape or matrix.shape[1:]))
        if math.prod(shape) != matrix.shape[1]:
            raise ValueError(f"shape: {shape} is not {matrix.shape[1]} numbers, as in the matrix")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "shape", shape)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ sent(self.matrix, x.device, x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        found = y @ sent(self.matrix, y.device, y.dtype)
        return found.reshape(len(y), *self.inputs(y.shape[1:]))

    def project(self, y: Tensor) -> Tensor:
        if self._range is None:
            return y
        basis = sent(self._range, y.device, y.dtype)
        return y @ basis @ basis.T

    @cached_property
    def _range(self) -> Tensor | None:
        """An orthonormal basis (m, rank) of what the matrix gives; None where it gives all."""
        a = self.matrix.double()
        gram = a @ a.T
        least = RANK * float(gram.diagonal().max())
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed and float(factor.diagonal().square().min()) > least:
            return None
        values, vectors = torch.linalg.eigh(gram)
        found: Tensor = vectors[:, values > RANK * values[-1]]
        return found

    def outputs(self, shape: Sequence[int]) -> Shape:
        if tuple(shape) != self.shape:
            raise ValueError(f"matrix: made for samples {self.shape}, got {tuple(shape)}")
        return (len(self.matrix),)

    def inputs(self, shape: Sequence[int]) -> Shape:
        assert self.shape is not None
        return self.shape


@final
@dataclass(frozen=True)
class Nonlinear(Operator):
    """A function of samples; methods that need its gradient differentiate it.

    Args:
        f: function of samples (B, ...) that gives (B, ...), each sample by itself.
        shape: shape of a sample, if it is known.
    """

    f: Callable[[Tensor], Tensor]
    shape: Shape | None = None

    def __call__(self, x: Tensor) -> Tensor:
        found = self.f(x.clone())  # f may write into its argument
        real = isinstance(found, Tensor) and not found.is_complex()
        return found.to(x.dtype) if real else found

    def inputs(self, shape: Sequence[int]) -> Shape | None:
        return self.shape


@dataclass(frozen=True)
class Chain(Operator):
    """``outer`` after ``inner``."""

    outer: Any
    inner: Any

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.inner(x))
        return found

    def project(self, y: Tensor) -> Tensor:
        found: Tensor = self.outer.project(y)
        return found

    def outputs(self, shape: Sequence[int]) -> Shape:
        found: Shape = self.outer.outputs(self.inner.outputs(shape))
        return found

    def inputs(self, shape: Sequence[int]) -> Shape | None:
        between = self.outer.inputs(shape)
        return None if between is None else self.inner.inputs(between)


@final
@dataclass(frozen=True)
class LinearChain(Chain, LinearOperator):
    """``outer`` after ``inner``, both linear."""

    def adjoint(self, y: Tensor) -> Tensor:
        found: Tensor = self.inner.adjoint(self.outer.adjoint(y))
        return found


def _require_fit(name: str, value: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError for a value that cannot be broadcast to a sample."""
    own = tuple(value.shape)
    pairs = zip(reversed(own), reversed(shape), strict=False)
    if len(own) > len(shape) or not all(a in (1, b) for a, b in pairs):
        raise ValueError(f"{name}: its shape is {own}, that of a sample {tuple(shape)}")


def _picture(operator: Operator, shape: Sequence[int]) -> Shape:
    """The shape of a picture. Raises ValueError for one of fewer than two axes."""
    if len(shape) < 2:
        raise ValueError(
            f"{type(operator).__name__}: need pictures (..., H, W), got samples {tuple(shape)}"
        )
    return tuple(shape)
