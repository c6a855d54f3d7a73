"""Against the networks of diffusers, with the same weights.

Its U-Net with residual resampling and adaptive norms is ADM; its block with filters and a scaled
output is that of NCSN++ (whose picture beside the blocks it sums otherwise).
"""

import math
import warnings

import pytest
import torch

from scoresde.nn import adm
from scoresde.nn.resample import fir
from scoresde.nn.residual import Residual, Style, half_power, xavier

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def diffusers():
    """The package; without it these tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("diffusers", reason="needs diffusers: the extra 'parity'")


def copied(ours, theirs):
    """Give a layer the weights of another, drawn anew so that none is zero."""
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.nn.init.normal_(other, std=0.5 / math.sqrt(other[0].numel()))
        mine.data.copy_(other.data.reshape(mine.shape))


def copy_residual(ours, theirs):
    linear = ours.conditioned.modulation if hasattr(ours.conditioned, "modulation") else None
    copied(ours.norm, theirs.norm1)
    copied(ours.inner, theirs.conv1)
    copied(ours.conditioned.shift if linear is None else linear, theirs.time_emb_proj)
    copied(ours.conditioned.norm, theirs.norm2)
    copied(ours.outer, theirs.conv2)
    if theirs.conv_shortcut is not None:
        copied(ours.skip, theirs.conv_shortcut)


def copy_attention(ours, theirs):
    copied(ours.norm, theirs.group_norm)
    parts = zip(ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True)
    for (weight, bias), layer in zip(parts, (theirs.to_q, theirs.to_k, theirs.to_v), strict=True):
        torch.nn.init.normal_(layer.weight, std=1 / math.sqrt(len(weight)))
        weight.data.copy_(layer.weight.data)
        bias.data.copy_(layer.bias.data)
    copied(ours.project, theirs.to_out[0])


def copy_cells(cells, block):
    for cell, residual in zip(cells, block.resnets, strict=True):
        copy_residual(cell.residual, residual)
    for cell, attention in zip(cells, getattr(block, "attentions", ()), strict=False):
        copy_attention(cell.attention, attention)


def copy_condition(ours, theirs):
    width = ours.hidden.in_features
    exponents = torch.arange(width // 2) / (width // 2)
    ours.features.frequencies.copy_(10_000.0**-exponents)  # those of DDPM
    copied(ours.hidden, theirs.time_embedding.linear_1)
    copied(ours.out, theirs.time_embedding.linear_2)
    ours.labels.weight.data[:-1] = theirs.class_embedding.weight.data


def pair(diffusers):
    theirs = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 128, 256),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=False,
        num_class_embeds=3,
    )
    multipliers = (1, 1, 2)
    ours = adm(3, width=128, multipliers=multipliers, blocks=2, attention=(1, 2), classes=3)
    return ours.eval(), theirs.eval()


@torch.no_grad()
def test_adm_is_the_network_of_diffusers_with_the_same_weights(diffusers):
    torch.manual_seed(0)
    ours, theirs = pair(diffusers)
    timesteps = torch.tensor([3.0, 40.0])
    copy_condition(ours.condition, theirs)
    copied(ours.stem, theirs.conv_in)
    for cells, block in zip(ours.encoder, theirs.down_blocks, strict=True):
        copy_cells(cells, block)
    for descent, block in zip(ours.descents, theirs.down_blocks[:-1], strict=True):
        copy_residual(descent.block, block.downsamplers[0])
    copy_cells(ours.middle, theirs.mid_block)
    for cells, block in zip(ours.decoder, theirs.up_blocks, strict=True):
        copy_cells(cells, block)
    for ascent, block in zip(ours.ascents, theirs.up_blocks[:-1], strict=True):
        copy_residual(ascent, block.upsamplers[0])
    copied(ours.norm, theirs.conv_norm_out)
    copied(ours.head, theirs.conv_out)
    x, label = torch.randn(2, 3, 8, 12), torch.tensor([2, 0])
    expected = theirs(x, timesteps, class_labels=label).sample
    assert expected.std() > 1e-3
    assert torch.allclose(ours(x, timesteps, label), expected, rtol=0, atol=1e-4 * expected.std())


@torch.no_grad()
@pytest.mark.parametrize("way", ["down", "up", None])
def test_a_block_of_ncsnpp_is_that_of_diffusers_with_the_same_weights(diffusers, way):
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    into, out = (16, 16) if way else (16, 24)
    theirs = ResnetBlock2D(
        in_channels=into,
        out_channels=out,
        temb_channels=6,
        groups=into // 4,
        groups_out=out // 4,
        kernel="fir",
        output_scale_factor=math.sqrt(2),
        use_in_shortcut=True,
        down=way == "down",
        up=way == "up",
    )
    resampling = fir((1, 3, 3, 1))
    style = Style(6, resampling, merge=half_power, project=True, start=xavier, eps=1e-6)
    change = [getattr(resampling, way)] if way else []
    ours = Residual(into, out, style, *change)
    copy_residual(ours, theirs)
    x, condition = torch.randn(2, into, 8, 6), torch.randn(2, 6)
    found = ours(x, torch.nn.functional.silu(condition))
    assert torch.allclose(found, theirs(x, condition), atol=1e-5)
