"""Laws of a picture given the output of a decoder: probabilities, densities and gradients."""

import math

import pytest
import torch

from scoresde.data import Scaling
from scoresde.latent import laws

F64 = torch.float64
LAWS = [laws.Gaussian(), laws.Logistic()]
MEANS = [0.0, 0.31, -1.0, 0.999, 3.0, -50.0, 1e5]
LOG_SCALES = [-30.0, -7.0, -3.0, 0.0, 4.0, 10.0, 25.0]


def output(mean, log_scale, n=1, dtype=F64):
    """The output of a decoder (n, 2, 1, 1) with this mean and, before the floor, log scale."""
    return torch.tensor([mean, log_scale], dtype=dtype).view(1, 2, 1, 1).repeat(n, 1, 1, 1)


def levels(n, dtype=torch.int32):
    return torch.arange(n, dtype=dtype).view(n, 1, 1, 1)


def density(law, x, mean, log_scale):
    """Of real numbers (n,)."""
    return law.log_prob(output(mean, log_scale, len(x)), x.view(-1, 1, 1, 1), Scaling())


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("n", [2, 3, 17, 256, 65536])
def test_the_probabilities_of_all_levels_add_up_to_one(law, n):
    for mean in MEANS:
        for log_scale in LOG_SCALES:
            p = law.log_prob(output(mean, log_scale, n), levels(n), Scaling(n)).exp()
            assert float(p.sum()) == pytest.approx(1, abs=1e-12), (mean, log_scale)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize(("mean", "log_scale"), [(0.2, -2.0), (-1.5, 0.0), (0.9, -6.0)])
