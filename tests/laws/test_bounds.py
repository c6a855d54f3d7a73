"""Variational bounds: tight where they can be, below the truth, with errors that are honest."""

import math
from dataclasses import replace

import pytest
import torch

from scoresde import VP, DiscreteVP
from scoresde.data import Scaling
from scoresde.likelihood import discrete_elbo, elbo
from scoresde.likelihood.dequantise import Decoder
from scoresde.likelihood.discrete import LARGE, LEARNED, SMALL, discretised_gaussian
from scoresde.samplers import per_sample_noise, white_noise
from scoresde.sde import linear_betas
from scoresde.testing import Gaussian, Mixture, grid25, mostly_black

F64 = torch.float64


def uniform_log_snr(sde, n, t0=None):
    """n + 1 times from t_max down to t_min, equally spaced in log-SNR."""
    ends = torch.tensor([sde.t_max, t0 or sde.t_min], dtype=F64)
    high, low = sde.lam(ends)
    ts = sde.time(torch.linspace(float(high), float(low), n + 1, dtype=F64))
    ts[0], ts[-1] = ends
    return ts


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sharp(dim, std):
    """Five modes of deviation ``std``."""
    means = torch.randn(5, dim, generator=seeded(dim), dtype=F64) / 2
    return Mixture(torch.ones(5, dtype=F64), means, torch.full((5,), std, dtype=F64))


class TestContinuous:
    def test_tight_on_a_gaussian(self, sde, gaussian):
        """To 0.01 bits a dimension, with a statistical error far below that."""
        x = gaussian.sample(8000, torch.Generator().manual_seed(0))
        got = elbo(gaussian.denoiser(sde), x, times=128, noise=per_sample_noise(range(8000)))
        gap = (gaussian.log_prob(x) - got.log_prob) / 4 / math.log(2)
        scatter = gap.std() / math.sqrt(len(x))
        assert scatter < 0.004
        assert abs(gap.mean()) < 0.01
        told = got.standard_error.square().mean().sqrt() / 4 / math.log(2)
        assert told == pytest.approx(float(gap.std()), rel=0.2)

    def test_below_the_truth_of_a_mixture_within_its_error(self, sde):
        data = grid25(std=0.1)
        x = data.sample(500, torch.Generator().manual_seed(1))
        got = elbo(data.denoiser(sde), x, times=64, noise=per_sample_noise(range(500)))
        gap = data.log_prob(x) - got.log_prob
        error = float(got.standard_error.square().mean().sqrt()) / math.sqrt(500)
        assert -4 * error < gap.mean() < 0.01 * 2 * math.log(2) + 4 * error

    @pytest.mark.parametrize(
        "data",
        [
            *(
                Gaussian(torch.zeros(dim, dtype=F64), torch.tensor(var, dtype=F64))
                for dim, var in ((1, 0.01), (1, 1.0), (4, 0.25), (16, 1.0))
            ),
            grid25(std=0.02),
            grid25(std=0.1),
            sharp(1, 0.001),
            sharp(8, 0.4),
        ],
        ids=range(8),
    )
    def test_the_interval_covers_as_often_as_it_says(self, data):
        """Also where a few draws, or their squares, carry the error."""
        x = data.sample(6, seeded(0)).repeat_interleave(250, 0)
        got = elbo(data.denoiser(VP()), x, noise=white_noise(seeded(1)))
        mean = got.log_prob.reshape(6, -1).mean(1).repeat_interleave(250)
        low, high = got.interval()
        unknown = low.isnan()
        assert (unknown | ((low <= mean) & (mean <= high))).double().mean() > 0.92
        assert unknown.double().mean() < 0.1
        told = got.standard_error.square().mean().sqrt()
        assert told < 1.3 * (got.log_prob - mean).square().mean().sqrt()

    def test_draws_of_the_decoder_count_in_the_error(self):
        """At a time where a level is two deviations wide, decoding is most of the scatter."""
        pixels, sde = mostly_black(), VP()
        k = torch.full((400, 3), 7)
        t0 = float(sde.time(torch.tensor(math.log(2 / pixels.scale.step), dtype=F64)))
        got = elbo(
            pixels.denoiser(sde),
            pixels.middles[k],
            t0=t0,
            times=16,
            reconstruction=lambda z: Decoder().log_prob(k, z, pixels.scale, sde, t0),
            noise=per_sample_noise(range(400)),
        )
        told = float(got.standard_error.square().mean().sqrt())
        assert told == pytest.approx(float(got.log_prob.std()), rel=0.25)


