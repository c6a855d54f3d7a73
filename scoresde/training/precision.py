"""Half precision, and the loss scale that keeps fp16 gradients from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PATIENCE = 2000
"""Consecutive updates without an overflow after which the scale is doubled."""
MOST_SKIPPED = 25
"""Most consecutive overflows; they divide the scale by 3e7, which suffices for any gradient."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A context in which layers compute in ``precision``; weights and losses stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def is_slow(precision: Precision, device: torch.device) -> bool:
    """True for half precision on a CPU without instructions for it (x86: AVX-512)."""
    return (
        precision != "float32"
        and device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    )


def lay_out(model: nn.Module) -> None:
    """Set the memory format of convolution weights, and so of images, to channels last."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LossScale:
    """The loss scale of fp16: halved at an overflow, doubled after ``PATIENCE`` updates without.

    ``kept`` counts the updates since the last change, ``skipped`` all overflows, ``in_a_row`` the
    latest consecutive ones. Mixed Precision Training, arXiv 1710.03740, section 3.2.
    """

    value: float = 2.0**16
    kept: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def after(self, finite: bool) -> LossScale:
        """The scale after an update with finite, or other, gradients."""
        if not finite:
            return LossScale(self.value / 2, 0, self.skipped + 1, self.in_a_row + 1)
        if self.kept + 1 == PATIENCE:
            return LossScale(self.value * 2, 0, self.skipped)
        return LossScale(self.value, self.kept + 1, self.skipped)
