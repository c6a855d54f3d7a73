"""Estimators of log P through one interface: exact answers, independence, honest errors."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from scoresde import VP, Denoiser, parameterization, score
from scoresde.data import Scaling
from scoresde.likelihood import FlowEstimator, adaptive_log_likelihood, estimators, log_likelihood
from scoresde.likelihood.confidence import draw_error, mean, mean_interval
from scoresde.likelihood.dequantise import Continuous, Decoder, TruncatedNormal, Uniform
from scoresde.likelihood.divergence import EXACT
from scoresde.likelihood.estimators import (
    AdaptiveFlow,
    BlackBox,
    DecodedVariational,
    DiscreteBound,
    GridFlow,
    HutchinsonTrace,
    HutchPlusPlusTrace,
    Variational,
)
from scoresde.parameterization import ScoreModel
from scoresde.runs.score_report import page, report_of
from scoresde.samplers import per_sample_noise
from scoresde.solvers import SolverError
from scoresde.testing import Gaussian, grid25

F64 = torch.float64
REAL = Scaling(None)
LEVELS = Scaling(17)


def turned(d: int = 4, seed: int = 0) -> Gaussian:
    """Correlated Gaussian data."""
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return Gaussian(
        torch.linspace(-0.5, 0.5, d, dtype=F64), 0.3 * a @ a.T / d + 0.05 * torch.eye(d)
    )


def ends(sde):
    return (torch.tensor(t, dtype=F64) for t in (sde.t_min, sde.t_max))


@pytest.mark.parametrize(
    "solver",
    [
        GridFlow(240, None),
        AdaptiveFlow(1e-7, 1e-7, EXACT),
        BlackBox("dopri8", 1e-6, 1e-6, trace=EXACT),
        BlackBox("rk4", steps=100, trace=EXACT),
    ],
    ids=lambda s: type(s).__name__ + getattr(s, "method", ""),
)
def test_every_solver_finds_the_density(sde, solver):
    law = turned()
    x = law.sample(5, torch.Generator().manual_seed(1))
    t0, end = ends(sde)
    found = FlowEstimator(solver)(law.denoiser(sde), x, REAL, per_sample_noise(range(5)))
    # The prior of the process stands in for the law at t_max; take its error out.
    codes = law.flow(x, sde, t0, end)
    gap = sde.prior().log_prob(codes).sum(1) - law.log_prob(codes, sde, end)
    assert torch.allclose(found.log_prob - gap, law.log_prob(x, sde, t0), atol=4e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        FlowEstimator(GridFlow(16)),
        FlowEstimator(AdaptiveFlow(1e-3, 1e-3, HutchinsonTrace(2))),
        FlowEstimator(AdaptiveFlow(1e-3, 1e-3, HutchPlusPlusTrace(1))),
        FlowEstimator(BlackBox("rk4", steps=8)),
        Variational(8),
    ],
    ids=lambda e: type(e).__name__ + type(getattr(e, "solver", None)).__name__,
)
def test_batch_mates_never_change_a_value(estimator):
    law = grid25(0.2)
    denoiser, x = law.denoiser(VP()), law.sample(7, torch.Generator().manual_seed(0))
    together = estimator(denoiser, x, REAL, per_sample_noise(range(7))).log_prob
    for i in (0, 4):
        alone = estimator(denoiser, x[i : i + 1], REAL, per_sample_noise([i])).log_prob
        assert torch.allclose(alone, together[i : i + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("law", [Uniform(), TruncatedNormal(), Decoder()], ids=repr)
def test_levels_are_drawn_from_the_stream_of_each_sample(law):
    k = torch.randint(0, 17, (4, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    denoiser = Gaussian(torch.zeros(1, 2, 2, dtype=F64), 0.25).denoiser(VP())
    estimator = FlowEstimator(GridFlow(12), law)
    together = estimator(denoiser, k, LEVELS, per_sample_noise(range(4))).log_prob
    alone = estimator(denoiser, k[2:3], LEVELS, per_sample_noise([2])).log_prob
    assert torch.allclose(alone, together[2:3], rtol=0, atol=1e-9)
    other = estimator(denoiser, k, LEVELS, per_sample_noise(range(4, 8))).log_prob
    assert not torch.allclose(other, together)


def test_the_model_takes_over_where_its_dequantisation_is_tight():
    sde = VP(t_min=1e-6)
    assert FlowEstimator(dequantisation=Uniform()).start(sde, LEVELS) == sde.t_min
    tight = FlowEstimator(dequantisation=TruncatedNormal()).start(sde, LEVELS)
    assert float(sde.sigma(torch.tensor(tight, dtype=F64))) == pytest.approx(
        LEVELS.step / 16, rel=1e-3
    )
    assert DecodedVariational(t0=0.01).start(sde, LEVELS) == 0.01
    late = VP(t_min=1e-2, t_eps=1e-2)  # never below what a model was trained at
    assert FlowEstimator(dequantisation=Decoder()).start(late, LEVELS) == late.t_min


@pytest.mark.parametrize("trace", ["one probe", "all"])
def test_half_the_effort_shows_the_error_of_the_solver(trace):
    """Without the scatter of the probes, which are the same in both."""
    law, sde = grid25(0.1), VP()
    x = law.sample(20, torch.Generator().manual_seed(0))
    solver = GridFlow(48, 1) if trace == "one probe" else AdaptiveFlow(1e-5, 1e-5)
    fine, coarse = FlowEstimator(solver).halved()
    finest = GridFlow(400, 1, held=True) if trace == "one probe" else AdaptiveFlow(1e-7, 1e-7)
    values = [
        e(law.denoiser(sde), x, REAL, per_sample_noise(range(20))).log_prob
        for e in (coarse, fine, FlowEstimator(finest))
    ]
    told, error = (values[0] - values[1]).abs().mean(), (values[1] - values[2]).abs().mean()
    assert error < told < 0.05
    assert Variational().halved() is None


def test_half_the_effort_is_half_of_it_where_samples_are_solved_again():
    """At one tolerance the coarse solve would take up to as many nodes, and show no error."""
    law, sde = grid25(0.1), VP()
    x = law.sample(20, torch.Generator().manual_seed(0))
    fine, coarse = (
        e(law.denoiser(sde), x, REAL, per_sample_noise(range(20)))
        for e in FlowEstimator(GridFlow(48, 1, tolerance=1e-4)).halved()
    )
    assert fine.nfe > 1.2 * 48  # some were solved again
    assert coarse.nfe < 0.7 * fine.nfe
    assert bool((coarse.log_prob != fine.log_prob).all())


@pytest.mark.parametrize("solver", [GridFlow(23), BlackBox("rk4", steps=1)])
def test_too_few_steps_are_not_halved(solver):
    assert FlowEstimator(solver).halved() is None
    twice = GridFlow(24) if isinstance(solver, GridFlow) else BlackBox("rk4", steps=2)
    assert twice.halved() is not None


def test_a_solver_that_estimates_all_of_its_error_is_not_halved():
    assert FlowEstimator(GridFlow(64, None)).halved() is None


def test_what_it_is_is_said():
    assert "lower bound" in FlowEstimator(dequantisation=TruncatedNormal()).bounds
    assert "lower bound" in Variational().bounds
    assert "lower bound" in DecodedVariational().bounds
    assert "lower bound" not in FlowEstimator(dequantisation=Continuous()).bounds


# --- error control per sample ---


def test_the_adaptive_value_is_exact_and_agrees_with_the_black_box(sde):
    law = turned(3)
    x = law.sample(6, torch.Generator().manual_seed(2)).reshape(6, 1, 3)
    shaped = Denoiser(sde, lambda x, t: law.denoiser(sde)(x.flatten(1), t).reshape(x.shape))
    found = adaptive_log_likelihood(shaped, x, rtol=1e-8, atol=1e-8)
    known = log_likelihood(shaped, x, rtol=1e-8, atol=1e-8)
    assert torch.allclose(found.log_prob, known.log_prob, atol=1e-5)
    assert torch.allclose(found.latent, known.latent, atol=1e-4 * float(sde.prior().stddev))
    assert found.nfe > 0


class Rough(torch.nn.Module):
    """v = 0 up to |x| = 5, where the model is the standard normal law, and fast waves beyond."""

    def forward(self, x, noise):
        return torch.where(x.abs() > 5, torch.sin(3000 * x), 0 * x)


def test_a_late_sample_is_marked_and_leaves_its_mates_alone():
    model = ScoreModel(Rough(), VP(), parameterization.v)
    x = torch.tensor([[0.3, -0.2], [40.0, 30.0], [1.0, 2.0]], dtype=F64)
    found = adaptive_log_likelihood(model.denoiser(), x, max_nfe=150)
    known = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(found.log_prob[::2], known[::2], rtol=0, atol=1e-3)
    assert found.log_prob[1].isnan()
    assert found.solver_error[1] == math.inf
    assert found.solver_error[::2].isnan().all()


def test_a_late_example_is_counted_and_left_out_of_the_mean(monkeypatch):
    """Whatever its batch: alone in one, it stops no other."""
    monkeypatch.setattr(
        estimators, "adaptive_log_likelihood", partial(adaptive_log_likelihood, max_nfe=150)
    )
    model = ScoreModel(Rough(), VP(), parameterization.v)
    x = torch.tensor([[0.3, -0.2], [40.0, 30.0], [1.0, 2.0]])
    for batch in (1, 3):
        found = score(model, x, method="adaptive", trace="exact", batch=batch, bound=True)
        assert found.log_prob.isfinite().tolist() == [True, False, True]
        assert found.bits_per_dim == pytest.approx(float(found.bits[::2].mean()))
        report = report_of(found)
        assert report["uncertain"]["examples"] == 1
        below = float(found.job.bits(found.bound[::2]).mean())
        assert report["lower_bound"]["bits_per_dim"] == pytest.approx(below)
        assert any("1 of 3 examples did not reach the end" in w for w in report["warnings"])
        assert "1 of 3 examples uncertain" in page(report)
    with pytest.raises(SolverError, match="none of 1 examples has a value"):
        score(model, x[1:2], method="adaptive", trace="exact")


def test_a_solve_that_is_cut_short_says_how_many():
    law = grid25()
    x = law.sample(3, torch.Generator().manual_seed(0))
    with pytest.raises(SolverError, match="3 of 3 samples did not reach t=1 within 20 calls"):
        adaptive_log_likelihood(law.denoiser(VP()), x, max_nfe=20)


@pytest.mark.parametrize("score", [log_likelihood, adaptive_log_likelihood])
def test_integers_are_refused(score):
    with pytest.raises(ValueError, match="dequantise them first"):
        score(grid25().denoiser(VP()), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "estimator",
    [
        FlowEstimator(GridFlow(12)),
        FlowEstimator(AdaptiveFlow()),
        FlowEstimator(BlackBox()),
        Variational(),
        DiscreteBound(8),
    ],
    ids=lambda e: type(e).__name__ + type(getattr(e, "solver", None)).__name__,
)
def test_the_score_of_no_law_is_refused(estimator):
    guided = replace(grid25().denoiser(VP()), normalised=False)
    with pytest.raises(ValueError, match="score of no law"):
        estimator(guided, torch.zeros(2, 2), REAL, per_sample_noise([0, 1]))


# --- how sure ---


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 evaluations of 40 samples each, by one probe a node: truth in 90 to 99 % of them."""
    sde, repetitions, n = VP(), 200, 40
    law = turned(2, seed=3)
    x = law.sample(repetitions * n, torch.Generator().manual_seed(5))
    noise = per_sample_noise(range(len(x)))
    values = FlowEstimator(GridFlow(24))(law.denoiser(sde), x, REAL, noise).log_prob
    t0, _ = ends(sde)
    alpha, sigma = float(sde.alpha(t0)), float(sde.sigma(t0))
    covariance = alpha**2 * law.cov + sigma**2 * torch.eye(2, dtype=F64)
    # The data lie at t_0 as they are: a cross-entropy.
    inverse, shift = torch.linalg.inv(covariance), (1 - alpha) * law.mean
    quadratic = (inverse * law.cov).sum() + shift @ inverse @ shift
    truth = -0.5 * (quadratic + torch.logdet(2 * math.pi * covariance))
    inside = 0
    for part in values.reshape(repetitions, n):
        low, high, _ = mean_interval(part)
        inside += low <= float(truth) <= high
    assert 0.90 * repetitions <= inside <= 0.99 * repetitions


