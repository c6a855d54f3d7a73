"""The bound of a picture through its latents, where its value is known."""

import math

import pytest
import torch

from scoresde import VP, Denoiser
from scoresde.data import Scaling
from scoresde.latent import KLAutoencoder
from scoresde.latent.codec import Codec, Encoded
from scoresde.latent.laws import Logistic
from scoresde.latent.likelihood import LatentEstimator
from scoresde.likelihood import FlowEstimator
from scoresde.likelihood.dequantise import importance_weighted
from scoresde.likelihood.estimators import GridFlow, Variational
from scoresde.samplers import per_sample_noise
from scoresde.testing import Gaussian, LinearCodec

F64 = torch.float64
REAL = Scaling()
EXACT = FlowEstimator(GridFlow(64, None))
D, BITS = 16, 16 * math.log(2)
TWO_MILLIBITS = 0.002 * BITS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def latents(d=3):
    """A correlated law of standardised latents."""
    a = normal(d, d, seed=1)
    return Gaussian(normal(d, 1, 1, seed=2), a @ a.T / d + 0.2 * torch.eye(d))


def raw(codec, law, sde):
    """The law of z (d,) that a model has at t_0."""
    t0 = torch.tensor(sde.t_min, dtype=F64)
    alpha, sigma = float(sde.alpha(t0)), float(sde.sigma(t0))
    s = codec.latents_std
    cov = alpha**2 * law.cov + sigma**2 * torch.eye(len(s))
    return Gaussian(codec.latents_mean + s * alpha * law.mean.flatten(), s[:, None] * cov * s)


def linear(std=0.2, d=3, scale=0.4):
    """Its encoder is near the posterior mean, and its noise is independent, as no posterior is."""
    w, offset = normal(D, d, seed=3) / 2, normal(D, seed=5)
    a = torch.linalg.solve(w.T @ w + 2 * scale**2 * torch.eye(d), w.T)
    codec = LinearCodec(
        a,
        w,
        std * (0.5 + torch.arange(d, dtype=F64) / d),
        scale,
        shift=0.05 * normal(d, seed=4) - a @ offset,
        offset=offset,
    )
    codec.latents_mean.copy_(normal(d, seed=6))
    codec.latents_std.copy_(0.5 + torch.arange(d) / 2)
    return codec


def posterior(sde):
    """A codec whose decoder has orthogonal columns, and whose encoder is its true posterior."""
    d, scale = 3, 0.4
    w = torch.linalg.qr(normal(D, d, seed=3))[0] * torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    law = Gaussian(normal(d, 1, 1, seed=2), torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=F64)))
    codec = LinearCodec(w.T.clone(), w, torch.ones(d, dtype=F64), scale)
    codec.latents_std.copy_(torch.tensor([0.5, 1.0, 2.0]))
    prior = raw(codec, law, sde)
    variance = 1 / (1 / prior.cov.diagonal() + w.square().sum(0) / scale**2)
    codec.std = variance.sqrt()
    codec.encoder = variance[:, None] * w.T / scale**2
    codec.shift = variance * prior.mean / prior.cov.diagonal()
    return codec, law


def pictures(codec, law, n, seed=7):
    return codec.pictures(law).sample(n, generator(seed)).reshape(n, 1, 4, 4)


def drawn(estimator, denoiser, x, repeats, scaling=REAL):
    """Estimates of every draw: log P (K, B), distortion, entropy."""
    many = x.repeat(repeats, 1, 1, 1)
    found = estimator(denoiser, many, scaling, per_sample_noise(range(len(many))))
    parts = (found.log_prob, found.distortion, found.entropy)
    return tuple(part.view(repeats, len(x)) for part in parts)


def kl(mean, std, law):
    """KL(N(mean, std^2) | law) (B,) for a Gaussian law (d,)."""
    q = [torch.distributions.MultivariateNormal(m, torch.diag(std**2)) for m in mean]
    p = torch.distributions.MultivariateNormal(law.mean, law.cov)
    return torch.stack([torch.distributions.kl_divergence(each, p) for each in q])


def test_the_bound_is_its_closed_form_and_never_above_the_exact_value():
    sde, codec, law = VP(), linear(), latents()
    prior = raw(codec, law, sde)
    x = pictures(codec, prior, 50)
    exact, closed = codec.pictures(prior).log_prob(x.flatten(1)), codec.bound(x, prior)
    values, distortion, entropy = drawn(LatentEstimator(codec, EXACT), law.denoiser(sde), x, 300)
    error = values.std(0) / math.sqrt(len(values))
    assert float((values.mean(0) - closed).mean().abs()) < TWO_MILLIBITS
    assert float(((values.mean(0) - closed) / error).square().mean()) == pytest.approx(1, abs=0.6)
    assert (values.mean(0) < exact + 4 * error).all()
    assert float((exact - closed).min()) > 0
    # The rate is the divergence of q from the prior that was learned.
    rate = (-values - distortion).mean(0)
    mean = codec.encode(x).mean.flatten(1)
    assert float((rate - kl(mean, codec.std, prior)).mean().abs()) < TWO_MILLIBITS
    known = (codec.std.log() + (1 + math.log(2 * math.pi)) / 2).sum()
    assert float(entropy.mean() - known) == pytest.approx(0, abs=0.05)


