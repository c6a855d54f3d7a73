"""The losses of a discriminator have known optima, and its weight balances two gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from scoresde.latent import PatchDiscriminator
from scoresde.latent.discriminator import LARGEST, discriminator_loss, play

F64 = torch.float64
REAL, FAKE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 1, 1, 2, 2, 2])
"""Draws of two laws over three points, and so their exact expectations."""


def laws() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.bincount(draws).double() / len(draws) for draws in (REAL, FAKE))


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_optimum_for_two_known_laws(kind):
    p, q = laws()
    middle = (p + q) / 2
    divergence = (p * (p / middle).log() + q * (q / middle).log()).sum() / 2
    best, least = {
        "hinge": ((p - q).sign(), torch.minimum(p, q).sum()),  # 1 - total variation
        "vanilla": ((p / q).log(), math.log(2) - divergence),  # log 2 - Jensen-Shannon
    }[kind]
    found = discriminator_loss(best[REAL], best[FAKE], kind)
    torch.testing.assert_close(found, torch.as_tensor(least))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = best + torch.randn(3, generator=generator, dtype=F64)
        assert discriminator_loss(other[REAL], other[FAKE], kind) >= found


class Toy:
    """A last layer, a discriminator and pictures in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.last = nn.Conv2d(2, 3, 3, padding=1).to(F64)
        self.discriminator = PatchDiscriminator(3, width=4, layers=1).to(F64)
        self.h, self.x = torch.randn(2, 2, 8, 8, dtype=F64), torch.randn(2, 3, 8, 8, dtype=F64)

    def reconstruction(self) -> torch.Tensor:
        return (self.picture() - self.x).square().mean()

    def picture(self) -> torch.Tensor:
        return self.last(self.h).tanh()  # no identity: the output is not the picture

    def adversarial(self) -> torch.Tensor:
        return -self.discriminator(self.picture()).mean()

    def slopes(self, of: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The gradient of a function of the last layer by central differences."""
        weight, step = self.last.weight.data, 1e-5
        found = torch.zeros_like(weight)
        with torch.no_grad():
            for k in range(weight.numel()):
                kept = weight.view(-1)[k].item()
                values = []
                for sign in (1, -1):
                    weight.view(-1)[k] = kept + sign * step
                    values.append(of())
                weight.view(-1)[k] = kept
                found.view(-1)[k] = (values[0] - values[1]) / (2 * step)
        return found

    def play(self, weight: float = 0.5):
        output = self.last(self.h)
        picture = output.tanh()
        loss = (picture - self.x).square().mean()
        return play(
            self.discriminator,
            self.x,
            output,
            picture,
            loss,
            self.last.weight,
            kind="hinge",
            weight=weight,
        )


def test_the_weight_is_the_ratio_of_the_gradients_by_finite_differences():
    toy = Toy()
    own, push = toy.slopes(toy.reconstruction), toy.slopes(toy.adversarial)
    played = toy.play()
    expected = 0.5 * own.norm() / (push.norm() + 1e-4)
    torch.testing.assert_close(played.weight, expected, rtol=1e-6, atol=0)
    (pulled,) = torch.autograd.grad(played.pull, toy.last.weight)
    torch.testing.assert_close(pulled, expected * push, rtol=1e-5, atol=1e-9)


def test_a_discriminator_without_slope_has_a_bounded_weight():
    toy = Toy()
    for parameter in toy.discriminator.parameters():
        parameter.data.zero_()
    assert toy.play().weight <= 0.5 * LARGEST
    assert toy.play().pull == 0


def test_the_loss_of_the_discriminator_teaches_it_alone():
    toy = Toy()
    played = toy.play()
    direct = discriminator_loss(
        toy.discriminator(toy.x), toy.discriminator(toy.picture().detach()), "hinge"
    )
    torch.testing.assert_close(played.loss, direct)
    (untouched,) = torch.autograd.grad(
        played.loss, toy.last.weight, allow_unused=True, retain_graph=True
    )
    assert untouched is None
    parameters = list(toy.discriminator.parameters())
    found = torch.autograd.grad(played.loss, parameters)
    for gradient, expected in zip(found, torch.autograd.grad(direct, parameters), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_fraction_of_right_patches():
    toy = Toy()
    real, fake = toy.discriminator(toy.x), toy.discriminator(toy.picture())
    expected = ((real > 0).double().mean() + (fake < 0).double().mean()) / 2
    torch.testing.assert_close(toy.play().right.double(), expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scores_do_not_depend_on_the_other_pictures(layers):
    net = PatchDiscriminator(1, width=4, layers=layers)
    x = torch.randn(3, 1, net.least + 1, net.least)
    whole = net(x)
    torch.testing.assert_close(whole[:1], net(x[:1]))
    assert whole.ndim == 4
    assert whole.shape[1] == 1
    with pytest.raises(ValueError, match="set fewer layers"):
        net(x[..., : net.least - 1])


def test_a_patch_reaches_as_far_as_described():
    net = PatchDiscriminator(1, width=2, layers=2, groups=1)
    for name, layer in list(net.net.named_children()):
        if isinstance(layer, nn.GroupNorm):  # sees the whole picture
            setattr(net.net, name, nn.Identity())
    x = torch.randn(1, 1, 80, 80, requires_grad=True)
    scores = net(x)
    middle = scores.shape[-1] // 2
    (slope,) = torch.autograd.grad(scores[0, 0, middle, middle], x)
    assert (slope[0, 0].abs().sum(0) > 0).sum() == 34


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="does not divide twice the width"):
        PatchDiscriminator(3, width=3, groups=4)
