"""Networks of other libraries as networks of this one: (x, noise, **told) -> tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def output_of(result: Any) -> Any:
    """The tensor in what a module of diffusers returns: ``.sample``, or the first of a tuple."""
    if hasattr(result, "sample") and not isinstance(result, Tensor):
        return result.sample
    return result[0] if isinstance(result, tuple) else result


class Plain(nn.Module):
    """A module that takes x, the noise level and keywords, and returns x or what holds it."""

    wide_noise = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, noise: Tensor, **told: Tensor | None) -> Any:
        given = {name: value for name, value in told.items() if value is not None}
        return output_of(self.module(x, noise, **given))