def test_the_gap_is_the_divergence_of_the_encoder_from_the_posterior():
    """log p(x) - bound = KL(q | p(z | x)), without any draw."""
    sde, codec = VP(), linear()
    prior = raw(codec, latents(), sde)
    x = pictures(codec, prior, 20)
    precision = torch.linalg.inv(prior.cov) + codec.decoder.T @ codec.decoder / codec.scale**2
    cov = torch.linalg.inv(precision)
    away = (x.flatten(1) - codec.offset) @ codec.decoder / codec.scale**2
    means = (away + torch.linalg.inv(prior.cov) @ prior.mean) @ cov
    want = torch.cat(
        [
            kl(q[None], codec.std, Gaussian(m, cov))
            for q, m in zip(codec.encode(x).mean.flatten(1), means, strict=True)
        ]
    )
    gap = codec.pictures(prior).log_prob(x.flatten(1)) - codec.bound(x, prior)
    torch.testing.assert_close(gap, want, rtol=1e-9, atol=1e-9)


def test_with_the_true_posterior_every_draw_is_exact():
    sde = VP()
    codec, law = posterior(sde)
    prior = raw(codec, law, sde)
    x = pictures(codec, prior, 30)
    exact = codec.pictures(prior).log_prob(x.flatten(1))
    torch.testing.assert_close(codec.bound(x, prior), exact, rtol=0, atol=1e-9)
    values, *_ = drawn(LatentEstimator(codec, EXACT), law.denoiser(sde), x, 3)
    assert float((values - exact).abs().max()) < TWO_MILLIBITS
    # And in float32, as networks are.
    single = codec.float()
    for name in ("encoder", "decoder", "std", "shift", "offset"):
        setattr(single, name, getattr(single, name).float())
    values, *_ = drawn(LatentEstimator(single, EXACT), law.denoiser(sde), x, 3)
    assert float((values - exact).abs().max()) < TWO_MILLIBITS


def test_more_draws_tighten_the_importance_weighted_bound():
    sde, codec, law = VP(), linear(std=0.3), latents()  # wider than the posterior
    prior = raw(codec, law, sde)
    x = pictures(codec, prior, 40)
    exact = codec.pictures(prior).log_prob(x.flatten(1))
    values, *_ = drawn(LatentEstimator(codec, EXACT), law.denoiser(sde), x, 512)
    gaps = []
    for k in (1, 8, 64, 512):
        joined = torch.stack([importance_weighted(part) for part in values.split(k)])
        gaps.append(float((exact - joined).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert abs(gaps[3]) < 0.1 < gaps[0] / 5


def test_the_variational_bound_in_place_of_the_density_stays_below():
    sde, codec, law = VP(), linear(), latents()
    prior = raw(codec, law, sde)
    x = pictures(codec, prior, 100)
    estimator = LatentEstimator(codec, Variational(32, 1.0))
    values, *_ = drawn(estimator, law.denoiser(sde), x, 8)
    closed = codec.bound(x, prior)
    error = float((values.mean(0) - closed).std()) / 10
    assert float((values.mean(0) - closed).mean()) < 3 * error
    assert "variational" in estimator.bounds


def test_latents_alone_have_their_own_density():
    sde, codec, law = VP(), linear(), latents()
    prior = raw(codec, law, sde)
    x = pictures(codec, prior, 30)
    codec.std = torch.zeros(3, dtype=F64)
    estimator = LatentEstimator(codec, EXACT, picture=False)
    found = estimator(law.denoiser(sde), x, REAL, per_sample_noise(range(30)))
    want = prior.log_prob(codec.encode(x).mean.flatten(1))
    assert torch.allclose(found.log_prob, want, rtol=0, atol=TWO_MILLIBITS)
    assert found.distortion is found.entropy is None
    assert "picture" not in estimator.bounds


# --- levels, by quadrature ---


class Bent(Codec):
    """One latent for four pixels of 3 levels, decoded by a curve."""

    def __init__(self):
        super().__init__(1, 1, 2, law=Logistic())
        self.double()

    def encode(self, x):
        mean = 0.8 * x.mean((1, 2, 3), keepdim=True)
        return Encoded(mean, 0.5 + 0 * mean)

    def output(self, z):
        z = z.expand(-1, 1, 2, 2)
        place = torch.linspace(0.5, 2, 4, dtype=z.dtype).view(1, 1, 2, 2)
        return torch.cat([torch.tanh(place * z), -1.5 + 0.5 * torch.cos(z * place)], 1)


def test_levels_have_the_bound_of_their_exact_probability():
    sde, codec, scaling = VP(), Bent(), Scaling(3)
    codec.latents_std.fill_(0.7)
    law = Gaussian(torch.full((1, 1, 1), 0.3, dtype=F64), 0.8)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 1, 2, 2)
    prior = raw(codec, Gaussian(law.mean, torch.tensor([[0.8]], dtype=F64)), sde)
    z = torch.linspace(-7, 7, 1001, dtype=F64)
    output = codec.output(z.view(-1, 1, 1, 1))
    weight = prior.log_prob(z[:, None]) + math.log(float(z[1] - z[0]))
    exact = torch.stack(
        [
            (codec.law.log_prob(output, k.expand(len(z), 1, 2, 2), scaling) + weight).logsumexp(0)
            for k in every
        ]
    )
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-9)
    values, *_ = drawn(LatentEstimator(codec, EXACT), law.denoiser(sde), every, 400, scaling)
    error = values.std(0) / math.sqrt(len(values))
    assert (values.mean(0) < exact + 4 * error).all()
    joined = importance_weighted(values)
    weights = (values - values.amax(0)).exp()
    spread = weights.std(0) / weights.mean(0) / math.sqrt(len(values))
    assert (joined < exact + 4 * spread + 1e-3).all()
    assert float((exact - joined).abs().max()) < 0.2
    assert float((exact - joined).mean()) < 0.1 * float((exact - values.mean(0)).mean())


