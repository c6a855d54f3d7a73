"""Half precision: where it is used, and the factor that keeps fp16 gradients from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = 2000
"""Updates in a row without an overflow, after which the factor is doubled."""
MOST_SKIPPED = 25
"""In a row: they divide the factor by 3e7, far below what any gradient needs."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Inside, layers compute in ``precision``; weights, gradients and losses stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def is_slow(precision: Precision, device: torch.device) -> bool:
    """Whether a CPU has no instructions for half precision: it then computes slower than float32.

    Those of x86 come with vectors of 512 bits.
    """
    return (
        precision != "float32"
        and device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    )


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
