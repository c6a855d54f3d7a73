"""Likelihoods of a folder of diffusers: a sum of DDPM's own equations, and an exact answer."""

import importlib
import math

import pytest
import torch

import scoresde as ss
from scoresde.likelihood.discrete import discrete_elbo
from tests.parity.folders import UNET
from tests.test_readme import ROOT

d = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity
F64 = torch.float64
NUMBERS = 64


def folder(path, **scheduler):
    """A DDPM of one channel with random weights."""
    torch.manual_seed(0)
    unet = d.UNet2DModel(**UNET, in_channels=1, out_channels=1)
    if scheduler:
        unet.conv_out.weight.data.zero_()
        unet.conv_out.bias.data.zero_()
    made = d.DDPMScheduler(num_train_timesteps=100, beta_end=0.2, clip_sample=False, **scheduler)
    d.DDPMPipeline(unet, made).save_pretrained(path)
    return path


def pictures(n):
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1))


def of_equal_size(seed):
    """Noise with |eps|^2 = D, where a control variate of ours is zero."""
    draws = torch.Generator().manual_seed(seed)

    def noise(x, *times):
        eps = torch.randn(x.shape, generator=draws, dtype=F64)
        return eps * (NUMBERS / eps.square().sum((1, 2, 3), keepdim=True)).sqrt()

    return noise


def test_the_chain_is_the_sum_of_the_equations_of_ddpm_with_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    path, k = folder(tmp_path), pictures(3)
    summed = importlib.import_module("interop_likelihood").summed(
        path, k, 4, of_equal_size(2), F64
    )
    model = ss.load(path, dtype=F64)
    x, ts = k.double() / 127.5 - 1, torch.arange(100, 0, -1, dtype=F64) / 100
    bound = discrete_elbo(
        model.denoiser(), x, ts, levels=model.data.scaling, decodes=4, noise=of_equal_size(2)
    )
    torch.testing.assert_close(-bound.log_prob, summed, rtol=1e-6, atol=0)


def test_the_bounds_are_below_the_flow_which_is_exact(tmp_path):
    """A network of v that returns 0 is the exact model of a standard normal law.

    There the bound in continuous time is the flow, in the mean over draws, and the chain loses by
    its steps.
    """
    model, k = (
        ss.load(folder(tmp_path, prediction_type="v_prediction")),
        pictures(12).clamp(8, 247).byte(),
    )
    flow, bound, chain = (
        ss.score(model, k, check=0, **settings).log_prob
        for settings in (
            {"method": "path", "dequantisation": "decoder"},
            {"method": "elbo", "dequantisation": "decoder", "times": 64},
            {"method": "discrete", "steps": 100, "times": 100},
        )
    )
    x = k.double() / 127.5 - 1
    exact = (torch.special.ndtr(x + 1 / 255) - torch.special.ndtr(x - 1 / 255)).log()
    exact = exact.sum((1, 2, 3))
    bit = NUMBERS * math.log(2)
    assert (flow - exact).abs().max() < 0.01 * bit

    def above(one, other):
        gaps = one - other
        return float(gaps.mean()), float(gaps.std()) / len(gaps) ** 0.5

    gap, error = above(flow, bound)
    assert abs(gap) < 4 * error < 0.1 * bit
    gap, error = above(bound, chain)
    assert gap > 4 * error
    gap, error = above(exact, bound)
    assert gap > -4 * error
