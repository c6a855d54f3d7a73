"""Likelihoods against exact densities."""

import gc
import math
import weakref

import pytest
import torch

from scoresde import EDM, VP, Denoiser, ScoreModel, SubVP, bits_per_dim, log_likelihood
from scoresde import parameterization as params
from scoresde.likelihood import (
    Exact,
    Hutchinson,
    adaptive_log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood.divergence import EXACT, HutchPlusPlus, rademacher
from scoresde.likelihood.estimators import HutchinsonTrace, HutchPlusPlusTrace
from scoresde.likelihood.flow import LogLikelihood, standard_error_of
from scoresde.nn import UNet
from scoresde.samplers import per_sample_noise
from scoresde.testing import Gaussian, Mixture, grid25
from tests.laws.test_samplers import ExactNetwork

F64 = torch.float64


def at(sde, name):
    return torch.tensor(getattr(sde, name), dtype=F64)


def test_exact_gaussian_likelihood(sde, gaussian):
    """Within 1e-5 nats per dimension of the closed form, given the true terminal marginal."""
    x = gaussian.sample(32, torch.Generator().manual_seed(0))

    def terminal(x):
        return gaussian.log_prob(x, sde, at(sde, "t_max"))

    got = log_likelihood(gaussian.denoiser(sde), x, EXACT, prior=terminal)
    truth = gaussian.log_prob(x, sde, at(sde, "t_min"))
    assert (got.log_prob - truth).abs().max() < 1e-5 * 4
    assert (got.standard_error == 0).all()
    latent = gaussian.flow(x, sde, at(sde, "t_min"), at(sde, "t_max"))
    torch.testing.assert_close(got.latent, latent, rtol=1e-4, atol=1e-4)


def test_prior_mismatch_is_what_is_left(sde, gaussian):
    """With the process's own prior the error is exactly the difference of terminal densities."""
    x = gaussian.sample(8, torch.Generator().manual_seed(0))
    denoiser = gaussian.denoiser(sde)

    def true(x):
        return gaussian.log_prob(x, sde, at(sde, "t_max"))

    mine, given = log_likelihood(denoiser, x), log_likelihood(denoiser, x, prior=true)
    own = sde.prior().log_prob(mine.latent).sum(1)
    torch.testing.assert_close(mine.log_prob - given.log_prob, own - true(mine.latent))


@pytest.mark.parametrize("sde", [VP(), SubVP(), EDM()], ids=lambda s: type(s).__name__)
def test_mixture_likelihood_in_any_shape(sde):
    plane = grid25(std=0.1)
    data = Mixture(plane.weights, plane.means.reshape(25, 1, 2, 1), plane.stds)
    x = data.sample(24, torch.Generator().manual_seed(1))

    def prior(x):
        return data.log_prob(x, sde, at(sde, "t_max"))

    got = log_likelihood(data.denoiser(sde), x, prior=prior, rtol=1e-8, atol=1e-8)
    truth = data.log_prob(x, sde, at(sde, "t_min"))
    torch.testing.assert_close(got.log_prob, truth, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "flow", "edm"])
def test_through_every_parameterisation(sde, name, gaussian):
    p = params.edm() if name == "edm" else getattr(params, name)
    model = ScoreModel(ExactNetwork(gaussian, sde, p), sde, p)
    x = gaussian.sample(4, torch.Generator().manual_seed(0))

    def prior(x):
        return gaussian.log_prob(x, sde, at(sde, "t_max"))

    got = log_likelihood(model.denoiser(), x, prior=prior, rtol=1e-5, atol=1e-5)
    truth = gaussian.log_prob(x, sde, at(sde, "t_min"))
    assert (got.log_prob - truth).abs().max() < 1e-4


def test_exact_divergence_is_the_trace_within_any_budget():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)

    def field(x):
        return (torch.sin(x.flatten(1)) @ matrix.T).reshape(x.shape)

    truth = (x.flatten(1).cos() * matrix.diag()).sum(1)
    for budget in (1, 500, 10**9, None):
        value, trace = Exact(budget)(field, x)
        torch.testing.assert_close(trace, truth[None])
        torch.testing.assert_close(value, field(x))


def test_a_budget_is_kept_in_memory():
    """What is alive at once grows with the budget, and a direction at a time needs the least."""
    kept = []

    class Watched(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, v):
            kept.append(1)
            return v

    def field(x):
        return torch.sin(Watched.apply(x.sin()))

    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    passes = {}
    for budget in (1, 4 * x.nbytes, 10**9):  # one activation of the size of x is kept
        kept.clear()
        Exact(budget)(field, x)
        passes[budget] = len(kept)
    assert list(passes.values()) == [16, 4, 1]
    with pytest.raises(ValueError, match="budget >= 1"):
        Exact(0)


