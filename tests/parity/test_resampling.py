"""Against the filters of diffusers, which are those of StyleGAN2 and NCSN++."""

import warnings

import pytest
import torch

from scoresde.nn.resample import Down, DownConv, Up

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def models():
    """Their modules; without the package these tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("diffusers", reason="needs diffusers: the extra 'parity'")
        from diffusers.models import downsampling, upsampling
    return downsampling, upsampling


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_halving_and_doubling_agree_up_to_the_edges(models, taps):
    down, up = models
    x = image(2, 3, 8, 6)
    assert torch.allclose(Down(taps)(x), down.downsample_2d(x, kernel=taps), atol=1e-6)
    assert torch.allclose(Up(taps)(x), up.upsample_2d(x, kernel=taps), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 6), (2, 4)])
def test_the_convolution_on_filtered_images_agrees(models, size):
    theirs = models[0].FirDownsample2D(3, out_channels=5, use_conv=True)
    ours = DownConv(3, 5, (1, 3, 3, 1), lambda conv: conv)
    ours.conv.load_state_dict(theirs.Conv2d_0.state_dict())
    x = image(2, 3, *size)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