def test_a_level_has_the_integral_of_the_density_over_it(law, mean, log_scale):
    """By Gauss and Legendre, and by the trapezoid rule over all real numbers, 1."""
    from numpy.polynomial.legendre import leggauss

    scaling, k = Scaling(16), levels(16)
    found = law.log_prob(output(mean, log_scale, 16), k, scaling)
    nodes, weights = (torch.from_numpy(part) for part in leggauss(400))
    lower = scaling.low + scaling.step * k.flatten().double()
    x = lower[1:-1, None] + scaling.step * (nodes + 1) / 2
    each = density(law, x.flatten(), mean, log_scale).view(14, -1) + weights.log()
    inside = each.logsumexp(1) + math.log(scaling.step / 2)
    assert torch.allclose(inside, found[1:-1], rtol=1e-12, atol=1e-9)
    scale = float(law.parts(output(mean, log_scale))[1].exp())
    x = torch.linspace(mean - 50 * scale, mean + 50 * scale, 20001, dtype=F64)
    total = torch.trapezoid(density(law, x, mean, log_scale).exp(), x)
    assert float(total) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_density_is_in_the_units_of_the_data(law):
    """The same numbers in other units have a density that is smaller by the unit."""
    x = torch.tensor([0.3, -2.0], dtype=F64).view(-1, 1, 1, 1)
    out = output(0.1, 0.2, 2)
    scaled = law.log_prob(out, 5 + 20 * x, Scaling(None, shift=(5.0,), scale=(20.0,)))
    assert torch.allclose(scaled, law.log_prob(out, x, Scaling()) - math.log(20), atol=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_narrow_levels_have_the_density_times_their_width(law):
    """Of 2^31 levels, also in far tails, and of scales far wider than the range."""
    scaling = Scaling(2**31)
    k = torch.tensor([2**29, 2**30, 2**31 - 2], dtype=torch.int32).view(-1, 1, 1, 1)
    for mean, log_scale in [(0.0, -3.0), (0.7, -1.0), (-30.0, 0.0), (0.2, 6.0), (0.0, 20.0)]:
        out = output(mean, log_scale, 3)
        middles = scaling.low + scaling.step * (k.double() + 0.5)
        want = law.log_prob(out, middles, Scaling()) + math.log(scaling.step)
        found = law.log_prob(out, k, scaling)
        assert torch.allclose(found, want, rtol=1e-9, atol=1e-8), (mean, log_scale)


def test_series_and_difference_of_the_normal_law_meet():
    """At the width where one takes over from the other, over the whole line."""
    a = torch.linspace(-40, 40, 401, dtype=F64)
    law = laws.Gaussian()
    below, above = (law.log_interval(a, torch.full_like(a, laws.NARROW * f)) for f in (0.99, 1.01))
    change = math.log(1.01 / 0.99) - 0.01 * laws.NARROW * a
    assert torch.allclose(above - below, change, rtol=0, atol=2e-8)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_laws_are_symmetric(law):
    """The mirrored picture has the same probability under the mirrored mean."""
    k = levels(32)
    for mean, log_scale in [(0.4, -4.0), (7.0, -1.0), (-0.03, 12.0)]:
        found = law.log_prob(output(mean, log_scale, 32), k, Scaling(32))
        mirrored = law.log_prob(output(-mean, log_scale, 32), 31 - k, Scaling(32))
        assert torch.allclose(found, mirrored, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("n", [2, 256, 2**31])
def test_single_precision_of_the_output_costs_its_rounding_only(law, n):
    """float32 outputs: the value is that of the rounded output in float64."""
    k = (torch.linspace(0, 1, 50, dtype=F64) * (n - 1)).long().to(torch.int32).view(50, 1, 1, 1)
    for mean, log_scale in [(0.1234567, -6.5), (-0.7, 0.3), (30.0, -7.0)]:
        single = output(mean, log_scale, 50, torch.float32)
        found, want = (law.log_prob(out, k, Scaling(n)) for out in (single, single.double()))
        assert found.dtype == F64
        assert torch.equal(found, want)
    x = torch.linspace(-3, 3, 50)
    assert density(law, x, 0.1, 0.2).dtype == F64


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("n", [2, 256, 2**16, None])
def test_gradients_are_those_of_finite_differences(law, n):
    """At the outermost levels and within, far away, and for wide and narrow scales."""
    scaling = Scaling(n)
    for mean, log_scale in [(0.2, -3.0), (-1.4, -6.0), (4.0, 1.0), (0.1, 8.0), (0.5, -12.0)]:
        for k in (0, (n or 2) // 2, (n or 2) - 1):
            at = torch.tensor([[[[k]]]], dtype=torch.int32 if n else F64)
            out = output(mean, log_scale).requires_grad_()
            (found,) = torch.autograd.grad(law.log_prob(out, at, scaling).sum(), out)
            assert found.isfinite().all()
            for i, part in enumerate(found.flatten()):
                shift = torch.zeros(1, 2, 1, 1, dtype=F64)
                shift[0, i] = h = 1e-4
                ends = [
                    float(law.log_prob(out.detach() + s * shift, at, scaling))
                    for s in (-2, -1, 1, 2)
                ]
                want = (8 * (ends[2] - ends[1]) - (ends[3] - ends[0])) / (12 * h)
                assert float(part) == pytest.approx(want, rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_sure_decoder_has_no_bits_for_what_it_says(law):
    """The extremes: at the floor of the scale, black is certain, and white costs finite nats."""
    out = output(-1.2, -1e4, 2, torch.float32)
    black, white = law.log_prob(out, torch.tensor([0, 255]).view(2, 1, 1, 1), Scaling(256))
    assert float(black) == pytest.approx(0, abs=1e-12)
    assert -1e8 < float(white) < -1000


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_numbers_of_a_picture_are_independent(law):
    g = torch.Generator().manual_seed(0)
    k = torch.randint(0, 8, (3, 2, 4, 5), generator=g)
    out = torch.randn(3, 4, 4, 5, generator=g, dtype=F64)
    whole = law.log_prob(out, k, Scaling(8))
    mean, log_scale = out.chunk(2, 1)
    alone = torch.stack([mean.flatten(), log_scale.flatten()], 1).view(-1, 2, 1, 1)
    each = law.log_prob(alone, k.reshape(-1, 1, 1, 1), Scaling(8))
    assert torch.allclose(whole, each.view(3, -1).sum(1), atol=1e-10)
    assert law.mean(out).equal(mean)
