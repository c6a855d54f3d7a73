"""Twisted sequential Monte Carlo against exact posteriors and evidences."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

import scoresde as ss
from scoresde.betas import linear, zero_terminal
from scoresde.posterior import Linear, Mask, Measurement, Nonlinear, TwistedSMC
from scoresde.posterior.spread import Seen, nystrom, whole
from scoresde.samplers import per_sample_noise, starting_noise
from scoresde.sde import EDM, VE, VP, DiscreteVP, LinearFlow
from scoresde.testing import Gaussian, Mixture, mixture

PROCESSES = [VP(), VE(), EDM(), LinearFlow(), DiscreteVP(zero_terminal(linear()(1000)))]


def gen(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def normal(d, seed):
    root = randn(d, d, seed=seed) / math.sqrt(d)
    return Gaussian(randn(d, seed=seed + 1), root @ root.T + 0.1 * torch.eye(d).double())


def populate(problem, sde, operator, y, noise, n=400, nfe=20, seed=0, shape=None, **settings):
    draws = per_sample_noise(range(seed * n, seed * n + n))
    shape = shape or operator.inputs(tuple(y.shape))
    x = starting_noise(sde, torch.empty(n, *shape, dtype=torch.float64), draws)
    measured = Measurement(operator, y, noise)
    return TwistedSMC(**settings).populate(problem.denoiser(sde), measured, x, draws, nfe)


def log_normal(y, mean, cov):
    return float(torch.distributions.MultivariateNormal(mean, cov).log_prob(y))


# The algebra of covariances ----------------------------------------------------------------------


def covariances(n, d):
    root = randn(n, d, d, seed=5)
    return root @ root.mT / d + 0.01 * torch.eye(d).double()


def dense(spread):
    axes = torch.eye(spread.q.shape[1]).double()
    return torch.stack([spread(axis.expand(len(spread.q), -1)) for axis in axes], 2)


def test_a_whole_covariance_and_its_functions():
    c = covariances(3, 6)
    torch.testing.assert_close(dense(whole(c)), c, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        dense(whole(c).map(torch.sqrt)) @ dense(whole(c).map(torch.sqrt)), c, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("k", [1, 3, 7])
def test_directions_are_exact_and_the_rest_keeps_the_trace(k):
    c = covariances(1, 12).expand(2, -1, -1)
    v = torch.linalg.qr(randn(2, 12, k, seed=3))[0]
    trace = c.diagonal(dim1=1, dim2=2).sum(1)
    found = dense(nystrom(v, c @ v, trace, 1e-16))
    torch.testing.assert_close(found @ v, c @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-12)
    mean = found.diagonal(dim1=1, dim2=2).sum(1).mean()
    torch.testing.assert_close(mean, trace.mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("m", [5, 80])
def test_the_density_of_a_measurement(m):
    """By a Cholesky factor and by Woodbury's identity."""
    d, n = 90, 3
    c = covariances(n, d)
    v = torch.linalg.qr(randn(n, d, 4, seed=3))[0]
    spread = nystrom(v, c @ v, c.diagonal(dim1=1, dim2=2).sum(1), 1e-16)
    rows = torch.linalg.qr(randn(d, m, seed=8))[0].T * torch.linspace(0.5, 2, m).double()[:, None]
    seen = Seen(rows.unsqueeze(0), rows.square().sum(1).unsqueeze(0), 0.3)
    r = randn(n, m, seed=9)
    s = rows @ dense(spread) @ rows.T + 0.09 * torch.eye(m).double()
    log_density, u = seen.solve(spread, r)
    expected = torch.distributions.MultivariateNormal(torch.zeros(m).double(), s).log_prob(r)
    torch.testing.assert_close(log_density, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(u, torch.linalg.solve(s, r), rtol=1e-8, atol=1e-10)


# Exact on Gaussians ------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("nfe", [2, 9])
def test_all_weights_are_one_for_a_gaussian(sde, nfe):
    """But for the start, which is taken from N(0, sigma^2), at any number of calls."""
    problem, a, noise = normal(5, 1), randn(2, 5, seed=3), 0.2
    y = torch.tensor([0.4, -1.0]).double()
    exact = problem.posterior(Linear(a), y, noise)
    found = populate(problem, sde, Linear(a), y, noise, n=2000, nfe=nfe)
    s = a @ problem.cov @ a.T + noise**2 * torch.eye(2).double()
    assert found.log_evidence == pytest.approx(log_normal(y, a @ problem.mean, s), abs=0.02)
    assert found.size > 1900
    deviation = exact.cov.diagonal().sqrt()
    # The mean within four standard errors, and the prior's own miss at t_max.
    assert float(((found.x.mean(0) - exact.mean) / deviation).abs().max()) < 0.12
    assert float((found.x.std(0) / deviation - 1).abs().max()) < 0.08


def test_hidden_pixels_are_not_measured():
    """The evidence of a mask is that of the rows it keeps."""
    problem, keep = normal(4, 1), torch.tensor([True, False, True, False])
    y = torch.tensor([0.3, 0.0, -0.5, 0.0]).double()
    rows = torch.eye(4).double()[keep]
    masked = populate(problem, EDM(), Mask(keep), y, 0.1)
    linear = populate(problem, EDM(), Linear(rows), y[keep], 0.1)
    assert masked.log_evidence == pytest.approx(linear.log_evidence, abs=1e-8)
    torch.testing.assert_close(masked.x, linear.x, rtol=0, atol=1e-7)


def test_dependent_rows_and_no_noise():
    """Without noise the samples fit exactly, and a row that repeats another says nothing more."""
    problem, a = normal(4, 1), randn(1, 4, seed=3)
    y = torch.tensor([0.4]).double()
    once = populate(problem, EDM(), Linear(a), y, 0.0)
    twice = populate(problem, EDM(), Linear(torch.cat([a, a])), torch.cat([y, y]), 0.0)
    torch.testing.assert_close(once.x @ a.T, y.expand(len(once.x), 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(twice.x @ a.T, y.expand(len(twice.x), 1), rtol=0, atol=1e-6)


# Weights on mixtures -----------------------------------------------------------------------------


def far_apart():
    return mixture(
        [0.3, 0.7], torch.tensor([[-1.0, 0.2], [0.8, 0.4]]).double(), [0.2, 0.3]
    ), torch.tensor([[0.2, 1.0]]).double()


def log_evidence(problem: Mixture, operator, y, noise):
    """By summing the components."""
    a = torch.stack([operator(axis[None])[0] for axis in torch.eye(2).double()], 1)
    terms = [
        math.log(w) + log_normal(y, a @ m, s**2 * a @ a.T + noise**2 * torch.eye(len(y)).double())
        for w, m, s in zip(
            (problem.weights / problem.weights.sum()).tolist(),
            problem.means,
            problem.stds,
            strict=True,
        )
    ]
    return float(torch.tensor(terms).double().logsumexp(0))


@pytest.mark.parametrize("sde", PROCESSES[:3], ids=lambda sde: type(sde).__name__)
def test_the_evidence_of_a_mixture_is_within_its_error(sde):
    problem, a = far_apart()
    y, noise = torch.tensor([0.35]).double(), 0.1
    exact = log_evidence(problem, Linear(a), y, noise)
    found = [populate(problem, sde, Linear(a), y, noise, nfe=60, seed=k) for k in range(6)]
    away = [(f.log_evidence - exact) / f.log_evidence_error for f in found]
    assert max(map(abs, away)) < 4
    assert abs(sum(away)) / math.sqrt(6) < 3
    left = torch.cat([f.x for f in found])[:, 0] < -0.2
    posterior = problem.posterior(Linear(a), y, noise)
    share = float((posterior.sample(20000, gen(1))[:, 0] < -0.2).double().mean())
    assert float(left.double().mean()) == pytest.approx(share, abs=0.04)


def test_few_directions_are_corrected_by_the_weights():
    """With more numbers than the directions give, the weights differ, and the answer does not."""
    problem, a = normal(24, 1), randn(12, 24, seed=3) / 5
    y, noise = randn(12, seed=4), 0.3
    exact = problem.posterior(Linear(a), y, noise)
    s = a @ problem.cov @ a.T + noise**2 * torch.eye(12).double()
    expected = log_normal(y, a @ problem.mean, s)

    def at(nfe):
        return populate(problem, EDM(), Linear(a), y, noise, n=300, nfe=nfe, directions=2, std=1.0)

    few, found = at(10), at(80)
    assert 0 < found.log_evidence_error < 0.3
    assert abs(found.log_evidence - expected) < 4 * found.log_evidence_error
    assert abs(found.log_evidence - expected) < abs(few.log_evidence - expected) / 2
    away = (found.x.mean(0) - exact.mean) / exact.cov.diagonal().sqrt()
    assert float(away.square().mean().sqrt()) < 3 / math.sqrt(found.size)


def test_a_nonlinear_operator():
    """|x|^2 of a Gaussian of two numbers, by quadrature."""
    problem = Gaussian(
        torch.tensor([0.5, 0.0]).double(), torch.tensor([[0.3, 0], [0, 0.2]]).double()
    )
    y, noise = torch.tensor(0.8).double(), 0.1
    operator = Nonlinear(lambda x: x.square().sum(1), (2,))
    line = torch.linspace(-4, 4, 801, dtype=torch.float64)
    at = torch.cartesian_prod(line, line)
    joint = problem.log_prob(at) + torch.distributions.Normal(0.8, noise).log_prob(
        at.square().sum(1)
    )
    exact = float(joint.logsumexp(0)) + 2 * math.log(float(line[1] - line[0]))
    mean = (joint.softmax(0)[:, None] * at).sum(0)
    found = populate(problem, EDM(), operator, y, noise, n=2000, nfe=40, shape=(2,))
    assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error + 0.01
    assert float((found.x.mean(0) - mean).abs().max()) < 4 / math.sqrt(found.size)
    assert float((found.x.square().sum(1) - 0.8).std()) == pytest.approx(noise, rel=0.15)


# What can go wrong -------------------------------------------------------------------------------


def test_a_collapse_is_said():
    problem = mixture([0.99, 0.01], torch.tensor([[0.0] * 3, [4.0] * 3]).double(), [0.1, 0.1])
    y = torch.full((1,), 4.0).double()
    a = torch.tensor([[1.0, 0, 0]]).double()
    with pytest.warns(RuntimeWarning, match=r"collapsed to an effective sample size of \d"):
        populate(problem, VP(), Linear(a), y, 0.01, n=8, nfe=6)


def test_a_covariance_that_is_not_finite_is_said():
    problem, a = far_apart()
    plain = problem.denoiser(VP())

    def steep(x, t):  # its value is right, its gradient is not
        return plain(x, t) + 0 * (x - x.detach()).abs().sqrt()

    with pytest.raises(RuntimeError, match=r"covariance of x0 is not finite .* call 1; check"):
        ss.infer(
            replace(plain, predict=steep), Linear(a), torch.zeros(1), 0.1,
            method="twisted_smc", nfe=5,
        )  # fmt: skip


def test_a_network_of_negative_jacobian_is_drawn_from_without_noise():
    """More than 64 numbers, so that the covariance is known along directions alone."""
    normal = Gaussian(torch.zeros(80).double(), torch.ones(80).double())
    plain = normal.denoiser(VP())
    turned = replace(plain, predict=lambda x, t: -plain(x, t))
    y = torch.zeros(80).double()
    seen = Mask(torch.arange(80) < 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the particles may collapse
        found = ss.infer(turned, seen, y, 0.0, method="twisted_smc", num=2, nfe=3)
    assert found.x.isfinite().all()
    assert float(found.x[:, :3].abs().max()) < 1e-6


def test_messages():
    problem, a = far_apart()
    with pytest.raises(ValueError, match="particles: need 2 or more, got 1"):
        populate(problem, VP(), Linear(a), torch.zeros(1).double(), 0.1, n=1)
    with pytest.raises(ValueError, match="one measurement for all particles"):
        populate(problem, VP(), Linear(a), torch.zeros(6, 1).double(), 0.1, n=6, shape=(2,))
    rounded = Nonlinear(lambda x: x.round(), (2,))
    with pytest.raises(ValueError, match="twisted_smc: the operator has no gradient"):
        populate(problem, VP(), rounded, torch.zeros(2).double(), 0.1)
    square = Nonlinear(lambda x: x.square(), (2,))
    with pytest.raises(ValueError, match="twisted_smc: divides by the noise"):
        populate(problem, VP(), square, torch.zeros(2).double(), 0.0)


def test_the_population_has_num_samples_and_one_seed_makes_it():
    problem, a = far_apart()
    denoiser = problem.denoiser(VP())
    ask = (denoiser, Linear(a), torch.tensor([0.35]).double(), 0.1)
    draw = [
        ss.infer(*ask, method="twisted_smc", num=10, nfe=8, seeds=range(k, k + 10))
        for k in (0, 0, 1)
    ]
    assert draw[0].x.shape == (10, 2)
    assert draw[0].nfe == 8
    assert torch.equal(draw[0].x, draw[1].x)
    assert not torch.equal(draw[0].x, draw[2].x)
    assert draw[0].log_evidence_error > 0
