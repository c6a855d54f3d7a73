"""A measurement y = A(x0) + noise eps of unknown samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.arguments import NonNegative, check_fields
from scoresde.posterior.operators import LinearOperator, Operator
from scoresde.sde import floating, sent

PROBES = 8
"""Samples that an operator is tried on."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement y = A(x0) + noise eps, eps standard normal, in model units.

    Raises ValueError for something else than an operator, or a y that is not finite.

    Args:
        operator: map A of samples (B, ...) to what is measured, (B, *m).
        y: one measurement (*m) for all samples, or one for each, (B, *m).
        noise: standard deviation of the error of every number of y.
        batch: number of samples of which each has its own y, if that is known.
    """

    operator: Operator
    y: Tensor
    noise: NonNegative = 0.0
    batch: int | None = None

    def __post_init__(self) -> None:
        if getattr(self.noise, "shape", None) == ():  # a number of torch or numpy
            object.__setattr__(self, "noise", float(self.noise))
        check_fields(self)
        if self.noise is None:
            raise ValueError("noise is missing: give its standard deviation, 0 for none")
        if not isinstance(self.operator, Operator):
            raise ValueError(
                f"operator: need one of scoresde.posterior, got {type(self.operator).__name__}; "
                "posterior.Nonlinear makes one of a function"
            )
        try:
            y = torch.as_tensor(self.y).detach()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"y: need an array of numbers, got {self.y!r:.60}") from None
        if y.is_complex() or not bool(y.isfinite().all()):
            raise ValueError("y: some of its numbers are complex, infinite or NaN")
        if not math.isfinite(self.noise):
            raise ValueError(f"need a finite noise, got noise={self.noise}")
        object.__setattr__(self, "y", floating(y))
        object.__setattr__(self, "noise", float(self.noise))

    def fit(self, x: Tensor) -> Measurement:
        """The measurement of the samples ``x`` (B, ...), its ``batch`` known.

        A y of shape (1, *m) is one measurement for all. Raises ValueError, naming both shapes, if
        y is a measurement of other samples.
        """
        each = self.operator.outputs_like(x)
        if self.batch is None and tuple(self.y.shape) == (1, *each) and len(x) > 1:
            return replace(self, y=self.y[0])
        return replace(self, batch=self._batch(x, each))

    def residual(self, x0: Tensor, value: Tensor | None = None) -> Tensor:
        """y - A(x0), (B, *m), without what no sample gives; ``value`` is A(x0) if it is known.

        Raises ValueError, naming both shapes, if y is a measurement of other samples.
        """
        value = self.operator(x0) if value is None else value
        self._batch(x0, tuple(value.shape[1:]))
        return self.operator.project(sent(self.y, x0.device, x0.dtype) - value)

    def _batch(self, x: Tensor, each: tuple[int, ...]) -> int | None:
        if (found := tuple(self.y.shape)) == each and self.batch is None:
            return None
        if found != (len(x), *each):
            raise ValueError(
                f"y: its shape is {found}; of {len(x)} samples {tuple(x.shape[1:])} the operator "
                f"measures {each} each"
            )
        return len(x)

    def among(self, rows: Tensor | slice) -> Measurement:
        """The measurement of some of the samples ``rows``."""
        if self.batch is None:
            return self
        y = self.y[rows]
        return replace(self, y=y, batch=len(y))

    def require_linear(self, method: str) -> LinearOperator:
        """The operator. Raises ValueError unless it is linear."""
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(f"{method}: needs a linear operator; dps or daps take any function")
        return self.operator

    def require_noise(self, method: str) -> None:
        """Raise ValueError for a noise of 0."""
        if self.noise == 0:
            raise ValueError(f"{method}: divides by the noise; give noise > 0, such as 0.01")

    def require_gradient(self, method: str, x: Tensor) -> None:
        """Raise ValueError, before the first network call, for an operator without gradient.

        So for one that does not map every sample by itself. ``x`` (B, ...) are any samples.
        """
        if isinstance(self.operator, LinearOperator):
            return
        self.operator.outputs_like(x)
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator().manual_seed(0)
            z = torch.randn(2 * PROBES, *x.shape[1:], generator=generator)
            z = z.to(x).requires_grad_()
            half, slope = self.operator(z)[:PROBES], None
            if half.requires_grad:
                weights = torch.randn(half.shape, generator=generator).to(half)
                (slope,) = torch.autograd.grad(half, z, weights, allow_unused=True)
        if slope is None or not bool(slope.any()):
            raise ValueError(
                f"{method}: the operator has no gradient, or one of 0; remove rounding, detach "
                "and torch.no_grad from it, or choose a method that needs none"
            )
        if bool(slope[PROBES:].nan_to_num().any()):
            raise ValueError(
                "operator: its result for a sample depends on others; map each by itself, with "
                "networks in eval mode"
            )