def closed_form(data, sde, ts, x, mix):
    """The bound of the chain for each x in expectation, axis by axis of a Gaussian."""
    values, vectors = data._spectrum
    centred, mean = (x - data.mean) @ vectors, data.mean @ vectors
    alpha, sigma = sde.alpha(ts), sde.sigma(ts)
    std = float(sde.prior().stddev)
    clean = centred + mean
    ratio = (sigma[0] / std) ** 2
    total = -((alpha[0] * clean / std) ** 2 + ratio - 1 - ratio.log()).sum(1) / 2

    def error(i):
        """E (x - x0_hat)^2 given x."""
        c = alpha[i] * values / (alpha[i] ** 2 * values + sigma[i] ** 2)
        return ((1 - c * alpha[i]) * centred) ** 2 + (c * sigma[i]) ** 2

    for i in range(len(ts) - 1):
        v1 = sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2
        v0 = v1 * sigma[i + 1] ** 2 / sigma[i] ** 2
        vp = v0 ** (1 - mix) * v1**mix
        gain = alpha[i + 1] * v1 / sigma[i] ** 2
        kl = (v0 / vp - 1 - (v0 / vp).log()) / 2 + gain**2 * error(i) / 2 / vp
        total = total - kl.sum(1)
    end = (sigma[-1] / alpha[-1]) ** 2
    return total - (error(-1) / end + end.log() + math.log(2 * math.pi)).sum(1) / 2