def populations(shape, g):
    """Values and their true mean: light and heavy tails, skewness, rare values, no spread."""
    z, u = (make(shape, generator=g, dtype=F64) for make in (torch.randn, torch.rand))
    heavy = z / torch.randn((3, *shape), generator=g, dtype=F64).square().mean(0).sqrt()
    return {
        "normal": (z, 0.0),
        "uniform": (u, 0.5),
        "exponential": (-u.log(), 1.0),
        "lognormal": (z.exp(), math.exp(0.5)),
        "lognormal, 2": ((2 * z).exp(), math.exp(2.0)),
        "student": (heavy, 0.0),
        "rare": ((u < 0.1).double(), 0.1),
        "rarer": ((u < 0.03).double(), 0.03),
        "rarest": ((u < 0.01).double(), 0.01),
        "nearly constant": (1 + 1e-9 * z, 1.0),
    }


@pytest.mark.parametrize("n", [5, 10, 20, 50, 100])
@pytest.mark.parametrize("name", populations((1, 1), torch.Generator()))
def test_an_interval_covers_or_is_doubted(name, n):
    values, truth = populations((800, n), torch.Generator().manual_seed(n))[name]
    found = [mean_interval(each) for each in values]
    inside = [low <= truth <= high for low, high, _ in found]
    doubted = [doubt is not None for *_, doubt in found]
    assert sum(map(max, inside, doubted)) >= 0.93 * 800
    if name in ("normal", "uniform", "nearly constant"):
        assert sum(inside) >= 0.93 * 800
        assert n < 20 or sum(doubted) <= 0.06 * 800


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_the_interval_of_a_handful_is_not_their_range(n):
    """The range of 2 normal numbers covers 50 %."""
    z = torch.randn(400, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    inside = sum(low <= 0 <= high for low, high, _ in map(mean_interval, z))
    assert 0.92 * 400 <= inside <= 0.99 * 400


def test_an_interval_moves_and_scales_with_its_values():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=F64).exp()
    low, high, doubt = mean_interval(x)
    for scale, shift in ((2.0, 0.0), (-3.0, 5.0)):
        ends = sorted((scale * low + shift, scale * high + shift))
        found = mean_interval(scale * x + shift)
        assert found == (pytest.approx(ends[0]), pytest.approx(ends[1]), doubt)
    assert high - float(x.mean()) > float(x.mean()) - low  # a tail above


def test_equal_values_show_no_spread():
    found = mean_interval(torch.full((50,), 3.0))
    assert found[:2] == (3.0, 3.0)
    assert "all 50 values are equal" in str(found.doubt)


def test_an_interval_of_one_value_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval(torch.ones(1))


def test_errors_of_images_and_of_draws_come_apart():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4000, generator=generator, dtype=F64)
    first, second = (
        images + 0.3 * torch.randn(4000, generator=generator, dtype=F64) for _ in range(2)
    )
    assert mean(first).error == pytest.approx(math.sqrt(1.09 / 4000), rel=0.05)
    assert draw_error(first[:1000], second[:1000], 4000) == pytest.approx(
        0.3 / math.sqrt(4000), rel=0.1
    )
    assert math.isnan(draw_error(first[:0], second[:0], 4000))
    assert math.isnan(mean(first[:1]).error)
