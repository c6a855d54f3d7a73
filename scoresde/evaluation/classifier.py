"""A small classifier of images, fitted on real data to evaluate generated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.evaluation.finite import require_finite

GROUPS = 8
CHUNK = 500


@dataclass(frozen=True)
class Classifier:
    """A fitted network with the mean and standard deviation of its training images."""

    net: nn.Sequential
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Most likely class (N,) of images (N, C, H, W) in the units of the training images.

        Raises ValueError for NaN or infinity, here and below.
        """
        require_finite(images=x)
        inputs = (self._standardise(part) for part in x.split(CHUNK))
        return torch.cat([self.net(part).argmax(1) for part in inputs])

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Features (N, 64): the last feature maps, averaged over the image, in float64."""
        require_finite(images=x)
        maps, device = self.net[:-2], self.mean.device
        inputs = (self._standardise(part.to(device)) for part in x.split(CHUNK))
        return torch.cat([maps(part).mean((2, 3)).double().cpu() for part in inputs])

    def accuracy(self, x: Tensor, label: Tensor) -> float:
        """Fraction of the images ``x`` whose predicted class is ``label``."""
        return (self.predict(x) == label).double().mean().item()

    def _standardise(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std


def fit_classifier(
    x: Tensor,
    label: Tensor,
    classes: int,
    seed: int = 0,
    steps: int = 400,
    batch: int = 128,
    advance: Callable[[int], object] = lambda n: None,
) -> Classifier:
    """Fit a convolutional network on real images.

    The loss is the cross-entropy with label smoothing 0.1; images are shifted at random by up to
    one pixel; AdamW follows a one-cycle schedule. The global random state is not used.

    Args:
        x: images (N, C, H, W), pixel levels or real numbers.
        label: classes (N,), in 0 .. classes-1.
        classes: number of classes.
        seed: seed of all random numbers.
        steps: number of training steps.
        batch: images per step.
        advance: called with 1 after each step.

    Raises ValueError for other shapes or labels, NaN or infinity.
    """
    _check(x, label, classes)
    generator = torch.Generator().manual_seed(seed)
    std, mean = torch.std_mean(x.float())
    net = _network(x.shape[1], min(x.shape[2:]), classes, generator).to(x.device)
    judge = Classifier(net, mean, std.clamp_min(1e-12))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        logits = net(_shifted(judge._standardise(x[index]), generator))
        optimizer.zero_grad()
        F.cross_entropy(logits, label[index], label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
        advance(1)
    net.requires_grad_(False)
    return judge


def _check(x: Tensor, label: Tensor, classes: int) -> None:
    if x.ndim != 4 or x.numel() == 0 or label.shape != x.shape[:1]:
        shapes = f"{tuple(x.shape)} and labels {tuple(label.shape)}"
        raise ValueError(f"images are {shapes}; expected (N, C, H, W) and (N,)")
    if int(label.min()) < 0 or int(label.max()) >= classes:
        found = f"{int(label.min())}..{int(label.max())}"
        raise ValueError(f"labels run over {found}, expected 0..{classes - 1}")
    require_finite(images=x)


def _network(channels: int, side: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """Blocks with pooling down to 8 pixels, two resolutions of two blocks, one linear layer."""
    layers: list[nn.Module] = []
    while side > 8:
        layers += [*_block(channels, 32), nn.MaxPool2d(2)]
        channels, side = 32, side // 2
    layers += [*_block(channels, 32), *_block(32, 32), nn.MaxPool2d(2, ceil_mode=True)]
    layers += [*_block(32, 64), *_block(64, 64), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    # Built on "meta", so that the default initialisation draws no global random numbers.
    with torch.device("meta"):
        net = nn.Sequential(*layers, nn.Linear(64 * 16, classes))
    for layer in net.to_empty(device="cpu").modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
    return net


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    with torch.device("meta"):
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(GROUPS, outputs),
            nn.ReLU(),
        ]


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted at random by -1, 0 or 1 pixel along each axis, with replicated edges."""
    n, _, height, width = x.shape
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    down, right = torch.randint(3, (2, n, 1), generator=generator).to(x.device)
    rows = (down + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=x.device))[:, None, None, :]
    images = torch.arange(n, device=x.device)[:, None, None, None]
    every = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[images, every, rows, columns]
