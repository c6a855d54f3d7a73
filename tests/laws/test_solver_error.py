"""A path likelihood says how wrong its solver may be, and solves again what is too uncertain."""

import math
from dataclasses import replace

import pytest
import torch

from scoresde import EDM, VE, VP, LinearFlow, SubVP
from scoresde.likelihood import FlowEstimator, path_log_likelihood
from scoresde.likelihood.dequantise import TruncatedNormal
from scoresde.likelihood.divergence import EXACT
from scoresde.likelihood.path import Orthogonal, default_tolerance
from scoresde.likelihood.stiff import stiff_log_likelihood
from scoresde.nn import MLP
from scoresde.parameterization import ScoreModel, v
from scoresde.samplers import per_sample_noise
from scoresde.testing import Gaussian, Mixture, mixture, mostly_black

F64 = torch.float64


def truth(data, x, sde):
    return data.log_prob(x, sde, torch.tensor(sde.t_min, dtype=F64))


def prior_of(data, sde):
    return lambda x: data.log_prob(x, sde, torch.tensor(sde.t_max, dtype=F64))


def narrow(dim, std, seed=0):
    """A mixture of narrow modes, points drawn from it, and points between its modes."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(5, dim, generator=g, dtype=F64) / 2
    data = Mixture(torch.ones(5, dtype=F64), means, torch.full((5,), std, dtype=F64))
    i, j = torch.randint(5, (2, 6), generator=g)
    share = torch.rand(6, 1, generator=g, dtype=F64)
    between = share * means[i] + (1 - share) * means[j]
    between = between + 0.05 * torch.randn(6, dim, generator=g, dtype=F64)
    return data, torch.cat([data.sample(6, g), between])


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=repr)
@pytest.mark.parametrize(("dim", "std"), [(1, 0.01), (2, 0.05), (2, 0.001), (8, 0.05), (32, 0.2)])
def test_the_error_of_a_sharp_density_is_what_the_solver_says(sde, dim, std):
    """Off by hundreds of nats at 64 nodes; by at most 0.05 nats, or 3 times what is said, now."""
    data, x = narrow(dim, std)
    found = path_log_likelihood(data.denoiser(sde), x, prior=prior_of(data, sde), max_nfe=4000)
    error = (found.log_prob - truth(data, x, sde)).abs()
    assert (error <= torch.maximum(torch.tensor(0.05), 3 * found.solver_error)).all()


def test_a_point_between_modes_is_solved_exactly():
    """The first case of all: three modes of deviation 0.05 in the plane."""
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.1, 1.0]], dtype=F64)
    data = Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=F64), means, torch.full((3,), 0.05).double()
    )
    x = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.5, 0.0], [10.0, -10.0]], dtype=F64)
    sde = VP()
    once = path_log_likelihood(
        data.denoiser(sde), x, prior=prior_of(data, sde), tolerance=math.inf
    )
    found = path_log_likelihood(data.denoiser(sde), x, prior=prior_of(data, sde))
    assert (once.log_prob - truth(data, x, sde)).abs().max() > 10
    assert (found.log_prob - truth(data, x, sde)).abs().max() < 0.05
    assert (found.solver_error <= default_tolerance(2)).all()


@pytest.mark.parametrize(
    "sde", [VP(), SubVP(), VE(sigma_min=2e-4), EDM(t_min=2e-4)], ids=lambda sde: type(sde).__name__
)
def test_point_masses_of_pixels_are_scored_within_two_thousandths_of_a_bit(sde):
    """The mean over images, with the default estimator, of an exact probability."""
    pixels = mostly_black()
    k = pixels.sample(24, 16, torch.Generator().manual_seed(0))
    estimator = FlowEstimator(dequantisation=TruncatedNormal())
    found = estimator(pixels.denoiser(sde), k, pixels.scale, per_sample_noise(range(24)))
    error = (found.log_prob - pixels.log_prob(k)) / 16 / math.log(2)
    spread = error.std() / math.sqrt(24)
    assert abs(float(error.mean())) < 0.002 + 2 * max(0.0, float(spread) - 0.001)


@pytest.mark.parametrize("sde", [VP(), LinearFlow(), EDM()], ids=lambda sde: type(sde).__name__)
def test_a_fixed_point_on_a_ridge_is_seen_by_its_divergence(sde):
    """Between two equal modes the path stays where it is, and the walk alone sees no error."""
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=F64)
    data, x = mixture([0.5, 0.5], means, [0.001] * 2), torch.zeros(1, 2, dtype=F64)
    found = path_log_likelihood(data.denoiser(sde), x, prior=prior_of(data, sde))
    error = (found.log_prob - truth(data, x, sde)).abs()
    assert (error <= torch.maximum(torch.tensor(0.05), 3 * found.solver_error)).all()


@pytest.mark.parametrize(("nodes", "between"), [(12, 8), (16, 3), (24, 3)])
def test_few_nodes_on_a_fine_path_are_seen(nodes, between):
    """The walk is right and the quadrature is not."""
    data, x = narrow(2, 0.05, seed=4)
    found = path_log_likelihood(
        data.denoiser(VP()),
        x[:6],
        prior=prior_of(data, VP()),
        nodes=nodes,
        between=between,
    )
    error = (found.log_prob - truth(data, x[:6], VP())).abs()
    assert (error <= torch.maximum(torch.tensor(0.05), 3 * found.solver_error)).all()


def test_smooth_data_cost_no_call_more():
    data = Gaussian(torch.zeros(8, dtype=F64), torch.tensor(0.25, dtype=F64))
    x = data.sample(20, torch.Generator().manual_seed(0))
    found = path_log_likelihood(data.denoiser(VP()), x)
    assert found.nfe == 64 + 1 + 2
    assert (found.solver_error < 0.01).all()


@pytest.mark.parametrize("probes", ["exact", "random"])
def test_a_value_does_not_depend_on_its_batch(probes):
    """Also of samples that are solved again, each with its own class and its own probes."""
    torch.manual_seed(0)
    net = MLP(dim=2, width=16, depth=1, classes=3).double()
    model = ScoreModel(net, VP(), v)
    x, label = torch.randn(5, 2, dtype=F64), torch.tensor([0, 2, 1, 1, 0])
    x = torch.cat([x[:2], 30 * x[2:]])
    signs = torch.sign(torch.randn(1, 5, 2, dtype=F64))

    def values(rows):
        probing = EXACT if probes == "exact" else Orthogonal(signs[:, rows])
        denoiser = model.denoiser(label=label[rows])
        return path_log_likelihood(
            denoiser, x[rows], probing, nodes=12, tolerance=1e-3, max_nfe=1000
        )

    whole = values(torch.arange(5))
    for row in range(5):
        alone = values(torch.tensor([row]))
        torch.testing.assert_close(alone.log_prob[0], whole.log_prob[row], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            alone.solver_error[0], whole.solver_error[row], rtol=1e-3, atol=1e-9
        )


def test_some_samples_of_a_denoiser_keep_their_conditions():
    """A model selects them; a prediction that wraps it evaluates the whole batch."""
    torch.manual_seed(0)
    model = ScoreModel(MLP(dim=2, width=16, depth=1, classes=3).double(), VP(), v)
    denoiser = model.denoiser(label=torch.tensor([0, 2, 1, 1]))
    wrapped = replace(denoiser, predict=lambda x, t: denoiser(x, t))
    x, rows = torch.randn(4, 2, dtype=F64), torch.tensor([3, 1])
    t = torch.tensor([0.2, 0.9], dtype=F64)
    for given, every in ((t, torch.tensor([0.5, 0.9, 0.5, 0.2], dtype=F64)), (t[0], t[0])):
        for some in (denoiser, wrapped):
            chosen = some.among(rows, 4)
            torch.testing.assert_close(chosen(x[rows], given), denoiser(x, every)[rows])
            again = chosen.among(torch.tensor([1]), 2)
            last = given[1:] if given.ndim else given
            torch.testing.assert_close(again(x[1:2], last), denoiser(x, every)[1:2])


def test_conditions_of_another_batch_are_refused():
    model = ScoreModel(MLP(dim=2, width=16, depth=1, classes=3).double(), VP(), v)
    with pytest.raises(ValueError, match="conditions of 3 samples, for a batch of 5"):
        model.denoiser(label=torch.tensor([0, 1, 2])).among(torch.arange(2), 5)


def test_implicit_steps_say_when_they_do_not_arrive():
    data, x = narrow(2, 0.01)
    first, last = (torch.tensor(t, dtype=F64) for t in (VP().t_min, VP().t_max))
    found = stiff_log_likelihood(
        data.denoiser(VP()), x, first, last, limit=0.05, prior=None, max_nfe=100
    )
    assert found.log_prob.isnan().all()
    assert found.solver_error.isinf().all()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_is_positive(tolerance):
    data, x = narrow(2, 0.2)
    with pytest.raises(ValueError, match="tolerance > 0"):
        path_log_likelihood(data.denoiser(VP()), x, tolerance=tolerance)
