"""Discrete data: exact entropies, dequantisations, and the variational bound."""

import math

import pytest
import torch

from scoresde import EDM, VE, VP, SubVP
from scoresde.data import Scaling
from scoresde.likelihood import elbo, log_likelihood
from scoresde.likelihood.dequantise import (
    Decoder,
    TruncatedNormal,
    Uniform,
    importance_weighted,
    tight_time,
)
from scoresde.samplers import per_sample_noise
from scoresde.testing import Gaussian, mostly_black

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(sigma_min=1e-4), EDM()]
FOUR = pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)


def drawn(pixels, n, dim):
    """Levels, always the same."""
    return pixels.sample(n, dim, torch.Generator().manual_seed(0))


def exact(pixels, k):
    """Bits of each sample (B,)."""
    return -pixels.log_prob(k) / math.log(2)


def bits(pixels, sde, dequantisation, k, t0=None):
    """Bits per pixel of each sample, (B,)."""
    u = torch.rand(k.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    t0 = sde.t_min if t0 is None else t0
    draw = dequantisation.draw(k, u, pixels.scale, sde, t0)
    tolerance = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4}
    found = log_likelihood(pixels.denoiser(sde), draw.x, t0=t0, **tolerance)
    return -(found.log_prob + draw.weight) / k.shape[1] / math.log(2)


@FOUR
@pytest.mark.parametrize("dequantisation", [TruncatedNormal(), Decoder()], ids=repr)
def test_within_a_hundredth_of_a_bit_of_the_entropy(sde, dequantisation):
    """Against the exact bits of the very samples, so that their scatter does not count."""
    pixels = mostly_black()
    k = drawn(pixels, 400, 3)
    t0 = tight_time(sde, pixels.scale)
    gap = bits(pixels, sde, dequantisation, k, t0=t0) - exact(pixels, k) / 3
    assert abs(gap.mean()) < 0.01
    assert gap.mean() > -4 * gap.std() / math.sqrt(len(k)) - 1e-3  # a bound, on average


def test_uniform_dequantisation_loses_what_the_others_do_not():
    """A perfect model of the levels gives half of an empty place around each of them."""
    pixels = mostly_black()
    k = drawn(pixels, 200, 3)
    for sde in (VP(t_min=1e-3), VE()):
        gap = bits(pixels, sde, Uniform(), k) - exact(pixels, k) / 3
        assert gap.mean() > 0.1


def test_more_draws_never_loosen_the_bound_on_average():
    pixels, sde = mostly_black(), VP()
    k = drawn(pixels, 100, 2)
    values = -bits(pixels, sde, Uniform(), k.repeat(8, 1)).reshape(8, 100) * 2 * math.log(2)
    one, eight = values.mean(), importance_weighted(values).mean()
    assert eight >= one
    exact = pixels.log_prob(k).mean()
    assert abs(eight - exact) < abs(one - exact)


@pytest.mark.parametrize(
    ("levels", "t_min"), [(2, 1e-3), (17, 1e-3), (256, 1e-3), (4096, 1e-3), (65536, 1e-5)]
)
def test_a_decoder_is_a_law_over_the_levels(levels, t_min):
    scaling, sde = Scaling(levels, -0.5, 1.5), VP(t_min=t_min)
    x = torch.tensor([[-0.3, 0.41]], dtype=F64)
    near = torch.round((x - scaling.low) / scaling.step - 0.5).long().clamp(0, levels - 1)
    wide = math.ceil(12 * float(sde.sigma(torch.tensor(t_min))) / scaling.step) + 2
    total = torch.zeros(1, dtype=F64)
    for column in (0, 1):
        lowest = max(0, int(near[0, column]) - wide)
        k = torch.arange(lowest, min(levels, int(near[0, column]) + wide + 1))
        logs = Decoder().log_prob(
            k[:, None], x[:, column].expand(len(k), 1), scaling, sde, sde.t_min
        )
        total += logs.exp().sum()
    assert float(total) == pytest.approx(2, abs=1e-9)


def test_truncated_draws_stay_in_their_level_and_have_its_density():
    scaling, sde = Scaling(17), VP(t_min=1e-2, t_eps=1e-2)
    k = torch.arange(17).repeat_interleave(4000)[:, None]
    u = torch.rand(k.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    drawn = TruncatedNormal().draw(k, u, scaling, sde, sde.t_min)
    alpha = float(sde.alpha(torch.tensor(1e-2, dtype=F64)))
    place = (drawn.x / alpha - scaling.low) / scaling.step
    assert ((place >= k - 1e-9) & (place <= k + 1 + 1e-9)).all()
    # The mean of 1 / q over draws from q is the length of the level.
    assert drawn.weight.exp().mean() == pytest.approx(alpha * scaling.step, rel=0.01)


def test_the_bound_of_levels_through_a_decoder():
    pixels, sde = mostly_black(), VP()
    k = drawn(pixels, 400, 3)
    got = elbo(
        pixels.denoiser(sde),
        pixels.middles[k],
        times=256,
        reconstruction=lambda z: Decoder().log_prob(k, z, pixels.scale, sde, sde.t_min),
        noise=per_sample_noise(range(400)),
    )
    gap = -got.log_prob / math.log(2) / 3 - exact(pixels, k) / 3
    scatter = gap.std() / math.sqrt(len(k))
    assert -4 * scatter < gap.mean() < 0.03 + 4 * scatter


def test_a_process_that_stops_at_more_noise_is_told():
    with pytest.raises(ValueError, match="never has as little noise"):
        tight_time(VE(sigma_min=0.01), Scaling(256))


def test_bad_arguments():
    sde, data = VP(), Gaussian(torch.zeros(2).double(), torch.ones(2).double())
    with pytest.raises(ValueError, match="times >= 2"):
        elbo(data.denoiser(sde), data.sample(2), times=1)
    with pytest.raises(ValueError, match="std > 0"):
        elbo(data.denoiser(sde), data.sample(2), std=0)
