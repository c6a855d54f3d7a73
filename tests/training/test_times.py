"""The laws of training times: uniform numbers, and what they become."""

import math

import pytest
import torch

from scoresde import EDM, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP
from scoresde.training import losses
from scoresde.training.times import (
    DiscreteTimes,
    LogNormal,
    LogSNR,
    Uniform,
    antithetic,
    independent,
    stratified,
)

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), LinearFlow(), DiscreteVP()]
EVEN = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000


@pytest.fixture(params=PROCESSES, ids=lambda sde: type(sde).__name__)
def sde(request):
    return request.param


def kolmogorov_smirnov(u):
    """The largest gap between the empirical distribution and the uniform one, times sqrt(n)."""
    u, n = u.sort().values, len(u)
    ranks = torch.arange(1, n + 1, dtype=F64) / n
    return float(torch.maximum((ranks - u).abs(), (u - ranks + 1 / n).abs()).max()) * math.sqrt(n)


@pytest.mark.parametrize("draw", [independent, antithetic, stratified])
@pytest.mark.parametrize("n", [1, 2, 7, 128])
def test_every_number_is_uniform_on_its_own(draw, n):
    g = torch.Generator().manual_seed(n)
    batches = torch.stack([draw(n, g) for _ in range(3000)])
    assert ((batches >= 0) & (batches <= 1)).all()
    for position in {0, n // 2, n - 1}:
        assert kolmogorov_smirnov(batches[:, position]) < 1.95  # 0.1 % level


def test_antithetic_pairs_sum_to_one():
    u = antithetic(8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(u[:4] + u[4:], torch.ones(4, dtype=F64))


def test_stratified_numbers_fall_one_in_each_stratum():
    u = stratified(64, torch.Generator().manual_seed(0))
    shifted = (u - u.min()) * 64
    assert sorted(shifted.round().long().tolist()) == list(range(64))
    assert u.tolist() != sorted(u.tolist())  # neighbours in a batch get unrelated times


@pytest.mark.parametrize("law", [Uniform(), LogSNR(), LogNormal(), DiscreteTimes(1000)], ids=repr)
def test_times_stay_in_the_range_of_the_process(sde, law):
    t = law(sde, torch.cat([torch.tensor([0.0, 1.0], dtype=F64), EVEN]))
    assert (t >= sde.t_min * (1 - 1e-12)).all()
    assert (t <= sde.t_max).all()


def test_each_law_is_what_it_says(sde):
    spread = lambda v: float(v.diff().std() / v.diff().mean().abs())  # noqa: E731
    assert spread(Uniform()(sde, EVEN)) < 1e-6
    assert spread(sde.lam(LogSNR()(sde, EVEN))) < 1e-6
    log_ratio = -sde.lam(LogNormal(-0.5, 0.7)(sde, EVEN))
    assert float(log_ratio.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(log_ratio.std()) == pytest.approx(0.7, rel=0.01)
    levels = DiscreteTimes(50)(sde, EVEN) / sde.t_max * 50
    counts = levels.round().long().bincount(minlength=51)[1:]
    torch.testing.assert_close(levels, levels.round(), rtol=1e-9, atol=1e-6)
    assert (counts == len(EVEN) // 50).all()


def test_uniform_log_snr_has_the_density_it_declares(sde):
    """P(t <= T) by counting equals the integral of the density up to T."""
    t = LogSNR()(sde, EVEN)
    for share in (0.2, 0.5, 0.9):
        end = sde.t_min + share * (sde.t_max - sde.t_min)
        # Substituting t = t_min r^u resolves the peak at clean times.
        ratio = end / sde.t_min
        nodes = sde.t_min * ratio**EVEN
        mass = (LogSNR().density(sde, nodes) * nodes * math.log(ratio)).mean()
        mass = mass / (sde.t_max - sde.t_min)
        assert float((t <= end).double().mean()) == pytest.approx(float(mass), abs=2e-3)


def test_importance_sampling_keeps_the_likelihood_objective(sde):
    """E[w / density] at uniform log-SNR equals E[w] at uniform times."""
    bounded = lambda s, t: losses.likelihood(s, t) * (-2 * s.lam(t)).exp()  # noqa: E731
    share = lambda s, t: bounded(s, t) * torch.sigmoid(s.lam(t))  # noqa: E731
    sampled = losses.reweighted(share, LogSNR().density)(sde, LogSNR()(sde, EVEN)).mean()
    # The direct integral, with the same substitution as above.
    ratio = sde.t_max / sde.t_min
    nodes = sde.t_min * ratio**EVEN
    direct = (share(sde, nodes) * nodes).mean() * math.log(ratio) / (sde.t_max - sde.t_min)
    assert float(sampled) == pytest.approx(float(direct), rel=2e-3)


@pytest.mark.parametrize("make", [lambda: LogNormal(std=0.0), lambda: DiscreteTimes(0)])
def test_bad_laws_are_refused(make):
    with pytest.raises(ValueError, match="need"):
        make()
