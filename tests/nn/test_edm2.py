"""The magnitude-preserving U-Net: the sizes inside it, its published sizes, any image."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from scoresde.nn import EDM2, EDM2_WIDTHS
from scoresde.nn.edm2 import MPBlock
from scoresde.nn.magnitude import MPConv, MPLinear, normalise

SIZES = [(1, 1), (1, 7), (2, 3), (5, 5), (7, 9), (8, 8), (13, 4), (33, 17)]
MILLIONS = {"XS": 125, "S": 280, "M": 498, "L": 777, "XL": 1119, "XXL": 1523}


def edm2(channels: int = 2, **options) -> EDM2:
    """A small network in float64 whose gains are not zero."""
    torch.manual_seed(0)
    small = {"width": 8, "multipliers": (1, 2, 3), "blocks": 1, "attention": (2,)}
    net = EDM2(channels, **{**small, "head_channels": 8, "embedding": 8, **options}).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.5)
    return net


def image(height: int, width: int, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "size",
    ["XS", "S", *(pytest.param(s, marks=pytest.mark.slow) for s in ("M", "L", "XL")), "XXL"],
)
def test_it_has_the_parameters_of_the_paper(size):
    with torch.device("meta"):
        net = EDM2(4, width=EDM2_WIDTHS[size], classes=1000)
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6) == MILLIONS[size]


def test_sizes_are_kept_through_the_whole_network():
    torch.manual_seed(0)
    net = EDM2(3, width=32, multipliers=(1, 2), blocks=2, attention=(), classes=5)
    sizes: list[float] = []

    def inside(_module: object, _args: object, y: Tensor) -> None:
        quarter = y.shape[-1] // 4  # away from the zeros around the image
        sizes.append(y[:, :, quarter:-quarter, quarter:-quarter].square().mean().sqrt().item())

    for module in net.modules():
        if isinstance(module, MPBlock) or module is net.head:
            module.register_forward_hook(inside)
    noise = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64, generator=generator), noise, torch.arange(4))
    assert len(sizes) == 15
    assert torch.allclose(torch.tensor(sizes), torch.ones(15), rtol=0, atol=0.1)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_keeps_its_shape_and_reaches_all_pixels(size):
    x = image(*size).requires_grad_()
    out = edm2()(x, torch.zeros(2, dtype=x.dtype))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[0, 0, -1, -1], x)
    assert (gradient[0] != 0).all()
    assert not gradient[1].any()


@pytest.mark.parametrize("multipliers", [(1,), (2, 1), (1, 3, 2, 2)])
def test_every_number_of_levels_and_outputs(multipliers):
    net = edm2(3, multipliers=multipliers, attention=range(len(multipliers)), blocks=2, outputs=7)
    assert net(image(6, 5, 3), torch.zeros(2).double()).shape == (2, 7, 6, 5)


def test_the_function_does_not_depend_on_the_size_of_the_weights():
    net = edm2(classes=3)
    x, noise, label = image(5, 6), torch.tensor([-1.0, 2.0]).double(), torch.tensor([0, 2])
    before = net(x, noise, label)
    torch.manual_seed(3)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, MPConv | MPLinear):
                layer.weight.mul_(
                    10 ** torch.randn(len(layer.weight), *[1] * (layer.weight.ndim - 1))
                )
    assert torch.allclose(net(x, noise, label), before, rtol=0, atol=1e-11)
    normalise(net)
    assert torch.allclose(net(x, noise, label), before, rtol=0, atol=1e-11)


def test_there_is_no_other_bias_than_the_constant_channel():
    net = edm2()
    noise = torch.zeros(2).double()
    assert net(0 * image(4, 4), noise).abs().max() > 1e-3
    with torch.no_grad():
        net.stem.weight[:, -1] = 0
    assert torch.equal(net(0 * image(4, 4), noise), 0 * image(4, 4))


def test_recomputed_blocks_give_the_same_gradients_bit_for_bit():
    kept = edm2(dropout=0.3).train()
    again = edm2(dropout=0.3, recompute=True).train()
    again.load_state_dict(kept.state_dict())
    gradients = []
    for net in (kept, again):
        torch.manual_seed(7)
        net(image(5, 5), torch.zeros(2).double()).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_a_training_step_compiles_whole():
    net = edm2(multipliers=(1,), attention=(0,)).train()
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for run in (net, compiled):
        run(image(4, 4), torch.zeros(2).double()).square().sum().backward()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 0}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"multipliers": ()}, "multiplier"),
        ({"attention": (3,)}, "attention=3 is no resolution"),
        ({"head_channels": 5}, "head_channels=5"),
        ({"embedding": 7}, "even"),
    ],
)
def test_options_that_do_not_fit_are_errors(wrong, said):
    with pytest.raises(ValueError, match=said):
        edm2(**wrong)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8), (2, 16)])
def test_another_kind_of_input_is_an_error(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        edm2()(torch.zeros(shape, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
