"""Winograd's convolution against the definition, which PyTorch computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scoresde.nn import winograd
from scoresde.nn.normalise import GroupNorm
from scoresde.nn.winograd import Conv3x3, convolve

SHAPES = [(3, 5, 7, 9, 14), (2, 3, 4, 1, 1), (2, 3, 4, 4, 6), (1, 1, 1, 2, 11), (5, 8, 2, 8, 8)]


def problem(shape, dtype=torch.float64):
    b, c, o, h, w = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, c, h, w), (o, c, 3, 3), (o,), (b, o, h, w))
    *inputs, g = (torch.randn(size, generator=generator, dtype=dtype) for size in sizes)
    return [z.requires_grad_() for z in inputs], g


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, layout):
    (x, weight, bias), g = problem(shape)
    inputs = [x.detach().contiguous(memory_format=layout).requires_grad_(), weight, bias]
    found, wanted = convolve(*inputs), F.conv2d(*inputs, padding=1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    pairs = zip(
        torch.autograd.grad(found, inputs, g), torch.autograd.grad(wanted, inputs, g), strict=True
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in pairs)


@pytest.mark.parametrize("numbers", [1, 36 * 6 * 5, 1 << 20])
def test_how_many_images_are_worked_on_together_changes_nothing(numbers, monkeypatch):
    monkeypatch.setattr(winograd, "PART", numbers)
    inputs, g = problem(SHAPES[0])
    found, wanted = convolve(*inputs), F.conv2d(*inputs, padding=1)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    pairs = zip(
        torch.autograd.grad(found, inputs, g), torch.autograd.grad(wanted, inputs, g), strict=True
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_compilers_are_told_of_it_is_true(shape):
    (x, weight, bias), g = problem(shape)
    torch.library.opcheck(winograd._forward, (x, weight, bias))
    torch.library.opcheck(winograd._forward, (x, weight, None))
    torch.library.opcheck(
        winograd._backward,
        (g, x.detach(), weight.detach()),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_a_traced_layer_computes_and_learns_as_before(monkeypatch):
    monkeypatch.setattr(winograd, "NARROW", True)
    layer = Conv3x3(64, 64)
    x = torch.randn(24, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.code))
        return graph.forward

    traced = torch.compile(layer, backend=backend)
    slopes = [torch.autograd.grad(f(x).sum(), layer.weight)[0] for f in (layer, traced)]
    assert torch.equal(*slopes)
    assert "scoresde.convolve" in graphs[0]


def test_operations_are_counted_as_those_of_the_definition():
    inputs, g = problem(SHAPES[0])
    counts = []
    for f in (lambda: F.conv2d(*inputs, padding=1), lambda: convolve(*inputs)):
        with FlopCounterMode(display=False) as counter:
            f().backward(g)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_single_precision_loses_a_digit():
    (x, weight, bias), _ = problem((4, 64, 64, 14, 14), torch.float32)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = (convolve(x, weight, bias).double() - exact).abs().max() / exact.abs().max()
    assert error < 3e-5


def test_only_what_is_wanted_is_computed():
    (x, weight, _), g = problem((2, 3, 4, 5, 6))
    frozen = x.detach()
    assert torch.autograd.grad(convolve(frozen, weight), weight, g)[0].shape == weight.shape
    assert torch.autograd.grad(convolve(x, weight.detach()), x, g)[0].shape == x.shape


def test_a_layer_has_the_weights_of_any_convolution_and_gives_the_same_in_training():
    layer, plain = Conv3x3(64, 64), torch.nn.Conv2d(64, 64, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(24, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.eval()(x), plain(x))
    assert torch.allclose(layer.train()(x), plain(x), atol=1e-4)


def test_forward_derivatives_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(winograd, "NARROW", True)
    layer = Conv3x3(64, 64)
    x = torch.randn(24, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, x))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert torch.allclose(tangent, layer(x) - layer.bias[:, None, None], atol=1e-4)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_have_forward_derivatives(name, monkeypatch):
    monkeypatch.setattr(winograd, "NARROW", True)
    layer = Conv3x3(64, 64)
    x = torch.randn(24, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.autograd.forward_ad.dual_level():
        p = getattr(layer, name).detach()
        changed = {name: torch.autograd.forward_ad.make_dual(p, p)}
        dual = torch.func.functional_call(layer, changed, (x,))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    without = torch.func.functional_call(layer, {name: torch.zeros_like(p)}, (x,))
    assert torch.allclose(tangent, layer(x) - without, atol=1e-4)


def test_a_second_derivative_is_an_error():
    (x, weight, _), g = problem((2, 3, 4, 5, 6))
    with pytest.raises(RuntimeError, match="eval"):
        torch.autograd.grad(convolve(x, weight).square(), x, g, create_graph=True)


def test_it_is_transformed_by_torch_func_and_takes_one_image():
    layer = Conv3x3(64, 64)
    x = torch.randn(2, 12, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    found = torch.func.vmap(layer)(x)
    assert torch.allclose(found.flatten(0, 1), layer.eval()(x.flatten(0, 1)), atol=1e-4)
    large = torch.randn(64, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.train()(large), layer.eval()(large))


def test_a_compiler_takes_any_number_of_images(monkeypatch):
    monkeypatch.setattr(winograd, "NARROW", True)
    layers = torch.nn.Sequential(Conv3x3(64, 64), GroupNorm(64))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(layers, backend=backend)
    for number in (24, 25, 26, 27):
        x = torch.randn(number, 64, 14, 14, generator=torch.Generator().manual_seed(0))
        assert torch.equal(traced(x), layers(x))
    assert len(graphs) == 2  # for 24, and for any other