@pytest.mark.parametrize("attention", [(), (0,)])
def test_many_products_at_once_are_those_of_a_loop(attention):
    """Through convolutions, normalisations and fused attention, in any state of gradients."""
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=attention, dropout=0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)

    def field(x):
        return net(x.float(), x.new_zeros(len(x)).float()).to(x)

    x = torch.randn(2, 1, 4, 4, dtype=F64)
    _, looped = Exact(1)(field, x)
    with torch.inference_mode():
        value, trace = Exact(10**9)(field, x)
    torch.testing.assert_close(trace, looped, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, field(x).detach())


class Unbatched(torch.autograd.Function):
    """Cubes, whose backward pass vmap cannot batch."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, v):
        (x,) = context.saved_tensors
        if not v.is_contiguous(memory_format=torch.channels_last):
            v = v.contiguous()
        return 3 * x**2 * v


def test_probes_of_a_network_that_vmap_cannot_batch():
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    probes = torch.randn(2, *x.shape, dtype=torch.float64)
    _, found = Hutchinson(probes)(Unbatched.apply, x)
    torch.testing.assert_close(found, (3 * x**2 * probes**2).flatten(2).sum(2))


def test_hutchinson_is_unbiased_and_knows_its_error():
    """A correlated Gaussian (on a diagonal Jacobian sign probes would be exact and prove
    nothing).
    """
    sde = VP()
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=F64))[0]
    cov = basis @ torch.diag(torch.logspace(-1.5, 0.3, 8, dtype=F64)) @ basis.T
    data = Gaussian(torch.zeros(8, dtype=F64), cov)
    x = data.sample(64, g)
    truth = log_likelihood(data.denoiser(sde), x).log_prob
    got = log_likelihood(
        data.denoiser(sde), x, Hutchinson(rademacher(x, 16, g)), method="rk4", steps=60
    )
    z = (got.log_prob - truth) / got.standard_error
    assert got.standard_error.mean() > 0.05
    assert abs(z.mean()) < 4 / math.sqrt(64)
    assert 0.7 < z.std() < 1.4
    single = log_likelihood(data.denoiser(sde), x, Hutchinson(rademacher(x, 1, g)))
    assert single.standard_error.isnan().all()


def test_bits_per_dim_of_a_uniform_density_is_its_bit_depth():
    """Uniform over 256 levels is 8 bits whatever the scaling; over 17 it is log2 17."""
    for levels in (2, 17, 256, 65536):
        for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
            scale = (high - low) / levels
            log_prob = torch.tensor([-12 * math.log(high - low)])
            bits = bits_per_dim(log_prob, (3, 2, 2), scale)
            assert float(bits) == pytest.approx(math.log2(levels), rel=1e-5)


def test_a_float32_batch_is_solved_in_float64():
    sde, data = VP(), Gaussian(torch.zeros(2), torch.tensor(0.25))
    x = data.sample(4, torch.Generator().manual_seed(0))
    got = log_likelihood(data.denoiser(sde), x)
    assert got.log_prob.dtype == F64
    truth = data.log_prob(x.double(), sde, at(sde, "t_min"))
    torch.testing.assert_close(got.log_prob, truth, rtol=0, atol=2e-3)


def test_works_in_inference_mode(gaussian):
    sde, x = VP(), gaussian.sample(3, torch.Generator().manual_seed(0))
    outside = log_likelihood(gaussian.denoiser(sde), x).log_prob
    with torch.inference_mode():
        inside = log_likelihood(gaussian.denoiser(sde), x).log_prob
    assert torch.equal(inside, outside)


def test_at_the_terminal_time_it_is_the_prior(gaussian):
    sde, x = VP(), gaussian.sample(3, torch.Generator().manual_seed(0))
    found = log_likelihood(gaussian.denoiser(sde), x, t0=sde.t_max)
    torch.testing.assert_close(found.log_prob, sde.prior().log_prob(x).sum(1))


def test_bad_input():
    data = Gaussian(torch.zeros(2), torch.tensor(0.25))
    x = data.sample(4)
    with pytest.raises(ValueError, match="unknown ODE method"):
        log_likelihood(data.denoiser(VP()), x, method="simpson")
    with pytest.raises(ValueError, match="probes >= 1, got probes=0"):
        rademacher(x, 0)
    nan = Denoiser(VP(), lambda x, t: x * math.nan)
    with pytest.raises(RuntimeError, match="torchdiffeq"):
        log_likelihood(nan, x)


def test_the_exact_trace_keeps_no_graph():
    """What a pass saved is freed with it: outputs that their own node keeps are where it leaks."""
    freed = []

    class Token:
        pass

    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.token = Token()
            freed.append(weakref.ref(ctx.token))
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, trace = Exact()(Exp.apply, x)
    assert torch.allclose(trace[0], x.exp().sum(1))
    gc.collect()
    assert freed[0]() is None


@pytest.mark.parametrize("solve", [log_likelihood, adaptive_log_likelihood])
@pytest.mark.parametrize("apart", [0, 1e-10, 1e-7, 1e-6])
@pytest.mark.parametrize("sign", [1, -1])
def test_parallel_directions_of_a_sketch_stall_no_solver(solve, apart, sign):
    """One sample has a second column (nearly) parallel to its first, through a float32 network.

    The column is left out, and the estimate stays that of the first.
    """
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=F64)).Q
    variances = 10 ** torch.linspace(0, -4, 8, dtype=F64)
    data = Gaussian(torch.zeros(8, dtype=F64), (basis * variances) @ basis.T)
    exact = data.denoiser(VP())
    coarse = Denoiser(VP(), lambda x, t: exact(x.float(), t).to(x))
    x = data.sample(4, torch.Generator().manual_seed(3))
    sketch, other, probes = (rademacher(x, n, g) for n in (1, 1, 2))
    options = {"rtol": 1e-4, "atol": 1e-4, "max_nfe": 1000}
    if solve is log_likelihood:
        options["method"] = "dopri5"
    one = solve(coarse, x, HutchPlusPlus(sketch, probes), **options)
    shift = torch.randn(x.shape, generator=g, dtype=F64)
    other[0, 0] = (sign * sketch + apart * shift)[0, 0]
    two = solve(coarse, x, HutchPlusPlus(torch.cat([sketch, other]), probes), **options)
    torch.testing.assert_close(two.log_prob[0], one.log_prob[0], rtol=1e-3, atol=1e-2)
    assert two.nfe <= 2 * one.nfe


@pytest.mark.parametrize("solve", [log_likelihood, adaptive_log_likelihood, path_log_likelihood])
def test_scalar_samples(solve):
    """x (B,) has the log-density of the same numbers as x (B, 1)."""
    data = Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), 0.25, dtype=F64))
    columns = data.denoiser(VP())
    scalars = Denoiser(VP(), lambda x, t: columns.predict(x[:, None], t)[:, 0])
    x = torch.linspace(-1, 1, 5, dtype=F64)
    expected = solve(columns, x[:, None])
    torch.testing.assert_close(solve(scalars, x).log_prob, expected.log_prob)
    assert solve(scalars, x).latent.shape == (5,)


class Cut(torch.nn.Module):
    """A linear network whose output has lost its graph to the input."""

    def __init__(self, cut):
        super().__init__()
        self.net, self.cut = torch.nn.Linear(2, 2), cut

    def forward(self, x, noise):
        return self.cut(self.net, x)


def without_grad(net, x):
    with torch.no_grad():
        return net(x)


def in_inference(net, x):
    with torch.inference_mode():
        return net(x)


CUTS = [without_grad, in_inference, lambda net, x: net(x).detach(), lambda net, x: x.detach()]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("solve", [log_likelihood, adaptive_log_likelihood, path_log_likelihood])
def test_a_network_without_a_graph_is_refused(solve, name, cut):
    """Its divergence would silently be that of skip x alone."""
    p = params.edm() if name == "edm" else getattr(params, name)
    model, x = ScoreModel(Cut(cut), VP(), p), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"remove torch\.no_grad"):
        solve(model.denoiser(), x)
    with torch.no_grad():  # where no gradient is wanted, none is missed
        assert model.denoiser()(x, torch.tensor(0.5)).isfinite().all()


@pytest.mark.parametrize("divergence", [Exact(), Exact(1)])
@pytest.mark.parametrize("solve", [log_likelihood, adaptive_log_likelihood])
@pytest.mark.parametrize("cut", [*CUTS, lambda net, x: net(x.detach())])
def test_a_denoiser_without_a_graph_is_refused(solve, divergence, cut):
    net, x = torch.nn.Linear(2, 2).double(), torch.zeros(2, 2)
    for probing in (divergence, Hutchinson(rademacher(x, 1)), Hutchinson(rademacher(x, 3))):
        with pytest.raises(ValueError, match="no autograd graph to x"):
            solve(Denoiser(VP(), lambda x, t: cut(net, x)), x, probing)


def test_a_constant_denoiser_is_the_law_of_a_point():
    """x0_hat = c + 0 x has no divergence, and its density is that of N(alpha c, sigma^2)."""
    sde, c = VP(), torch.tensor([0.5, -0.2], dtype=F64)
    t = at(sde, "t_min")
    x = float(sde.alpha(t)) * c + float(sde.sigma(t)) * torch.tensor([[0.3, 1.0]], dtype=F64)
    found = log_likelihood(Denoiser(sde, lambda x, t: c + 0 * x), x)
    law = torch.distributions.Normal(sde.alpha(t) * c, sde.sigma(t))
    torch.testing.assert_close(found.log_prob, law.log_prob(x).sum(1), rtol=1e-4, atol=1e-4)


# --- intervals over probes ---


def drawn(law, probes, repeats, g):
    """Estimates (probes, repeats) of a number that is 0, as of Jacobians that probes see badly."""
    shape = (probes, repeats)
    signs = 2.0 * torch.randint(0, 2, (*shape, 3), generator=g) - 1
    z = torch.randn(shape, generator=g, dtype=F64)
    return {
        "normal": z,
        "a pair": signs[..., 0] * signs[..., 1] + 0 * z,
        "a pair and a little more": signs[..., 0] * signs[..., 1] + 1e-3 * z,
        "three": (signs.sum(-1) ** 2 - 3) / 2 + 1e-3 * z,
        "rank one": z**2 - 1,
    }[law]


@pytest.mark.parametrize(
    "law", ["normal", "a pair", "a pair and a little more", "three", "rank one"]
)
@pytest.mark.parametrize("probes", [1, 2, 3, 4, 8, 10, 16, 32])
def test_an_interval_covers_or_is_unknown(law, probes):
    n = 4000
    gain = drawn(law, probes, n, torch.Generator().manual_seed(probes))
    error = standard_error_of(gain, Hutchinson(torch.zeros(probes, 1, 1)))
    found = LogLikelihood(gain.mean(0), gain, 0, error, error, probes)
    low, high = found.interval()
    unknown = low.isnan() & high.isnan()
    assert int((((low <= 0) & (high >= 0)) | unknown).sum()) >= 0.93 * n
    assert unknown.all() if probes < 10 else unknown.sum() <= 0.01 * n


@pytest.mark.parametrize("dim", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("probes", [1, 2, 3, 4, 8, 12])
def test_intervals_of_correlated_data_cover_or_are_unknown(dim, probes):
    """Of equally correlated data, whose estimates are the most skewed; as many probes as
    dimensions are exact.
    """
    sde, n = VP(), 300
    cov = torch.full((dim, dim), 0.9, dtype=F64).fill_diagonal_(1.0)
    data = Gaussian(torch.zeros(dim, dtype=F64), cov)
    x = data.sample(1, torch.Generator().manual_seed(dim)).expand(n, dim)
    options = {"method": "rk4", "steps": 12, "t0": 0.01}
    exact = log_likelihood(data.denoiser(sde), x[:1], EXACT, **options)
    probing = HutchinsonTrace(probes).held(x, per_sample_noise(range(n)))
    found = log_likelihood(data.denoiser(sde), x, probing, **options)
    low, high = found.interval()
    if probes >= dim:
        assert not probing.random
        assert (found.standard_error == 0).all()
        torch.testing.assert_close(low, exact.log_prob.expand(n))
    elif probes < 10:
        assert found.standard_error.isnan().all()
        assert low.isnan().all()
    else:
        inside = (low <= exact.log_prob) & (exact.log_prob <= high)
        assert int((inside | low.isnan()).sum()) >= 0.93 * n


@pytest.mark.parametrize("probes", [1, 2])
def test_a_sketch_that_costs_as_much_as_the_exact_trace_is_it(probes):
    x = torch.zeros(2, 3 * probes)
    assert not HutchPlusPlusTrace(probes).held(x, per_sample_noise(range(2))).random
    wider = torch.zeros(2, 3 * probes + 1)
    assert HutchPlusPlusTrace(probes).held(wider, per_sample_noise(range(2))).random
