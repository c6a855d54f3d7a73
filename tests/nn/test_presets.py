"""The published networks: as large as their papers say, for images of every size."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import silu

from scoresde import VP, ScoreModel, data, parameterization, registry
from scoresde.config import config_from
from scoresde.nn import ConcatUNet, LateConditioning, LevelMean, adm, ddpmpp, ncsnpp
from scoresde.training.losses import dsm_loss

PRESETS = [ddpmpp, ncsnpp, adm]
SIZES = [(1, 1), (1, 7), (2, 3), (5, 5), (9, 7), (13, 4), (28, 28), (33, 17)]
each = pytest.mark.parametrize("make", PRESETS)


def tiny(make, channels: int = 2, **options) -> ConcatUNet:
    torch.manual_seed(0)
    small = {"width": 8, "multipliers": (1, 2, 3), "blocks": 1, "attention": (2,)}
    return make(channels, **{**small, "head_channels": 8, **options})


def awake(net: ConcatUNet) -> ConcatUNet:
    """In float64 and eval mode, every parameter moved so that no branch is zero."""
    net = net.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def image(height: int, width: int, channels: int = 2, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64)


def millions(make, **options) -> float:
    """Parameters of a network for colour pictures, which are counted without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make(3, **options).parameters()) / 1e6


# As published ---------------------------------------------------------------------------------

CIFAR = {"multipliers": (2, 2, 2), "classes": 10, "augments": 9}
IMAGENET = {"classes": 1000, "outputs": 6}  # three of them for a variance
DEEP = {"width": 256, "blocks": 2, "outputs": 6}
EDM = [
    pytest.param(partial(ddpmpp, **CIFAR), 55.7, id="ddpmpp-cifar"),
    pytest.param(partial(ddpmpp, attention=(2,), augments=9), 61.8, id="ddpmpp-ffhq"),
    pytest.param(partial(adm, classes=1000, augments=9), 295.9, id="adm-imagenet"),
]
OF_128 = {"multipliers": (1, 1, 2, 3, 4), "attention": (2, 3, 4)}
OF_256 = {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (3, 4, 5)}
GUIDED = [
    pytest.param(partial(adm, **IMAGENET), 296, id="64"),
    pytest.param(partial(adm, classes=1000, **DEEP, **OF_128), 422, id="128"),
    pytest.param(partial(adm, classes=1000, **DEEP, **OF_256), 554, id="256"),
]


@pytest.mark.parametrize(("make", "published"), EDM)
def test_parameters_are_those_of_edm_to_a_tenth_of_a_million(make, published):
    """Table 7 of arXiv 2206.00364."""
    assert round(millions(make), 1) == published


@pytest.mark.parametrize(("make", "published"), GUIDED)
def test_parameters_are_those_of_adm_to_a_million(make, published):
    """Table 11 of arXiv 2105.05233."""
    assert round(millions(make)) == published


def test_ncsnpp_is_ddpmpp_and_a_picture_and_more_frequencies():
    pictures = sum(9 * source * 256 + 256 for source in (3, 256))
    frequencies = 128 * 512
    assert millions(ncsnpp, multipliers=(2, 2, 2)) == pytest.approx(
        millions(ddpmpp, multipliers=(2, 2, 2)) + (pictures + frequencies) / 1e6, abs=1e-9
    )


def test_a_class_joins_adm_behind_the_layers_of_the_noise_level():
    condition = LateConditioning(8, 16, classes=3).double()
    noise, label = torch.linspace(-1, 1, 3, dtype=torch.float64), torch.arange(3)
    rows = condition.labels.weight
    vector = condition.out(silu(condition.hidden(condition.features(noise))))
    assert torch.allclose(condition(noise), silu(vector + rows[-1]))
    assert torch.allclose(condition(noise, label), silu(vector + rows[:3]))


# Any image ------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("size", SIZES)
def test_every_size_keeps_its_shape(make, size):
    x = image(*size)
    out = awake(tiny(make))(x, torch.zeros(2, dtype=x.dtype))
    assert out.shape == x.shape
    assert out.isfinite().all()


@each
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("multipliers", [(1,), (2, 1), (1, 3, 2, 2)])
def test_every_number_of_channels_blocks_and_levels(make, channels, multipliers):
    x = image(6, 5, channels)
    levels = range(len(multipliers))
    for blocks in (1, 3):
        net = tiny(make, channels, multipliers=multipliers, attention=levels, blocks=blocks)
        assert awake(net)(x, torch.zeros(2, dtype=x.dtype)).shape == x.shape


