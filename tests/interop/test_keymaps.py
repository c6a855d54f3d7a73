"""Maps between our networks and the modules of diffusers, as far as they need no diffusers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scoresde.interop import keymaps
from scoresde.interop.keymaps import NoTwin
from scoresde.latent import KLAutoencoder, VQAutoencoder
from scoresde.nn import DiT, UNet, adm, ddpmpp, ncsnpp

ADM = {"width": 128, "multipliers": (1,), "blocks": 1, "attention": (0,), "indexed": True}
DIT = {"width": 16, "depth": 2, "heads": 2, "indexed": True}
SIZE = (8, 8)


def drawn(module, dtype=torch.float64):
    """A module whose weights are all different from 0 and from each other."""
    generator = torch.Generator().manual_seed(0)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return module.to(dtype).eval()


def vq(**more):
    codec = drawn(VQAutoencoder(3, 2, codes=5, patch=1, widths=(8, 8), **more))
    codec.latents_std.fill_(1.5)
    return codec


TWINS = {
    "adm": lambda: keymaps.network(drawn(adm(3, classes=4, **ADM)), SIZE),
    "dit": lambda: keymaps.network(drawn(DiT(3, classes=4, late=True, **DIT)), SIZE),
    "kl": lambda: keymaps.autoencoder(KLAutoencoder(3, 2, patch=1, widths=(8, 16)), SIZE),
    "vq": lambda: keymaps.autoencoder(vq(), SIZE),
}
NETS = {
    "adm": lambda: adm(3, classes=4, **ADM),
    "dit": lambda: DiT(3, classes=4, late=True, **DIT),
    "kl": lambda: KLAutoencoder(3, 2, patch=1, widths=(8, 16)),
    "vq": vq,
}


@pytest.mark.parametrize("kind", TWINS)
def test_every_weight_has_a_place_and_comes_back(kind):
    twin, ours = TWINS[kind](), drawn(NETS[kind]()).state_dict()
    back = twin.back(twin.forth(ours))
    left_out = {k for k in ours if k.startswith(twin.unused) and k not in back}
    assert back.keys() == ours.keys() - left_out
    assert all(torch.equal(back[name], ours[name]) for name in back)


@pytest.mark.parametrize("kind", TWINS)
def test_a_stray_or_a_missing_weight_is_named(kind):
    twin, ours = TWINS[kind](), drawn(NETS[kind]()).state_dict()
    theirs = twin.forth(ours)
    with pytest.raises(NoTwin, match="more"):
        twin.forth(ours | {"more.weight": torch.zeros(1)})
    with pytest.raises(NoTwin, match="more"):
        twin.back(theirs | {"more.weight": torch.zeros(1)})
    name = min(theirs)
    theirs.pop(name)
    with pytest.raises(NoTwin, match=name):
        twin.back(theirs)


def test_blocks_that_differ_where_ours_has_one_layer_are_refused():
    twin, ours = TWINS["dit"](), drawn(NETS["dit"]()).state_dict()
    theirs = twin.forth(ours)
    theirs["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    with pytest.raises(NoTwin, match="differs"):
        twin.back(theirs)


REFUSED = {
    "sums": (lambda: UNet(3, indexed=True), "UNet has no twin"),
    "halves": (lambda: ddpmpp(3, width=32, indexed=True), "sqrt 2"),
    "pictures": (lambda: ncsnpp(3, width=32, indexed=True), "sqrt 2"),
    "logarithm": (lambda: adm(3, **ADM | {"indexed": False}), "noise: index"),
    "groups": (lambda: adm(3, **ADM | {"width": 64}), "32 divides"),
    "first": (lambda: adm(3, **ADM | {"multipliers": (2,)}), "multipliers from 1"),
    "features": (lambda: adm(3, embedding=64, **ADM), "embedding null"),
    "told": (lambda: adm(3, embed=4, **ADM), "more than a class"),
    "beside": (lambda: adm(3, concat=1, **ADM), "more than a class"),
    "levels": (lambda: adm(3, outputs=48, **ADM), "head: value"),
    "early": (lambda: DiT(3, classes=2, **DIT), "late: true"),
    "short": (lambda: DiT(3, embedding=64, **DIT), "embedding: 256"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_without_a_twin_is_told_what_to_train(case):
    make, words = REFUSED[case]
    with torch.device("meta"), pytest.raises(NoTwin, match=words):
        keymaps.network(make(), SIZE)


@pytest.mark.parametrize(
    ("make", "size", "words"),
    [
        (lambda: adm(3, **ADM | {"multipliers": (1, 1)}), (8, 7), "sizes that 2 divides"),
        (lambda: DiT(3, **DIT), (8, 6), "square"),
        (lambda: DiT(3, **DIT), (7, 7), "sizes that 2 divides"),
    ],
)
def test_a_size_that_diffusers_cannot_halve_is_refused(make, size, words):
    with torch.device("meta"), pytest.raises(NoTwin, match=words):
        keymaps.network(make(), size)


def test_an_autoencoder_that_stacks_pixels_is_refused():
    with pytest.raises(NoTwin, match="patch: 1"):
        keymaps.autoencoder(KLAutoencoder(3), SIZE)


def conv(tensors, name, x):
    return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_standardisation_of_latents_goes_into_the_weights(kind):
    codec, twin = drawn(NETS[kind]()), TWINS[kind]()
    if kind == "vq":
        codec.latents_std.fill_(1.5)
    tensors, factor = keymaps.folded(codec, twin.forth(codec.state_dict()))
    w = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    h = torch.randn(2, codec.moments.in_channels, 3, 3, dtype=torch.float64)
    found, z = conv(tensors, "quant_conv", h)[:, :2], codec.moments(h)[:, :2]
    torch.testing.assert_close(found * factor, codec.standardised(z), rtol=0, atol=1e-12)
    entered = conv(tensors, "post_quant_conv", w / factor)
    expected = codec.entry(codec.unstandardised(w))
    torch.testing.assert_close(entered, expected, rtol=0, atol=1e-12)
    if kind == "kl":
        spread = conv(tensors, "quant_conv", h)[:, 2:] - codec.moments(h)[:, 2:]
        expected = -2 * codec.latents_std.log()[:, None, None].expand_as(spread[0])
        torch.testing.assert_close(spread, expected.expand_as(spread), rtol=0, atol=1e-12)
    else:
        codes = tensors["quantize.embedding.weight"] * factor
        expected = codec.standardised(codec.codebook.codes)
        torch.testing.assert_close(codes, expected, rtol=0, atol=1e-12)


def test_codes_of_latents_with_several_deviations_have_no_twin():
    codec = vq()
    codec.latents_std[0] = 2
    twin = keymaps.autoencoder(codec, SIZE)
    with pytest.raises(NoTwin, match="isotropic: true"):
        keymaps.folded(codec, twin.forth(codec.state_dict()))
