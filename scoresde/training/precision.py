"""Half precision: where it is used, and the factor that keeps fp16 gradients from vanishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCTS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.matmul),
    *(Tensor.mm, Tensor.bmm, Tensor.matmul, Tensor.__matmul__),
}
"""What autocast computes in half precision on a CPU, and costs most."""

PATIENCE = 2000
"""Updates in a row without an overflow, after which the factor is doubled."""
MOST_SKIPPED = 25
"""In a row: they divide the factor by 3e7, far below what any gradient needs."""


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside, layers compute in ``precision``; weights, gradients and losses stay float32.

    A CPU without half precision multiplies as one with it does, at the speed of float32.
    """
    if precision == "float32":
        yield
        return
    products = _Widened() if emulates_half(device) else nullcontext()
    with torch.autocast(device.type, DTYPES[precision]), products:
        yield


class _Widened(TorchFunctionMode):
    """Under autocast on a CPU: factors rounded to half precision, products summed in float32.

    So do the instructions for it; without them PyTorch's kernels take many times as long.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not _is_cast(args, kwargs):
            return func(*args, **kwargs)
        half = torch.get_autocast_dtype("cpu")
        wide = [_rounded(value, half) for value in args]
        named = {name: _rounded(value, half) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*wide, **named).to(half)


def _is_cast(args: Sequence[Any], named: dict[str, Any]) -> bool:
    """Whether autocast rounds all factors, as it does real numbers, not in double precision.

    It leaves alone what is written to memory that is there already.
    """
    if not torch.is_autocast_enabled("cpu") or "out" in named:
        return False
    factors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
    return all(
        x.device.type == "cpu" and x.is_floating_point() and x.dtype != torch.float64
        for x in factors
    )


def _rounded(value: Any, half: torch.dtype) -> Any:
    """A tensor in float32 with the numbers of half precision; anything else as it is."""
    return value.to(half).float() if isinstance(value, Tensor) else value


def emulates_half(device: torch.device) -> bool:
    """Whether a CPU has no instructions for half precision, as those of 256-bit vectors."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def lay_out(model: nn.Module) -> None:
    """Put the channels of every convolution's weight side by side in memory; images follow."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LossScale:
    """The factor on the loss of fp16: halved at an overflow, doubled after ``PATIENCE`` without.

    ``kept`` counts the updates since it changed, ``skipped`` those left out for an overflow, and
    ``in_a_row`` the latest of them. Mixed Precision Training, arXiv 1710.03740, section 3.2.
    """

    value: float = 2.0**16
    kept: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def after(self, finite: bool) -> LossScale:
        """The factor after an update whose gradients were finite, or not."""
        if not finite:
            return LossScale(self.value / 2, 0, self.skipped + 1, self.in_a_row + 1)
        if self.kept + 1 == PATIENCE:
            return LossScale(self.value * 2, 0, self.skipped)
        return LossScale(self.value, self.kept + 1, self.skipped)
