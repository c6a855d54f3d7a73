"""A small classifier of images, fitted on real data to evaluate generated ones.

It reads one label, or several attributes at once, each by a head of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.evaluation.finite import require_finite

GROUPS = 8
CHUNK = 500

Network = Callable[[int, int, torch.Generator, int], nn.Sequential]
"""A network made from channels, side, a generator of its weights, and the number of classes."""


@dataclass(frozen=True)
class Classifier:
    """A fitted network with the mean and standard deviation of its training images.

    ``heads`` are the numbers of classes of several attributes, or None for one label.
    """

    net: nn.Sequential
    mean: Tensor
    std: Tensor
    heads: tuple[int, ...] | None = None

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Most likely class (N,) of images (N, C, H, W) in the units of the training images.

        With several heads it is (N, heads). Raises ValueError for NaN or infinity, here and below.
        """
        require_finite(images=x)
        inputs = (self._standardise(part) for part in x.split(CHUNK))
        found = torch.cat([_best(self.net(part), self.heads) for part in inputs])
        return found[:, 0] if self.heads is None else found

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
    classes: int | Sequence[int],
    seed: int = 0,
    steps: int = 400,
    batch: int = 128,
    shift: int = 1,
    network: Network | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Classifier:
    """Fit a convolutional network on real images.

    The loss is the cross-entropy with label smoothing 0.1, averaged over the heads; images are
    shifted at random; AdamW follows a one-cycle schedule. The global random
    state is not used.

    Args:
        x: images (N, C, H, W), pixel levels or real numbers.
        label: classes (N,), in 0 .. classes-1; (N, heads) for several heads.
        classes: number of classes, or that of each head.
        seed: seed of all random numbers.
        steps: number of training steps.
        batch: images per step.
        shift: most pixels by which images are shifted along each axis.
        network: makes the network; None is ``pooling``.
        advance: called with 1 after each step.

    Raises ValueError for other shapes or labels, NaN or infinity.
    """
    _check(x, label, classes)
    sizes = (classes,) if isinstance(classes, int) else tuple(classes)
    label = label.reshape(len(x), len(sizes))
    generator = torch.Generator().manual_seed(seed)
    std, mean = torch.std_mean(x.float())
    make = network or pooling
    net = make(x.shape[1], min(x.shape[2:]), generator, sum(sizes)).to(x.device)
    heads = None if isinstance(classes, int) else sizes
    judge = Classifier(net, mean, std.clamp_min(1e-12), heads)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        logits = net(_shifted(judge._standardise(x[index]), shift, generator))
        optimizer.zero_grad()
        losses = [
            F.cross_entropy(part, truth, label_smoothing=0.1)
            for part, truth in zip(logits.split(sizes, 1), label[index].unbind(1), strict=True)
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
        advance(1)
    net.requires_grad_(False)
    return judge


def _check(x: Tensor, label: Tensor, classes: int | Sequence[int]) -> None:
    heads = () if isinstance(classes, int) else (len(classes),)
    if x.ndim != 4 or x.numel() == 0 or label.shape != (len(x), *heads):
        shapes = f"{tuple(x.shape)} and labels {tuple(label.shape)}"
        wanted = ", ".join(["N", *map(str, heads)]) if heads else "N,"
        raise ValueError(f"images are {shapes}; expected (N, C, H, W) and ({wanted})")
    sizes = (classes,) if isinstance(classes, int) else classes
    for column, n in zip(label.reshape(len(x), -1).unbind(1), sizes, strict=True):
        if int(column.min()) < 0 or int(column.max()) >= n:
            found = f"{int(column.min())}..{int(column.max())}"
            raise ValueError(f"labels run over {found}, expected 0..{n - 1}")
    require_finite(images=x)


def _best(logits: Tensor, heads: Sequence[int] | None) -> Tensor:
    """The most likely class of each head, (N, heads); (N, 1) for one label."""
    parts = [logits] if heads is None else logits.split(tuple(heads), 1)
    return torch.stack([part.argmax(1) for part in parts], 1)


def pooling(channels: int, side: int, generator: torch.Generator, classes: int) -> nn.Sequential:
    """Blocks with pooling down to 8 pixels, two resolutions of two blocks, one linear layer."""
    layers: list[nn.Module] = []
    while side > 8:
        layers += [*_block(channels, 32), nn.MaxPool2d(2)]
        channels, side = 32, side // 2
    layers += [*_block(channels, 32), *_block(32, 32), nn.MaxPool2d(2, ceil_mode=True)]
    layers += [*_block(32, 64), *_block(64, 64), nn.AdaptiveAvgPool2d(4)]
    return _initialised(layers, 64 * 16, classes, generator)


def strided(channels: int, side: int, generator: torch.Generator, classes: int) -> nn.Sequential:
    """Three blocks, two of them strided, on 16 x 16 averages: details of few pixels survive."""
    layers = [nn.AdaptiveAvgPool2d(16), *_block(channels, 32), *_block(32, 48, 2)]
    return _initialised([*layers, *_block(48, 64, 2)], 64 * 16, classes, generator)


def _initialised(
    layers: Sequence[nn.Module], width: int, classes: int, generator: torch.Generator
) -> nn.Sequential:
    """The layers and a linear one, with weights drawn from ``generator`` only."""
    # Built on "meta", so that the default initialisation draws no global random numbers.
    with torch.device("meta"):
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))
    for layer in net.to_empty(device="cpu").modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
    return net


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    with torch.device("meta"):
        return [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1),
            nn.GroupNorm(GROUPS, outputs),
            nn.ReLU(),
        ]


def _shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images shifted by up to ``most`` pixels along each axis at random, with replicated edges."""
    n, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="replicate")
    down, right = torch.randint(2 * most + 1, (2, n, 1), generator=generator).to(x.device)
    rows = (down + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (right + torch.arange(width, device=x.device))[:, None, None, :]
    images = torch.arange(n, device=x.device)[:, None, None, None]
    every = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[images, every, rows, columns]
