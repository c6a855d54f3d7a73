"""The distance of pictures in the maps of a network of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from scoresde.arguments import nearest
from scoresde.evaluation.features import read_torchscript
from scoresde.nn.lite0 import Lite0

TINY = 1e-10
Features = Callable[[Tensor], Sequence[Tensor]]


@final
class Perceptual(nn.Module):
    """The distance of pictures x and y (B, C, H, W) in model units, as (B,).

        d(x, y) = sum_l mean_(h, w) | f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)| |^2

    f_l (B, c, h, w) are the maps that ``features`` gives of colour pictures with numbers in
    [0, 1]; their norms are over the channels. Grey pictures are repeated to three channels. The
    features are constants, and no part of the state. The Unreasonable Effectiveness of Deep
    Features as a Perceptual Metric, arXiv 1801.03924, eq. 1, with all weights 1.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = [features]  # in a list, so that its weights are not among ours

    def require_fit(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for pictures (C, H, W) that the features do not take."""
        if shape[0] not in (1, 3):
            raise ValueError(
                f"perceptual: takes grey or colour pictures, got {shape[0]} channels; set it to 0"
            )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.require_fit(tuple(x.shape[1:]))
        pairs = zip(self._maps(x), self._maps(y), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _maps(self, x: Tensor) -> list[Tensor]:
        colour = x.expand(-1, 3, -1, -1)
        found = [h.to(x.dtype) for h in self.features[0]((colour + 1) / 2)]
        return [h / (h.square().sum(1, keepdim=True) + TINY).sqrt() for h in found]


def perceptual(choice: str | Path | nn.Module, device: torch.device | str = "cpu") -> Perceptual:
    """The distance over the features of "lite0", of a TorchScript file or of a copy of a module.

    A folder stands for the one .pt file in it. A TorchScript file is a program and will be run.
    Raises ValueError for features that cannot be read.
    """
    if isinstance(choice, nn.Module):
        net = deepcopy(choice)
    elif str(choice) == "lite0":
        net = Lite0()
    else:
        path = Path(choice).expanduser()
        if path.is_dir() and len(inside := list(path.glob("*.pt"))) == 1:
            path = inside[0]
        if not path.is_file():
            hint = nearest(str(choice), ["lite0"])
            raise ValueError(f"perceptual: {choice}: no such TorchScript file; {hint}")
        net = read_torchscript(path)
    for parameter in net.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad_(False)
    return Perceptual(net.eval().to(device))
