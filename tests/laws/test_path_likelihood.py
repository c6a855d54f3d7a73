"""Likelihoods read along a path: exact values, unbiased probes, quadrature."""

import math
from dataclasses import replace

import pytest
import torch

from scoresde import EDM, VP, Denoiser
from scoresde.likelihood import path_log_likelihood
from scoresde.likelihood.divergence import EXACT, HutchPlusPlus, rademacher
from scoresde.likelihood.path import Orthogonal, gregory
from scoresde.testing import Gaussian, Mixture

F64 = torch.float64


def at(sde, name):
    return torch.tensor(getattr(sde, name), dtype=F64)


def correlated(dim, seed=0):
    """A Gaussian whose Jacobian is far from diagonal."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=F64)).Q
    variances = torch.linspace(0.1, 1.2, dim, dtype=F64) ** 2
    return Gaussian(torch.zeros(dim, dtype=F64), (basis * variances) @ basis.T)


def test_the_exact_density_of_a_gaussian_on_every_process(sde):
    """Within 1e-5 nats a dimension of the closed form, given the true terminal marginal."""
    data = correlated(5)
    x = data.sample(7, torch.Generator().manual_seed(0))
    prior = lambda x: data.log_prob(x, sde, at(sde, "t_max"))  # noqa: E731
    got = path_log_likelihood(data.denoiser(sde), x, prior=prior, nodes=200)
    truth = data.log_prob(x, sde, at(sde, "t_min"))
    assert (got.log_prob - truth).abs().max() < 1e-5 * 5
    assert (got.standard_error == 0).all()
    latent = data.flow(x, sde, at(sde, "t_min"), at(sde, "t_max"))
    torch.testing.assert_close(got.latent, latent, rtol=1e-4, atol=1e-4)
    assert got.nfe == 200 + 1 + 2  # nodes, the end, and the start of the method


def test_steps_between_the_nodes_refine_the_path_alone():
    """16 times nearer the quadrature of the exact path, with no more divergences."""
    sde, data = VP(), correlated(4)
    x = data.sample(5, torch.Generator().manual_seed(0))
    prior = lambda x: data.log_prob(x, sde, at(sde, "t_max"))  # noqa: E731
    read = []

    class Counted:
        def at(self, k, x):
            read.append(k)
            return EXACT

    truth = data.flow(x, sde, at(sde, "t_min"), at(sde, "t_max"))
    errors = []
    for between in (1, 2, 4):
        read.clear()
        got = path_log_likelihood(
            data.denoiser(sde), x, Counted(), prior=prior, nodes=32, between=between
        )
        assert len(set(read)) == 33
        errors.append(float((got.latent - truth).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 3
    assert math.log2(errors[1] / errors[2]) > 3.5


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_fresh_probes_are_unbiased_and_groups_know_their_error(rows):
    """300 repetitions on one sample: the mean within 4 standard errors of the exact value, and
    the reported standard error that of the scatter.
    """
    sde, data = VP(), correlated(6)
    x = data.sample(1, torch.Generator().manual_seed(1)).expand(300, -1)
    denoiser = data.denoiser(sde)
    exact = path_log_likelihood(denoiser, x[:1], nodes=24).log_prob
    signs = rademacher(x, 12, torch.Generator().manual_seed(2))
    got = path_log_likelihood(denoiser, x, Orthogonal(signs, rows), nodes=24)
    scatter = got.log_prob.std()
    assert abs(got.log_prob.mean() - exact) < 4 * scatter / math.sqrt(300)
    told = got.standard_error.square().mean().sqrt()
    assert told == pytest.approx(float(scatter), rel=0.25)


def test_a_whole_set_of_directions_at_a_node_is_exact():
    sde, data = EDM(), correlated(8)
    x = data.sample(3, torch.Generator().manual_seed(3))
    signs = rademacher(x, 1, torch.Generator().manual_seed(4))
    exact = path_log_likelihood(data.denoiser(sde), x, nodes=16, tolerance=math.inf)
    got = path_log_likelihood(
        data.denoiser(sde), x, Orthogonal(signs, 8), nodes=16, tolerance=math.inf
    )
    torch.testing.assert_close(got.log_prob, exact.log_prob, rtol=1e-10, atol=1e-9)


def test_precision_of_one_sample():
    """Rotated Gaussian and mixture in 64 dimensions: at most 1 nat rms with 4 probes a node."""
    g = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=F64)).Q
    stds = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0]).double().repeat_interleave(8)
    one = Mixture(torch.ones(1).double(), torch.zeros(1, 64).double(), stds[None])
    means = 0.5 * torch.randn(10, 64, generator=g, dtype=F64)
    widths = 0.02 * 20 ** torch.rand(10, 64, generator=g, dtype=F64)
    for data in (one, Mixture(torch.ones(10).double(), means, widths)):
        sde = VP()
        flat = data.denoiser(sde)
        denoiser = Denoiser(sde, lambda x, t, flat=flat: flat(x @ turn, t) @ turn.T)
        t0 = at(sde, "t_min")
        y = data.sample(32, torch.Generator().manual_seed(6))
        z = torch.randn(32, 64, generator=g, dtype=F64)
        x = (sde.alpha(t0) * y + sde.sigma(t0) * z) @ turn.T
        prior = lambda x, data=data: data.log_prob(x @ turn, sde, at(sde, "t_max"))  # noqa: E731, B023
        signs = rademacher(x, 1, torch.Generator().manual_seed(7))
        got = path_log_likelihood(denoiser, x, Orthogonal(signs, 4), prior=prior, nodes=80)
        error = got.log_prob - data.log_prob(x @ turn, sde, t0)
        assert error.square().mean().sqrt() < 1


def test_batch_mates_never_change_a_value():
    sde, data = VP(), correlated(4)
    x = data.sample(9, torch.Generator().manual_seed(8)).reshape(9, 1, 2, 2)
    image = replace(data, mean=data.mean.reshape(1, 2, 2))
    signs = rademacher(x, 2, torch.Generator().manual_seed(9))
    whole = path_log_likelihood(image.denoiser(sde), x, Orthogonal(signs), nodes=16)
    for i in (0, 4, 8):
        alone = path_log_likelihood(
            image.denoiser(sde), x[i : i + 1], Orthogonal(signs[:, i : i + 1]), nodes=16
        )
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[i], rtol=0, atol=1e-9)


def test_the_quadrature_is_exact_for_polynomials_and_fast_for_others():
    for n in (12, 13, 40):
        u = torch.arange(n + 1, dtype=F64)
        for power in range(6):
            exact = n ** (power + 1) / (power + 1)
            assert float(gregory(n) @ u**power) == pytest.approx(exact, rel=1e-12)
    gaps = []
    for n in (20, 40):
        u = torch.linspace(0, 5, n + 1, dtype=F64)
        gaps.append(abs(float(gregory(n) @ (-u).exp()) * 5 / n + math.expm1(-5)))
    assert math.log2(gaps[0] / gaps[1]) > 6


def test_hutch_plus_plus_is_unbiased_and_exact_in_low_rank():
    g = torch.Generator().manual_seed(10)
    low = torch.randn(12, 2, generator=g, dtype=F64) @ torch.randn(2, 12, generator=g, dtype=F64)
    full = low + 0.2 * torch.randn(12, 12, generator=g, dtype=F64)
    x = torch.randn(400, 12, generator=g, dtype=F64)
    probes = lambda: rademacher(x, 3, g)  # noqa: E731
    for matrix, low_rank in ((low, True), (full, False)):
        value, found = HutchPlusPlus(probes(), probes())(lambda x, m=matrix: x @ m.T, x)
        torch.testing.assert_close(value, x @ matrix.T)
        error = found.mean(0) - matrix.trace()
        if low_rank:
            assert error.abs().max() < 1e-9
        else:
            assert abs(error.mean()) < 4 * error.std() / math.sqrt(400)
            plain = HutchPlusPlus(probes(), probes())
            assert error.std() < rademacher_scatter(full, x, g)
            assert plain.estimates == 3


def rademacher_scatter(matrix, x, g):
    """The deviation of Hutchinson's estimate from as many products, 9."""
    v = rademacher(x, 9, g)
    return (v * (v @ matrix.T)).sum(2).mean(0).std()


def test_bad_arguments():
    sde, data = VP(), correlated(3)
    x = data.sample(2)
    with pytest.raises(ValueError, match="nodes >= 12"):
        path_log_likelihood(data.denoiser(sde), x, nodes=11)
    with pytest.raises(ValueError, match="between >= 1"):
        path_log_likelihood(data.denoiser(sde), x, between=0)
    with pytest.raises(ValueError, match="rows >= 1"):
        Orthogonal(rademacher(x), 0)
    with pytest.raises(ValueError, match="use the exact divergence"):
        HutchPlusPlus(rademacher(x, 4), rademacher(x, 4))