@each
def test_any_width_has_features_of_the_noise_level(make):
    net = awake(tiny(make, width=5, head_channels=None))
    x, noise = image(4, 4), torch.zeros(2, dtype=torch.float64)
    assert not torch.allclose(net(x, noise), net(x, noise + 0.5))


@each
def test_an_augmentation_changes_the_output_and_none_is_zeros(make):
    net = awake(tiny(make, augments=3))
    x, noise = image(4, 4), torch.zeros(2, dtype=torch.float64)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(net(x, noise), net(x, noise, augment=zeros))
    assert not torch.allclose(net(x, noise), net(x, noise, augment=zeros + 1))
    with pytest.raises(ValueError, match="augments"):
        awake(tiny(make))(x, noise, augment=zeros)


@each
def test_every_output_pixel_sees_every_input_pixel(make):
    net = awake(tiny(make))
    for module in list(net.modules()):  # group norms mix all pixels by themselves
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    x = image(7, 9).requires_grad_()
    corner = net(x, torch.zeros(2, dtype=x.dtype))[:, 0, -1, -1].sum()
    (gradient,) = torch.autograd.grad(corner, x)
    assert (gradient != 0).all()


@pytest.mark.parametrize(("make", "sees"), [(ddpmpp, False), (ncsnpp, True), (adm, False)])
def test_ncsnpp_alone_sees_the_picture_beside_its_blocks(make, sees):
    """Below a stem that lets nothing through."""
    net = awake(tiny(make))
    torch.nn.init.zeros_(net.stem.weight)
    noise = torch.zeros(2, dtype=torch.float64)
    assert torch.allclose(net(image(8, 8), noise), net(image(8, 8).flip(3), noise)) != sees


# Training -------------------------------------------------------------------------------------


@each
def test_computing_again_gives_the_same_gradient_with_dropout(make):
    x, noise = image(6, 5), torch.zeros(2, dtype=torch.float64)

    def gradients(recompute):
        net = awake(tiny(make, recompute=recompute, dropout=0.3)).train()
        torch.manual_seed(2)
        net(x, noise).square().mean().backward()
        return [p.grad for p in net.parameters()]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(ours, theirs)


@each
def test_a_few_dozen_steps_on_a_handful_of_digits_learn_them(make):
    digits = data.digits()
    x0 = digits.scaling.encode(digits.train.x[:4])
    net = tiny(make, 1, multipliers=(1, 2), attention=(1,), dropout=0.0)
    model = ScoreModel(net, VP(), parameterization.eps)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    t = torch.linspace(0.2, 0.9, 4)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(40):
        loss = dsm_loss(model, x0, t, eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(eps.square().mean().item(), rel=1e-6)
    assert losses[-1] < 0.2 * losses[0]


@each
def test_with_logits_of_levels_it_is_the_mean_of_the_levels(make):
    middles = data.digits().scaling.encode(torch.arange(17), dtype=torch.float64)
    net = LevelMean(awake(tiny(make, 1, outputs=17)), middles)
    x0 = middles[torch.randint(0, 17, (2, 1, 5, 4))]
    # At a noise level of e^-10 of the signal, a pixel tells its own level.
    assert torch.allclose(net(x0, torch.full((2,), -2.5, dtype=torch.float64)), x0, atol=1e-4)


# Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 0}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"multipliers": ()}, "multiplier"),
        ({"attention": (3,)}, "attention=3 is no resolution"),
        ({"head_channels": 5}, "head_channels=5"),
        ({"head_channels": 0}, "head_channels=0"),
        ({"embedding": 7}, "even"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
@each
def test_options_that_do_not_fit_are_errors(make, wrong, said):
    with pytest.raises(ValueError, match=said):
        tiny(make, **wrong)


@each
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8), (2, 16)])
def test_another_kind_of_input_is_an_error(make, shape):
    with pytest.raises(ValueError, match=r"takes \(B, 2, H, W\)"):
        awake(tiny(make))(torch.zeros(shape, dtype=torch.float64), torch.zeros(2))


# The page about them --------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
ROWS = re.findall(r"^\| `((?:ddpmpp|ncsnpp|adm)\(.*\))` \| ([\d.]+) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("call", "counted"), ROWS)
def test_the_page_counts_right(call, counted):
    with torch.device("meta"):
        net = eval(call, {"ddpmpp": ddpmpp, "ncsnpp": ncsnpp, "adm": adm})
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}" == counted


def test_the_page_names_every_network_and_its_settings_are_valid():
    assert len(ROWS) >= 8
    assert not [kind for kind in registry.NETWORKS if f"`{kind}`" not in PAGE]
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        config_from(yaml.safe_load(block), "docs/networks.md")
