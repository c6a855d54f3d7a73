"""A discriminator of patches, its losses, and the weight of the adversary in an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Natural, Positive, check, check_fields

Kind = Literal["hinge", "vanilla"]
SLOPE = 0.2
LEAST, LARGEST = 1e-4, 1e4
BETAS = (0.5, 0.9)


@final
class PatchDiscriminator(nn.Module):
    """Convolutions that score overlapping patches of a picture: above 0 for a real one.

    4 x 4 convolutions, ``layers`` of them with stride 2, of doubling widths, and two more with
    stride 1. Group normalisation stands in the place of that over the batch, so that scores and
    a resumed run do not depend on how pictures are batched. Image-to-Image Translation with
    Conditional Adversarial Networks, arXiv 1611.07004, appendix 6.1.2.

    Args:
        channels: channels of the pictures.
        width: channels after the first convolution; it grows to eight times this at most.
        layers: convolutions with stride 2; patches have 16, 34 or 70 pixels a side for 1, 2 or 3.
        groups: groups of the normalisations; it divides twice the width.

    Raises ValueError for groups that do not divide twice the width.
    """

    def __init__(
        self, channels: Count, *, width: Count = 16, layers: Count = 2, groups: Count = 4
    ) -> None:
        super().__init__()
        check(PatchDiscriminator, locals())
        if 2 * width % groups:
            raise ValueError(f"groups={groups} does not divide twice the width {width}")
        widths = [channels, *(width * min(2**k, 8) for k in range(layers + 1))]
        found: list[nn.Module] = []
        for level, (into, out) in enumerate(pairwise(widths)):
            stride = 2 if level < layers else 1
            found.append(nn.Conv2d(into, out, 4, stride, 1, bias=level == 0))
            if level:
                found.append(nn.GroupNorm(groups, out))
            found.append(nn.LeakyReLU(SLOPE))
        self.net = nn.Sequential(*found, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.least = 3 * 2**layers
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def require_fit(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for pictures (C, H, W) that are too small."""
        if min(shape[1:]) < self.least:
            raise ValueError(
                f"discriminator: pictures of {shape[1]} x {shape[2]} pixels are too small, "
                f"it takes {self.least} a side; set fewer layers"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 1, h, w). Raises ValueError for pictures that are too small."""
        self.require_fit(tuple(x.shape[1:]))
        found: Tensor = self.net(x)
        return found


def discriminator_loss(real: Tensor, fake: Tensor, kind: Kind) -> Tensor:
    """The loss of the discriminator from its scores, a mean over patches.

        hinge:   (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2
        vanilla: (mean log(1 + e^-real) + mean log(1 + e^fake)) / 2

    Geometric GAN, arXiv 1705.02894; Generative Adversarial Networks, arXiv 1406.2661, eq. 1.
    """
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


class Played(NamedTuple):
    """The result of one play.

    ``pull`` has the value 0 and the gradient that the adversary gives the autoencoder; ``loss`` is
    that of the discriminator, with its graph; ``right`` the fraction of patches that it took for
    what they are, and ``weight`` the weight of the adversary.
    """

    pull: Tensor
    loss: Tensor
    right: Tensor
    weight: Tensor

    def numbers(self) -> dict[str, Tensor]:
        """The numbers for the log by name."""
        return {
            "loss_discriminator": self.loss.detach(),
            "discriminator_right": self.right,
            "discriminator_weight": self.weight.nan_to_num(0.0),  # of an overflow in fp16
        }


def play(
    discriminator: nn.Module,
    x: Tensor,
    output: Tensor,
    pictures: Tensor,
    reconstruction: Tensor,
    last: Tensor,
    *,
    kind: Kind,
    weight: float,
    scale: float = 1.0,
) -> Played:
    """Let a discriminator judge pictures x and their reconstructions.

    The autoencoder lowers the adversarial loss -mean score, with a weight that balances the
    gradients at the weights of the last layer of the decoder,

        weight min(|grad reconstruction| / (|grad adversarial| + 1e-4), 1e4)

    Taming Transformers for High-Resolution Image Synthesis, arXiv 2012.09841, eq. 7.

    Args:
        discriminator: scores of pictures, which the two networks share in one pass.
        x: pictures (B, C, H, W).
        output: output of the decoder, whose graph leads to ``last``.
        pictures: reconstructions (B, C, H, W), a function of ``output``.
        reconstruction: reconstruction loss, a function of ``output``.
        last: weights of the last layer of the decoder.
        kind: loss of the discriminator.
        weight: factor of the balanced adversarial loss.
        scale: factor on what is differentiated in half precision, so that nothing underflows.
    """
    leaf = pictures.detach().requires_grad_()
    fake, real = discriminator(leaf), discriminator(x)
    (at_pictures,) = torch.autograd.grad(-scale * fake.mean(), leaf, retain_graph=True)
    (push,) = torch.autograd.grad(pictures, output, at_pictures, retain_graph=True)
    (own,) = torch.autograd.grad(scale * reconstruction, output, retain_graph=True)
    # The gradients at the output are known, so only the last layer is differentiated for each.
    ours, theirs = (
        torch.autograd.grad(output, last, g, retain_graph=True)[0].norm() / scale
        for g in (own, push)
    )
    balanced = weight * (ours / (theirs + LEAST)).clamp(max=LARGEST)
    pull = output * (balanced / scale * push)
    right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    loss = discriminator_loss(real, fake, kind)
    return Played((pull - pull.detach()).sum(), loss, right, balanced)


@final
@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Training against a patch discriminator: reconstructions look real and are less near.

    Args:
        width: channels of the discriminator after its first convolution
        layers: its convolutions with stride 2
        groups: groups of its normalisations
        loss: its loss
        weight: weight of the adversary, relative to a gradient as large as that of reconstruction
        start: steps before the discriminator is trained and acts; until then it costs nothing
        rate: its learning rate, relative to that of the autoencoder

    Raises ValueError as ``PatchDiscriminator`` does.
    """

    width: Count = 16
    layers: Count = 2
    groups: Count = 4
    loss: Kind = "hinge"
    weight: Positive = 0.5
    start: Natural = 1_000
    rate: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        self.discriminator(1)

    def discriminator(self, channels: int) -> PatchDiscriminator:
        """A new discriminator of pictures with as many channels."""
        shape = {"width": self.width, "layers": self.layers, "groups": self.groups}
        return PatchDiscriminator(channels, **shape)


@final
class Adversary:
    """A discriminator with its own optimiser; both are a function of the steps it has made."""

    def __init__(self, settings: Adversarial, net: nn.Module, lr: float) -> None:
        self.settings, self.net = settings, net
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=BETAS)

    def begin(self, rate: float) -> None:
        """Set the learning rate for that of the autoencoder, and remove the gradients before."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * rate
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """The gradients of the last backward pass, to be changed in place."""
        return [p.grad for p in self.net.parameters() if p.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser. Tensors are not copied."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
