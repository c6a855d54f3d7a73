"""The transformer: its published sizes, any image, places told by sines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde.nn import DIT_SIZES, DiT
from scoresde.nn.dit import positions

SIZES = [(1, 1), (1, 7), (2, 3), (5, 5), (8, 8), (13, 4), (33, 17)]
MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}


def dit(channels: int = 2, **options) -> DiT:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 2, "heads": 2, "embedding": 8}
    net = DiT(channels, **{**small, **options}).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def image(height: int, width: int, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", MILLIONS)
def test_it_has_the_parameters_of_the_paper(size):
    """For patches of 2, latents of 4 channels, their learned variances and 1000 classes.

    The paper adds classes behind the perceptron of the noise level, where a row is as wide as the
    network; here they join its 256 features.
    """
    width, depth, heads = DIT_SIZES[size]
    with torch.device("meta"):
        net = DiT(4, width=width, depth=depth, heads=heads, classes=1000, outputs=8)
    count = sum(p.numel() for p in net.parameters())
    assert round((count + 1001 * (width - 256)) / 1e6) == MILLIONS[size]


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_keeps_its_shape_and_reaches_all_pixels(size, patch):
    x = image(*size).requires_grad_()
    out = dit(patch=patch)(x, torch.zeros(2, dtype=x.dtype))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[0, 0, -1, -1], x)
    assert (gradient[0] != 0).all()
    assert not gradient[1].any()


def test_an_odd_image_is_one_filled_up_with_zeros():
    net, x, noise = dit(), image(5, 7), torch.zeros(2).double()
    filled = torch.zeros(2, 2, 6, 8, dtype=x.dtype)
    filled[:, :, :5, :7] = x
    assert torch.equal(net(x, noise), net(filled, noise)[:, :, :5, :7])


def test_patches_come_back_where_they_were():
    """Blocks that are the identity and a head that inverts the stem: the image itself."""
    torch.manual_seed(0)
    net = DiT(2, width=8, depth=1, heads=1, embedding=8).double()
    x = image(4, 6)
    seen = {}
    net.head.register_forward_hook(lambda _, args, __: seen.update(tokens=args[0].shape))
    with torch.no_grad():
        patches = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        net.head.register_forward_hook(lambda *_: patches)
        assert torch.equal(net(x, torch.zeros(2).double()), x)
    assert seen["tokens"] == (2, 6, 8)


def test_places_are_told_apart_by_row_and_column_and_grow_with_the_image():
    like = torch.zeros(1, 64, dtype=torch.float64)
    small, large = positions(3, 5, like), positions(40, 50, like)
    assert torch.equal(small, large.reshape(40, 50, 64)[:3, :5].reshape(15, 64))
    assert (torch.cdist(large, large) + 9 * torch.eye(2000)).min() > 0.1
    rows, columns = large.reshape(40, 50, 64).split(32, dim=2)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))


def test_without_places_tokens_are_a_set(monkeypatch):
    monkeypatch.setattr("scoresde.nn.dit.positions", lambda r, c, like: 0 * like[0])
    net, x, noise = dit(patch=1), image(2, 3), torch.zeros(2).double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def moved(y: Tensor) -> Tensor:
        return y.flatten(2)[:, :, order].reshape(y.shape)

    assert torch.allclose(net(moved(x), noise), moved(net(x, noise)), rtol=0, atol=1e-12)


def test_recomputed_blocks_give_the_same_gradients_bit_for_bit():
    gradients = []
    for net in (dit(dropout=0.3), dit(dropout=0.3, recompute=True)):
        torch.manual_seed(7)
        net.train()(image(5, 5), torch.zeros(2).double()).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"depth": 0}, "depth"),
        ({"patch": 0}, "patch"),
        ({"heads": 3}, "heads=3"),
        ({"embedding": 7}, "even"),
    ],
)
def test_options_that_do_not_fit_are_errors(wrong, said):
    with pytest.raises(ValueError, match=said):
        dit(**wrong)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8), (2, 16)])
def test_another_kind_of_input_is_an_error(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        dit()(torch.zeros(shape, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