class TestDiscrete:
    @pytest.mark.parametrize("mix", [SMALL, 0.3, LARGE])
    def test_every_term_of_a_gaussian_is_the_closed_form(self, sde, gaussian, mix):
        ts = uniform_log_snr(sde, 12)
        x = gaussian.sample(4, torch.Generator().manual_seed(0)).repeat_interleave(250, 0)
        truth = closed_form(gaussian, sde, ts, x, mix)
        got = discrete_elbo(
            gaussian.denoiser(sde), x, ts, mix=mix, noise=per_sample_noise(range(1000))
        )
        assert got.nfe == 12 + 8
        off = (got.log_prob - truth).reshape(4, 250)
        error = got.standard_error.square().reshape(4, 250).mean(1).sqrt()
        assert (off.mean(1).abs() < 4 * off.std(1) / math.sqrt(250)).all()
        assert (error > 0.9 * off.std(1)).all()  # terms that differ make it tell more, not less

    def test_some_terms_estimate_all(self, sde, gaussian):
        ts = uniform_log_snr(sde, 100)
        x = gaussian.sample(4, torch.Generator().manual_seed(0)).repeat_interleave(250, 0)
        truth = closed_form(gaussian, sde, ts, x, SMALL)
        got = discrete_elbo(
            gaussian.denoiser(sde), x, ts, times=10, noise=per_sample_noise(range(1000))
        )
        assert got.nfe == 10 + 8
        off = (got.log_prob - truth).reshape(4, 250)
        assert (off.mean(1).abs() < 4 * off.std(1) / math.sqrt(250)).all()
        error = got.standard_error.square().mean().sqrt()
        assert error == pytest.approx(float(off.square().mean().sqrt()), rel=0.25)

    def test_more_levels_are_tighter_and_end_at_the_truth(self, sde, gaussian):
        x = gaussian.sample(500, torch.Generator().manual_seed(0))
        gaps = []
        for n in (8, 32, 128):
            got = discrete_elbo(
                gaussian.denoiser(sde), x, uniform_log_snr(sde, n), noise=white_noise(seeded(2))
            )
            gaps.append(float((gaussian.log_prob(x) - got.log_prob).mean()))
        assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0

    def test_the_chain_of_the_table(self):
        """DDPM's own 100 levels, for data of deviation 0.5."""
        sde = DiscreteVP(linear_betas(100, 1e-3, 0.2))
        data = Gaussian(torch.zeros(3, dtype=F64), torch.tensor(0.25, dtype=F64))
        ts = torch.arange(100, 0, -1, dtype=F64) / 100
        x = data.sample(500, seeded(0))
        got = discrete_elbo(data.denoiser(sde), x, ts, noise=white_noise(seeded(1)))
        off = got.log_prob - closed_form(data, sde, ts, x, SMALL)
        assert abs(off.mean()) < 4 * off.std() / math.sqrt(500)

    def test_a_learned_variance_is_the_best(self):
        """Its optimum v_0 + gain^2 Var(x0 | z_t) lies between the two fixed ones."""
        sde, d2 = VP(), 0.16
        data = Gaussian(torch.zeros(4, dtype=F64), torch.tensor(d2, dtype=F64))
        ts = uniform_log_snr(sde, 10)

        def mix(z, t):
            i = torch.searchsorted(-ts, -t.reshape(-1)).clamp(max=len(ts) - 2)
            alpha, sigma = sde.alpha(ts), sde.sigma(ts)
            v1 = sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2
            v0 = v1 * sigma[i + 1] ** 2 / sigma[i] ** 2
            gain = alpha[i + 1] * v1 / sigma[i] ** 2
            left = d2 * sigma[i] ** 2 / (alpha[i] ** 2 * d2 + sigma[i] ** 2)
            v = ((v0 + gain**2 * left) / v0).log() / (v1 / v0).log()
            v = torch.where(t.reshape(-1) == ts[-1], 1.0, v)  # of z_0 the density's
            assert ((v >= 0) & (v <= 1)).all()
            return v.reshape(-1, 1).expand_as(z)

        denoiser = replace(data.denoiser(sde), variance_mix=mix)
        x = data.sample(500, seeded(0))
        found = {
            m: discrete_elbo(denoiser, x, ts, mix=m, noise=white_noise(seeded(1))).log_prob.mean()
            for m in (SMALL, LARGE, LEARNED)
        }
        assert found[LEARNED] > max(found[SMALL], found[LARGE]) + 0.01
        assert found[LEARNED] < data.log_prob(x).mean() + 0.01

    def test_bits_of_levels_are_at_least_their_entropy(self):
        pixels, sde = mostly_black(), VP()
        k = pixels.sample(300, 3, torch.Generator().manual_seed(0))
        t0 = float(sde.time(torch.tensor(math.log(12 / pixels.scale.step), dtype=F64)))
        gaps = []
        for n in (20, 100):
            ts = uniform_log_snr(sde, n, t0)
            got = discrete_elbo(
                pixels.denoiser(sde),
                pixels.middles[k],
                ts,
                levels=pixels.scale,
                noise=per_sample_noise(range(300)),
            )
            gap = -got.log_prob / 3 / math.log(2) - (-pixels.log_prob(k) / math.log(2)) / 3
            assert gap.mean() > -4 * gap.std() / math.sqrt(300)
            gaps.append(float(gap.mean()))
        assert gaps[1] < gaps[0]

    @pytest.mark.parametrize("levels", [2, 17, 256])
    def test_the_discretised_gaussian_is_a_law_over_levels(self, levels):
        scaling = Scaling(levels)
        x = scaling.encode(torch.arange(levels), dtype=F64)[:, None]
        for mean, std in ((0.1, 0.3), (-2.5, 0.01), (0.9999, 1e-3)):
            logs = discretised_gaussian(
                x, torch.tensor(mean), torch.tensor(std**2).double(), scaling
            )
            assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-9)
        far = discretised_gaussian(x[:1], torch.tensor(40.0), torch.tensor(1.0).double(), scaling)
        assert far.isfinite().all()  # forty deviations away

    def test_bad_arguments(self, gaussian):
        sde = VP()
        denoiser, x, ts = gaussian.denoiser(sde), gaussian.sample(2), uniform_log_snr(sde, 4)
        for grid in (ts.flip(0), ts[:2], ts[None]):
            with pytest.raises(ValueError, match="decreasing times"):
                discrete_elbo(denoiser, x, grid)
        with pytest.raises(ValueError, match="no learned variance"):
            discrete_elbo(denoiser, x, ts, mix=LEARNED)
        with pytest.raises(ValueError, match="0 <= mix <= 1"):
            discrete_elbo(denoiser, x, ts, mix=2)
        with pytest.raises(ValueError, match="times >= 2, got times=1"):
            discrete_elbo(denoiser, x, ts, times=1)


@pytest.mark.parametrize("times", [None, 5])
def test_batch_mates_never_change_a_value(times, gaussian):
    """Alone or in a batch of 7."""
    sde = VP()
    denoiser, x = gaussian.denoiser(sde), gaussian.sample(7, seeded(0))
    ts = uniform_log_snr(sde, 6)

    def both(rows):
        some, seeds = x[rows], [40 + row for row in rows]
        one = elbo(denoiser, some, times=6, noise=per_sample_noise(seeds))
        two = discrete_elbo(denoiser, some, ts, times=times, noise=per_sample_noise(seeds))
        return [one.log_prob, one.standard_error, two.log_prob, two.standard_error]

    whole = both(range(7))
    for i in (0, 3, 6):
        for alone, value in zip(both([i]), whole, strict=True):
            torch.testing.assert_close(alone[0], value[i], rtol=1e-12, atol=1e-12)
