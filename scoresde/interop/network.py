"""Networks of other libraries as networks of this one: (x, noise, **told) -> tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def output_of(result: Any) -> Any:
    """The tensor in what a module of diffusers returns: ``.sample``, or the first of a tuple."""
    if isinstance(result, Tensor):
        return result
    if hasattr(result, "sample"):
        return result.sample
    return result[0] if isinstance(result, tuple) and result else result


class Unconditional(nn.Module):
    """A network of diffusers that is told the noise level only."""

    wide_noise = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, noise: Tensor) -> Any:
        return output_of(self.module(x, noise))


class Labelled(nn.Module):
    """A network of diffusers that needs a class ``label`` (B,): it has none for no class."""

    wide_noise = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Any:
        return output_of(self.module(x, noise, class_labels=label))


class Classes(nn.Module):
    """A network of diffusers with a table of ``classes`` classes and one more for no class."""

    wide_noise = True

    def __init__(self, module: nn.Module, classes: int) -> None:
        super().__init__()
        self.module, self.classes = module, classes

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Any:
        if label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        return output_of(self.module(x, noise, class_labels=label))
