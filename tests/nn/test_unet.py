"""The U-Net takes images of any size and sees all of them."""

from __future__ import annotations

import pytest
import torch

from scoresde.nn import UNet
from scoresde.nn.blocks import modulate

SIZES = [(1, 1), (1, 7), (2, 3), (5, 5), (7, 9), (8, 8), (9, 7), (13, 4), (28, 28), (33, 17)]


def unet(channels: int = 2, **options) -> UNet:
    torch.manual_seed(0)
    small = {"width": 4, "multipliers": (1, 2, 3), "blocks": 1, "attention": (2,), "heads": 2}
    net = UNet(channels, **{**small, "embedding": 8, **options}).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def image(height: int, width: int, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_keeps_its_shape(size):
    x = image(*size)
    out = unet()(x, torch.zeros(2, dtype=x.dtype))
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("multipliers", [(1,), (2, 1), (1, 3, 2, 2)])
def test_every_number_of_channels_and_levels(channels, multipliers):
    x = image(6, 5, channels)
    levels = range(len(multipliers))
    net = unet(channels, multipliers=multipliers, attention=levels, width=6, blocks=2)
    assert net(x, torch.zeros(2, dtype=x.dtype)).shape == x.shape


def test_256_by_256_in_one_call():
    net = UNet(1, width=4, multipliers=(1, 1, 1, 1, 2), blocks=1, attention=(4,), embedding=8)
    with torch.no_grad():
        out = net(torch.randn(1, 1, 256, 256), torch.zeros(1))
    assert out.shape == (1, 1, 256, 256)


class NoNorm(torch.nn.Module):
    """The modulation alone."""

    def forward(self, x, modulation=None):
        return x if modulation is None else modulate(x, modulation[:, :, None, None])


def without_norms(net: torch.nn.Module) -> torch.nn.Module:
    """The network without its group norms, which mix all pixels by themselves."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, NoNorm())
    return net


@pytest.mark.parametrize("size", [(7, 9), (8, 8)])
def test_attention_lets_every_output_pixel_see_every_input_pixel(size):
    x = image(*size).requires_grad_()
    corner = without_norms(unet())(x, torch.zeros(2, dtype=x.dtype))[:, 0, -1, -1].sum()
    (gradient,) = torch.autograd.grad(corner, x)
    assert (gradient != 0).all()


def test_without_attention_and_levels_it_is_local():
    x = image(24, 24).requires_grad_()
    local = without_norms(unet(multipliers=(1,), attention=()))
    corner = local(x, torch.zeros(2, dtype=x.dtype))[:, 0, -1, -1].sum()
    (gradient,) = torch.autograd.grad(corner, x)
    assert (gradient[:, :, -5:, -5:] != 0).all()
    assert (gradient[:, :, 0, 0] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 0}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"multipliers": ()}, "multiplier"),
        ({"multipliers": (1, 0)}, "multiplier"),
        ({"attention": (3,)}, "attention=3 is no resolution"),
        ({"heads": 5}, "heads=5"),
        ({"embedding": 7}, "even"),
    ],
)
def test_options_that_do_not_fit_are_errors(wrong, said):
    with pytest.raises(ValueError, match=said):
        unet(**wrong)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8), (2, 16)])
def test_another_kind_of_input_is_an_error(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        unet()(torch.zeros(shape, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