# --- networks ---


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    codec = KLAutoencoder(2, 3, widths=(8,), groups=4, law="logistic", pad=True).eval()
    codec.latents_std.fill_(0.6)
    return codec


def pixels(n=5):
    return torch.randint(0, 17, (n, 2, 5, 7), generator=generator(), dtype=torch.uint8)


def standard(shape=(3, 3, 4)):
    return Gaussian(torch.zeros(shape, dtype=F64), 1.0).denoiser(VP())


@pytest.mark.parametrize("picture", [True, False])
def test_batch_mates_never_change_a_value(network, picture):
    """Nor does the padding count: a picture of 5 x 7 pixels has the numbers of 5 x 7."""
    estimator = LatentEstimator(network, FlowEstimator(GridFlow(12)), picture)
    together = estimator(standard(), pixels(), Scaling(17), per_sample_noise(range(5)))
    alone = estimator(standard(), pixels()[3:4], Scaling(17), per_sample_noise([3]))
    assert torch.allclose(alone.log_prob, together.log_prob[3:4], rtol=0, atol=1e-3)
    other = estimator(standard(), pixels(), Scaling(17), per_sample_noise(range(5, 10)))
    assert not torch.allclose(other.log_prob, together.log_prob, rtol=0, atol=1e-2)
    assert (together.distortion is None) != picture
    if picture:
        # Untrained, it says of each of the 70 numbers about what a wide law says.
        assert 70 * 0.5 < float(together.distortion.mean()) < 70 * 2 * math.log(17)


def test_half_the_effort_is_that_of_the_density_at_the_same_latents(network):
    fine, coarse = LatentEstimator(network, FlowEstimator(GridFlow(128))).halved()
    pair = [
        each(standard(), pixels(), Scaling(17), per_sample_noise(range(5)))
        for each in (fine, coarse)
    ]
    assert torch.equal(pair[0].distortion, pair[1].distortion)
    assert torch.allclose(pair[0].log_prob, pair[1].log_prob, atol=0.02)
    assert LatentEstimator(network, EXACT).halved() is None
    assert fine.start(VP(), Scaling(17)) == VP().t_min


def test_what_has_no_likelihood_says_so(network):
    denoiser = Denoiser(VP(), lambda x, t: x)
    plain = KLAutoencoder(2, 3, widths=(8,), groups=4, pad=True)
    with pytest.raises(ValueError, match=r"no law of a picture .* of=latents"):
        LatentEstimator(plain, EXACT)(denoiser, pixels(), Scaling(17), per_sample_noise(range(5)))
    sure = linear()
    sure.std = torch.zeros(3, dtype=F64)
    with pytest.raises(ValueError, match=r"without noise.*of=latents"):
        LatentEstimator(sure, Variational(2))(
            denoiser, normal(2, 1, 4, 4), REAL, per_sample_noise(range(2))
        )
