"""Laws that every network obeys, whatever its architecture."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from scoresde.nn import EDM2, MLP, ConcatUNet, DiT, UNet, adm, ddpmpp, ncsnpp

CLASSES = 3


def mlp(**options) -> MLP:
    torch.manual_seed(0)
    return MLP(18, width=16, depth=2, embedding=8, **options)


def unet(**options) -> UNet:
    torch.manual_seed(0)
    return UNet(2, width=8, multipliers=(1, 2), blocks=1, heads=2, embedding=8, **options)


def edm2(**options) -> EDM2:
    torch.manual_seed(0)
    small = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
    return EDM2(2, head_channels=8, embedding=8, **small, **options)


def dit(**options) -> DiT:
    torch.manual_seed(0)
    return DiT(2, width=16, depth=2, heads=2, embedding=8, **options)


def preset(make, **options) -> ConcatUNet:
    torch.manual_seed(0)
    small = {"width": 8, "multipliers": (1, 2), "blocks": 1, "head_channels": 8, "embedding": 8}
    return make(2, attention=(1,), **small, **options)


NETWORKS = [
    pytest.param(edm2, id="edm2"),
    pytest.param(lambda **o: edm2(fourier=False, **o), id="edm2-geometric"),
    pytest.param(dit, id="dit"),
    pytest.param(lambda **o: dit(fourier=True, **o), id="dit-fourier"),
    pytest.param(mlp, id="mlp"),
    pytest.param(unet, id="unet"),
    *(pytest.param(partial(preset, make), id=make.__name__) for make in (ddpmpp, ncsnpp, adm)),
    pytest.param(lambda **o: mlp(fourier=True, **o), id="mlp-fourier"),
    pytest.param(lambda **o: unet(fourier=True, **o), id="unet-fourier"),
]
each = pytest.mark.parametrize("build", NETWORKS)
quiet_jvp = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def awake(net: nn.Module, seed: int = 1) -> nn.Module:
    """The network in float64 and eval mode, every parameter moved so that no branch is zero."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def batch(n: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 3, 3, generator=generator, dtype=torch.float64)
    noise = 6 * torch.rand(n, generator=generator, dtype=torch.float64) - 3
    return x, noise, torch.arange(n) % CLASSES


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_is_zero_at_the_start_and_has_the_shape_and_dtype_of_the_input(build, dtype):
    x, noise, label = batch()
    out = build(classes=CLASSES).to(dtype)(x.to(dtype), noise.to(dtype), label)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert torch.count_nonzero(out) == 0


@each
def test_gradient_reaches_every_parameter(build):
    x, noise, label = batch()
    net = awake(build(classes=CLASSES))
    (net(x, noise, label).square().mean() + net(x, noise).square().mean()).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()]
    assert not dead


@each
def test_a_step_from_the_zero_start_lowers_the_loss(build):
    x, noise, _ = batch()
    net = build(dropout=0.0).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = (net(x, noise) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


@each
def test_a_sample_does_not_depend_on_its_batch(build):
    x, noise, label = batch()
    net = awake(build(classes=CLASSES))
    together = net(x, noise, label)
    alone = torch.cat(
        [net(x[i : i + 1], noise[i : i + 1], label[i : i + 1]) for i in range(len(x))]
    )
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


@each
def test_label_and_noise_level_change_the_output_and_the_null_label_is_no_label(build):
    x, noise, label = batch()
    net = awake(build(classes=CLASSES))
    out = net(x, noise)
    null = torch.full_like(label, CLASSES)
    assert torch.allclose(net(x, noise, null), out, rtol=0, atol=1e-13)
    per_sample = [net(x, noise, label), net(x, noise, (label + 1) % CLASSES), net(x, noise + 0.1)]
    for i, left in enumerate([out, *per_sample]):
        for right in per_sample[i:]:
            assert ((left - right).flatten(1).abs().amax(1) > 1e-4).all()


@each
def test_dropout_acts_in_training_only(build):
    x, noise, _ = batch()
    net = awake(build(dropout=0.5))
    assert torch.equal(net(x, noise), net(x, noise))
    net.train()
    assert not torch.allclose(net(x, noise), net(x, noise))


@each
def test_construction_repeats_and_state_dict_round_trips(build):
    x, noise, _ = batch()
    net, again = awake(build()), awake(build())
    assert torch.equal(net(x, noise), again(x, noise))
    other = awake(copy.deepcopy(net), seed=2)
    assert not torch.allclose(other(x, noise), net(x, noise))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, noise), net(x, noise))
    assert all(value.is_contiguous() for value in net.state_dict().values())


@each
@quiet_jvp
def test_forward_mode_reverse_mode_and_finite_differences_agree(build):
    x, noise, _ = batch()
    net = awake(build())
    v = batch(seed=5)[0]

    def f(y: Tensor) -> Tensor:
        return net(y, noise)

    _, forward = torch.func.jvp(f, (x,), (v,))
    _, pull = torch.func.vjp(f, x)
    central = (f(x + 1e-5 * v) - f(x - 1e-5 * v)) / 2e-5
    assert torch.allclose(forward, central, rtol=0, atol=1e-7)
    assert torch.allclose((forward * v).sum(), (v * pull(v)[0]).sum(), rtol=1e-10, atol=1e-10)


@each
@quiet_jvp
def test_batched_forward_mode_gives_the_full_jacobian(build):
    x, noise, _ = batch(2)
    net = awake(build())
    basis = torch.eye(18, dtype=x.dtype).reshape(18, 1, 2, 3, 3).expand(18, 2, 2, 3, 3)
    rows = torch.func.vmap(lambda v: torch.func.jvp(lambda y: net(y, noise), (x,), (v,))[1])(basis)
    summed = torch.autograd.functional.jacobian(lambda y: net(y, noise).sum(0), x)
    expected = summed.reshape(18, 2, 18).permute(2, 1, 0)  # d out / d x as (input, sample, output)
    assert torch.allclose(rows.flatten(2), expected, rtol=0, atol=1e-11)


@each
def test_the_graph_is_captured_whole(build):
    x, noise, label = batch()
    net = awake(build(classes=CLASSES))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, noise, label), net(x, noise, label), rtol=0, atol=1e-12)


@each
def test_a_label_without_classes_is_an_error(build):
    x, noise, label = batch()
    with pytest.raises(ValueError, match="without classes"):
        build().double()(x, noise, label)


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"dropout": 1.5}])
@each
def test_options_that_cannot_be_met_are_errors(build, wrong):
    with pytest.raises(ValueError, match=r"classes|dropout"):
        build(**wrong)
