"""Posteriors of measurements: exact ones, what each method reaches, and what all have to keep."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoresde import betas
from scoresde.data.scaling import Scaling
from scoresde.denoiser import Denoiser
from scoresde.posterior import (
    DAPS,
    DPS,
    TMPD,
    DiffPIR,
    Grey,
    LangevinReplacement,
    Linear,
    Mask,
    Measurement,
    Method,
    MomentMatching,
    Nonlinear,
    PiGDM,
    RePaint,
    Replacement,
)
from scoresde.posterior.linearised import local, pseudo_inverse, solve, tangent
from scoresde.registry import POSTERIORS
from scoresde.runs.infer import in_model_units, infer
from scoresde.samplers import DDIM, per_sample_noise, sample, starting_noise, suited_grid
from scoresde.sde import EDM, SDE, VE, VP, DiscreteVP, LinearFlow, linear_betas
from scoresde.testing import Gaussian, Mixture

F64 = torch.float64
SDES = (VP(), VE(), EDM(), LinearFlow())
NO_SIGNAL = DiscreteVP(betas.zero_terminal(linear_betas()))
METHODS = [name for name, make in POSTERIORS.items() if not make().population]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian8() -> tuple[Gaussian, Measurement]:
    """8-D Gaussian data with correlations, and 3 random measurements."""
    root = random(8, 8, seed=1) / 4
    data = Gaussian(0.3 * random(8, seed=2), root @ root.T + 0.02 * torch.eye(8, dtype=F64))
    return data, measured(data, Linear(random(3, 8, seed=3) / math.sqrt(8)), 0.1)


def gaussian64() -> tuple[Gaussian, Measurement]:
    """64-D Gaussian data with correlations that fall with distance, and half of it."""
    place = torch.cartesian_prod(torch.arange(8), torch.arange(8)).double()
    data = Gaussian(torch.zeros(64, dtype=F64), 0.25 * (-torch.cdist(place, place) / 3).exp())
    return data, measured(data, Mask(torch.arange(64) < 32), 0.05)


def mixture() -> tuple[Mixture, Measurement]:
    data = Mixture(torch.ones(3, dtype=F64), 0.5 * random(3, 4, seed=5), torch.full((3,), 0.2))
    return data, measured(data, Linear(random(2, 4, seed=6)), 0.1)


def measured(data: Gaussian | Mixture, operator: Linear | Mask, noise: float) -> Measurement:
    y = operator(data.sample(1, torch.Generator().manual_seed(7)))
    return Measurement(operator, (y + noise * random(*y.shape, seed=8))[0], noise)


def posterior(data: Gaussian | Mixture, given: Measurement) -> Gaussian | Mixture:
    return data.posterior(given.operator, given.y, given.noise)


def drawn(
    method: Method,
    denoiser: Denoiser,
    given: Measurement,
    n: int = 2,
    nfe: int = 12,
    dtype: torch.dtype = F64,
    first: int = 0,
    dim: int = 4,
) -> Tensor:
    noise = per_sample_noise(range(first, first + n))
    x = starting_noise(denoiser.sde, torch.empty(n, dim, dtype=dtype), noise)
    return method(denoiser, given, x, noise, nfe)


# Exact posteriors --------------------------------------------------------------------------------


def test_the_exact_posterior_is_bayes_rule():
    """log p(x | y) - log p(x) - log p(y | x) + log p(y) = 0 at every x."""
    x = random(5, 4, seed=9)
    one = Gaussian(random(4, seed=1), 0.3 * torch.eye(4, dtype=F64) + 0.1)
    for data in (one, mixture()[0]):
        given = measured(data, Linear(random(2, 4, seed=6)), 0.3)
        away = (given.y - given.operator(x)) / 0.3
        likelihood = -(away.square() / 2 + math.log(0.3 * math.sqrt(2 * math.pi))).sum(1)
        joint = data.log_prob(x) + likelihood
        evidence = data.log_evidence(given.operator, given.y, given.noise)
        torch.testing.assert_close(posterior(data, given).log_prob(x) + evidence, joint)


def test_two_measurements_in_turn_are_both_together():
    data, a = mixture()[0], random(4, 4, seed=6)
    y = random(4, seed=7)
    both = data.posterior(Linear(a), y, 0.2)
    first = data.posterior(Linear(a[:1]), y[:1], 0.2)
    turn = first.posterior(Linear(a[1:]), y[1:], 0.2)
    torch.testing.assert_close(turn.means, both.means)
    torch.testing.assert_close(turn.covs, both.covs)
    torch.testing.assert_close(turn.weights, both.weights)


def test_a_mixture_with_full_covariances_is_the_one_with_deviations():
    data = Mixture(torch.ones(3), random(3, 2, 2), 0.1 + random(3, 2, 2, seed=1).abs())
    covs = (data.stds.flatten(1) ** 2).diag_embed()
    full = Mixture(torch.ones(3), data.means, covs=covs)
    x, t = random(5, 2, 2, seed=2), torch.tensor(0.4, dtype=F64)
    torch.testing.assert_close(full.log_prob(x, VP(), t), data.log_prob(x, VP(), t))
    torch.testing.assert_close(full.denoiser(VP())(x, t), data.denoiser(VP())(x, t))
    turned = full.posterior(Linear(random(3, 4), (2, 2)), random(3), 0.3)
    draws = turned.sample(20000, torch.Generator().manual_seed(0)).flatten(1)
    share = turned.weights / turned.weights.sum()
    mean = share @ turned.means.flatten(1)
    gaps = turned.means.flatten(1) - mean
    cov = torch.einsum("k,kde->de", share, turned.covs + gaps[:, :, None] * gaps[:, None])
    torch.testing.assert_close(draws.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), cov, atol=0.03, rtol=0)


# The linear algebra ------------------------------------------------------------------------------


def test_conjugate_gradients_solve_each_sample_by_itself():
    root = random(3, 5, 5)
    matrix, b = root @ root.mT + torch.eye(5), random(3, 5, seed=1)
    matrix[1] *= 1e3
    b[2] = 0

    def product(u: Tensor) -> Tensor:
        return (matrix @ u[..., None])[..., 0]

    exact = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(solve(product, b, 20), exact)
    matrix[1] *= -1  # not positive: this sample stays at 0, the others do not notice
    found = solve(product, b, 20)
    torch.testing.assert_close(found[0], exact[0])
    assert not found[1:].any()


def test_conjugate_gradients_stop_at_a_matrix_that_is_not_symmetric():
    """As the Jacobian of a network is: without the stop the first solution is ten times b."""
    root, turn = random(2, 30, 30), random(2, 30, 30, seed=5)
    matrix = 0.1 * root @ root.mT + (turn - turn.mT) * torch.tensor([3.0, 0.0])[:, None, None]
    matrix, b = matrix + torch.eye(30), random(2, 30, seed=1)
    u = solve(lambda u: (matrix @ u[..., None])[..., 0], b, 40)
    assert float(u[0].norm()) < float(b[0].norm())
    torch.testing.assert_close(u[1], torch.linalg.solve(matrix[1], b[1]))


def test_the_pseudo_inverse_is_that_of_the_matrix_even_for_an_impossible_y():
    matrix = random(3, 6) @ random(6, 6, seed=1)
    for a in (matrix, matrix.T, torch.cat([matrix, matrix])):
        near = local(Measurement(Linear(a), torch.zeros(len(a))), torch.zeros(2, a.shape[1]))
        b = random(2, len(a), seed=2)
        torch.testing.assert_close(pseudo_inverse(near, b, 30), b @ torch.linalg.pinv(a).T)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_the_tangent_of_a_gaussian_is_its_covariance(sde: SDE):
    data, _ = gaussian8()
    x, t = random(3, 8), torch.tensor(0.3 * sde.t_max, dtype=F64)
    v = random(3, 8, seed=4)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    exact = torch.linalg.inv(torch.linalg.inv(data.cov) + (alpha / sigma) ** 2 * torch.eye(8))
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            found = tangent(data.denoiser(sde), x, t)
            torch.testing.assert_close(found.x0, data.denoiser(sde)(x, t))
            torch.testing.assert_close(found.covariance(v), v @ exact)


def test_the_tangent_without_signal_is_the_covariance_of_the_data():
    """x_t is then noise, and the rounding of x0_hat over alpha = 2^-96 would be all there is."""
    data, v = mixture()[0], random(3, 4, seed=4)
    gaps = data.means - data.means.mean(0)
    exact = gaps.T @ gaps / len(gaps) + 0.04 * torch.eye(4, dtype=F64)
    found = tangent(data.denoiser(NO_SIGNAL), random(3, 4), torch.tensor(1.0, dtype=F64))
    torch.testing.assert_close(found.covariance(v), v @ exact, atol=0.01, rtol=0)


def test_a_denoiser_without_gradient_is_refused():
    plain = gaussian8()[0].denoiser(VP())
    deaf = replace(plain, predict=lambda x, t: plain(x, t).detach())
    with pytest.raises(ValueError, match="denoiser: it has no gradient"):
        drawn(MomentMatching(), deaf, gaussian8()[1], dim=8)


# What the methods reach --------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_moment_matching_is_the_exact_conditional_denoiser_of_a_gaussian(sde: SDE):
    for data, given in (gaussian8(), gaussian64()):
        dim = data.mean.numel()
        guided = MomentMatching(iterations=40).guide(given)(data.denoiser(sde))
        exact = posterior(data, given).denoiser(sde)
        for part in (0.02, 0.3, 1.0):
            t = torch.tensor(part * sde.t_max, dtype=F64)
            mean, std = sde.marginal(data.sample(4, torch.Generator().manual_seed(0)), t)
            x = mean + std * random(4, dim)
            torch.testing.assert_close(guided(x, t), exact(x, t), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("problem", [gaussian8, gaussian64])
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_moment_matching_reaches_the_posterior_of_a_gaussian_in_50_calls(problem, sde: SDE):
    """The flow is affine on a Gaussian: its mean and deviations follow without any draws.

    VE and EDM start from a prior without the mean of the data, which shows beyond 1 %; the exact
    conditional denoiser has the same error.
    """
    data, given = problem()
    dim, exact = data.mean.numel(), posterior(data, given)
    x = float(sde.prior().stddev) * torch.cat([torch.zeros(1, dim), torch.eye(dim)]).double()
    end = MomentMatching()(data.denoiser(sde), given, x, per_sample_noise(range(len(x))), 50)
    scale = exact.cov.diagonal().sqrt()
    same = sample(exact.denoiser(sde), x, nfe=50)
    torch.testing.assert_close(end / scale, same / scale, atol=1e-4, rtol=1e-4)
    if isinstance(sde, VP | LinearFlow):
        spread = (end[1:] - end[0]).T.square().sum(1).sqrt()
        assert float(((end[0] - exact.mean) / scale).abs().max()) < 0.01
        assert float((spread / scale - 1).abs().max()) < 0.02


def errors(method: Method, nfe: int, n: int = 400) -> tuple[float, float]:
    """Largest errors of the mean, in deviations, and of the deviations, relative; gaussian8."""
    data, given = gaussian8()
    found = drawn(method, data.denoiser(VP()), given, n, nfe, dim=8)
    exact = posterior(data, given)
    scale = exact.cov.diagonal().sqrt()
    mean = float(((found.mean(0) - exact.mean) / scale).abs().max())
    return mean, float((found.std(0) / scale - 1).abs().max())


# Largest errors of mean and deviations at 100 calls. Those of 400 exact draws are 0.15 and 0.1;
# what is beyond them is bias, measured with 2000 draws: for replacement 0.17 and 0.20, for dps
# 0.14 and 0.20, for diffpir 0.10 and 0.29, for pigdm 0.16 and 0.05.
BIAS = {
    "moment_matching": (0.15, 0.1),
    "tmpd": (0.2, 0.15),
    "daps": (0.15, 0.12),
    "pigdm": (0.3, 0.15),
    "repaint": (0.25, 0.22),
    "langevin_replacement": (0.3, 0.3),
    "replacement": (0.3, 0.3),
    "dps": (0.3, 0.25),
    "diffpir": (0.25, 0.4),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_near_the_posterior_of_a_gaussian(name: str):
    mean, spread = errors(POSTERIORS[name](), 100)
    assert mean < BIAS[name][0]
    assert spread < BIAS[name][1]


def moments(method: Method, data: Gaussian, given: Measurement, nfe: int) -> tuple[Tensor, Tensor]:
    """Mean and deviations of a method that is affine in the start and in every draw.

    Row 0 has no noise, row 1 + k D + i a 1 at number i of draw k alone.
    """
    dim, sde = data.mean.numel(), VP()
    x = torch.zeros(1 + dim * (3 * nfe + 1), dim, dtype=F64)
    x[1 : 1 + dim] = float(sde.prior().stddev) * torch.eye(dim, dtype=F64)
    rows = iter(range(1 + dim, len(x), dim))

    def noise(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        z, row = torch.zeros_like(x), next(rows)
        z[row : row + dim] = torch.eye(dim, dtype=F64)
        return z

    end = method(data.denoiser(sde), given, x, noise, nfe)
    return end[0], (end[1:] - end[0]).square().sum(0).sqrt()


def test_replacement_is_biased_at_any_number_of_calls_and_repaint_less():
    data, _ = gaussian8()
    given = measured(data, Mask(torch.arange(8) < 4), 0.0)
    near = data.posterior(given.operator, given.y, 1e-6)
    scale = near.cov.diagonal()[4:].sqrt()

    def error(method: Method, nfe: int) -> tuple[float, float]:
        mean, spread = moments(method, data, given, nfe)
        torch.testing.assert_close(mean[:4], given.y[:4])
        assert float(spread[:4].max()) < 1e-12
        off = (mean - near.mean)[4:] / scale
        return float(off.abs().max()), float((spread[4:] / scale - 1).abs().max())

    few, many = error(Replacement(), 50), error(Replacement(), 100)
    assert many[0] > 0.3  # deviations: 0.37 from 50 calls, 0.36 from 100
    assert many[0] == pytest.approx(few[0], rel=0.1)
    assert error(RePaint(), 100)[0] < 0.8 * many[0]


# What all methods keep ---------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [*SDES, NO_SIGNAL], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", METHODS)
def test_a_sample_is_its_own_with_every_process_and_dtype(name: str, sde: SDE):
    data, one = mixture()
    each = Measurement(one.operator, one.y + torch.tensor([[0.0], [0.3], [0.1]]), 0.1)
    method, denoiser = POSTERIORS[name](), data.denoiser(sde)
    whole = drawn(method, denoiser, one, 3)
    assert whole.isfinite().all()
    torch.testing.assert_close(drawn(method, denoiser, one, 1, first=2), whole[2:])
    own = drawn(method, denoiser, each, 3)
    torch.testing.assert_close(own[:1], whole[:1])
    alone = Measurement(one.operator, each.y[1], 0.1)
    torch.testing.assert_close(drawn(method, denoiser, alone, 1, first=1), own[1:2])
    single = drawn(method, denoiser, one, 3, dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_processes_agree_where_the_start_does(name: str):
    """On the same levels sigma / alpha every method is one method of x / alpha."""
    data, given = mixture()
    found = []
    for sde in (VP(), EDM()):
        # Both from sigma / alpha = 50, over the same levels.
        lam = torch.linspace(-math.log(50), 5, 9, dtype=F64)
        ts, noise = sde.time(lam), per_sample_noise(range(3))
        alpha, sigma = sde.alpha(ts[0]), sde.sigma(ts[0])
        assert float(sigma / alpha) == pytest.approx(50)
        x = noise(torch.empty(3, 4, dtype=F64)) * sigma
        method, denoiser = POSTERIORS[name](), data.denoiser(sde)
        if hasattr(method, "guide"):
            denoiser, step = method.guide(given)(denoiser), DDIM(1.0)
        else:
            step = method.step(given, DDIM(1.0))
        found.append(sample(denoiser, x, ts, step, noise))
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_units_of_a_measurement_do_not_matter(name: str):
    """DPS knows them where they are small, as its docstring says."""
    data, given = mixture()
    for dtype in (torch.float32, F64):
        found = []
        for unit in (1.0, 30.0) if name == "dps" else (1.0, 1e-12, 1e12):
            scaled = Measurement(
                Linear(unit * given.operator.matrix), unit * given.y, unit * given.noise
            )
            found.append(drawn(POSTERIORS[name](), data.denoiser(VP()), scaled, dtype=dtype))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_seen_is_a_measurement_with_endless_noise(name: str):
    """DPS takes no notice of the noise."""
    data, given = mixture()
    hidden = Measurement(Mask(torch.zeros(4)), torch.ones(4, dtype=F64), 0.1)
    found = drawn(POSTERIORS[name](), data.denoiser(VP()), hidden)
    if name != "dps":
        lost = replace(given, noise=1e9)
        other = drawn(POSTERIORS[name](), data.denoiser(VP()), lost)
        torch.testing.assert_close(found, other, atol=1e-6, rtol=1e-6)
    assert float(found.std()) > 0.2


@pytest.mark.parametrize("name", METHODS)
def test_more_measurements_than_numbers_find_the_least_squares(name: str):
    data, _ = mixture()
    a, x0 = random(6, 4, seed=1), data.sample(1, torch.Generator().manual_seed(1))
    near = {"dps": 0.05, "daps": 0.02, "tmpd": 0.5, "pigdm": 1e-3}.get(name, 1e-6)
    for wrong in (0.0, 1.0):
        y = (x0 @ a.T)[0] + wrong
        found = drawn(POSTERIORS[name](), data.denoiser(VP()), Measurement(Linear(a), y), nfe=30)
        best = torch.linalg.lstsq(a, y[:, None])[0].T
        assert float((found - best).abs().max()) < near


@pytest.mark.parametrize("name", METHODS)
def test_known_numbers_are_kept_without_noise(name: str):
    """All but DPS and TMPD return them: the last correction is a projection or close to it."""
    data, _ = mixture()
    given = measured(data, Mask(torch.tensor([True, False, True, False])), 0.0)
    full = replace(given, y=given.y + torch.tensor([0, 9.0, 0, 9.0]))  # what is hidden is ignored
    found = drawn(POSTERIORS[name](), data.denoiser(VP()), full, 3, 40)
    near = {"dps": 0.5, "daps": 0.05, "tmpd": 0.05, "pigdm": 0.05}.get(name, 1e-6)
    assert float((found - given.y)[:, ::2].abs().max()) < near


@pytest.mark.parametrize("name", METHODS)
def test_a_nonlinear_operator_is_linearised(name: str):
    """y = exp(2 x_1): most of what is drawn agrees with y."""
    data, method = mixture()[0], POSTERIORS[name]()
    f = Nonlinear(lambda x: (2 * x[:, :1]).exp())
    given = Measurement(f, torch.tensor([1.5], dtype=F64), 0.1)
    if method.linear:
        with pytest.raises(ValueError, match=f"{name}: needs a linear operator"):
            drawn(method, data.denoiser(VP()), given)
        return
    found = drawn(method, data.denoiser(VP()), given, 20, 60)
    assert float((f(found) - 1.5).abs().median()) < 0.5


@pytest.mark.parametrize("name", METHODS)
def test_an_operator_without_gradient_is_refused_before_the_first_call(name: str):
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    denoiser = Denoiser(VP(), never)
    rounded = Measurement(Nonlinear(lambda x: x.round()), torch.ones(4))
    with pytest.raises(ValueError, match=r"no gradient|needs a linear operator"):
        drawn(POSTERIORS[name](), denoiser, rounded)
    for wrong in (Measurement(Mask(torch.tensor([1, 0, 1])), torch.ones(3)),
                  Measurement(Linear(torch.ones(2, 4)), torch.ones(3))):  # fmt: skip
        with pytest.raises(ValueError, match="its shape is"):
            drawn(POSTERIORS[name](), denoiser, wrong)


def test_a_function_may_write_into_its_argument_and_return_any_number():
    data, method = mixture()[0], MomentMatching()
    y = torch.tensor([0.3, 0.5], dtype=F64)
    found = [
        drawn(method, data.denoiser(VP()), Measurement(Nonlinear(f), y, 0.1))
        for f in (
            lambda x: 2 * x[:, :2],
            lambda x: x[:, :2].mul_(2),
            lambda x: 2 * x[:, :2].half(),
        )
    ]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0], atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: x - x.mean(0), "depends on others"),
        (lambda x: torch.view_as_complex(x.reshape(-1, 2, 2)), "are complex"),
        (lambda x: x.round(), "no gradient"),
        (lambda x: x[:, :2].relu(), None),
        (lambda x: x[:, :2].clamp(-0.2, 0.2), None),
        (lambda x: x.softmax(1), None),
        (lambda x: x.square().sum(1), None),
    ],
)
def test_what_a_function_must_be(f, words: str | None):
    given = Measurement(Nonlinear(f), torch.zeros(1))
    refused = nullcontext() if words is None else pytest.raises(ValueError, match=words)
    with refused:
        given.require_gradient("dps", random(1, 4))


@pytest.mark.parametrize("name", [n for n in POSTERIORS if not POSTERIORS[n]().linear])
def test_an_operator_that_is_not_finite_is_said(name: str):
    with pytest.raises(RuntimeError, match="not finite"):
        infer(
            mixture()[0].denoiser(VP()), Nonlinear(torch.log, (4,)), torch.zeros(4), 0.1,
            method=name, num=2, nfe=9,
        )  # fmt: skip


def test_settings_out_of_range_are_refused():
    for make, message in (
        (lambda: MomentMatching(iterations=0), "iterations >= 1"),
        (lambda: PiGDM(std=0.0), "std > 0"),
        (lambda: TMPD(least=0.0), "least > 0"),
        (lambda: DPS(zeta=-1.0), "zeta >= 0"),
        (lambda: DiffPIR(zeta=1.5), "zeta <= 1"),
        (lambda: DAPS(width=0.0), "width > 0"),
        (lambda: RePaint(times=0), "times >= 1"),
        (lambda: LangevinReplacement(snr=1.0), "snr < 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    data, given = mixture()
    with pytest.raises(ValueError, match="nfe: a step of repaint makes 20 calls; need 21"):
        drawn(RePaint(times=20), data.denoiser(VP()), given)


def test_guides_select_samples_and_meet_conditions():
    data, one = mixture()
    each = Measurement(one.operator, random(3, 2), 0.1)
    x, t = random(3, 4), torch.tensor(0.5, dtype=F64)
    guided = MomentMatching().guide(each.fit(x))(data.denoiser(VP()))
    assert guided.batch == 3
    assert not guided.normalised
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(guided.among(rows, 3)(x[rows], t), guided(x, t)[rows])
    with pytest.raises(ValueError, match="measurements of 3 samples, for conditions of 2"):
        MomentMatching().guide(each.fit(x))(replace(data.denoiser(VP()), batch=2))


def test_a_learned_step_of_another_kind_composes():
    data, given = mixture()
    denoiser, step = data.denoiser(VP()), DDIM(0.0)
    ts = suited_grid(step)(VP(), 20)
    guided, x = TMPD().guide(given)(denoiser), random(20, 4)
    free = float(given.residual(sample(denoiser, x, ts, step)).square().mean())
    for own, walk in ((guided, step), (denoiser, DPS().step(given, step))):
        found = sample(own, x, ts, walk)
        assert float(given.residual(found).square().mean()) < 0.3 * free


# ss.infer ----------------------------------------------------------------------------------------


def test_infer_draws_each_sample_from_its_seed_in_any_batch():
    data, given = mixture()
    denoiser = data.denoiser(VP())
    ask = (denoiser, given.operator, given.y, given.noise)
    for name in ("moment_matching", "repaint"):
        whole = infer(*ask, method=name, num=5, nfe=20)
        assert whole.x.shape == (5, 4)
        assert whole.x.dtype == F64
        assert whole.seeds == tuple(range(5))
        assert whole.nfe == (20 if name == "moment_matching" else 19)
        parts = infer(*ask, method=name, seeds=[3, 1], nfe=20, batch=1)
        torch.testing.assert_close(parts.x, whole.x[[3, 1]])
    each = infer(denoiser, given.operator, given.y.expand(5, 2), 0.1, num=5, nfe=20, batch=2)
    torch.testing.assert_close(each.x, infer(*ask, num=5, nfe=20).x)
    assert infer(*ask, nfe=20, method=MomentMatching(eta=1.0), num=1).log_evidence is None


def test_infer_keeps_what_there_is_when_it_is_stopped():
    data, given = mixture()
    calls = iter(range(1000))
    found = infer(
        data.denoiser(VP()), given.operator, given.y, 0.1, num=6, nfe=20, batch=2,
        stopping=lambda: next(calls) >= 30,
    )  # fmt: skip
    assert (len(found), found.unfinished) == (4, 2)
    assert found.x.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "moment_macthing"}, "did you mean 'moment_matching'"),
        ({"method": MomentMatching}, "method: need a name"),
        ({"denoiser": "model"}, "denoiser: need a Denoiser or a ScoreModel, got str"),
        ({"y": torch.ones(3)}, r"y: its shape is \(3,\)"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"noise": None}, "noise is missing"),
        ({"y": "words"}, "y: need an array of numbers, got 'words'"),
        ({"method": "diffpir", "nfe": 1}, "nfe: diffpir makes 2 calls or more, got 1"),
        ({"nfe": 0}, "nfe: need a whole number"),
        ({"particles": 8}, "particles: moment_matching draws every sample by itself"),
        ({"shape": (5,)}, "made for samples"),
        ({"operator": Nonlinear(lambda x: x)}, "shape is missing"),
        ({"label": 3}, "are of a ScoreModel"),
        ({"num": 2, "seeds": [1]}, "2 samples but 1 seeds"),
    ],
)
def test_infer_refuses_in_words(changes: dict, message: str):
    data, given = mixture()
    ask = {"denoiser": data.denoiser(VP()), "operator": given.operator, "y": given.y, "noise": 0.1}
    with pytest.raises(ValueError, match=message):
        infer(**{"num": 1, **ask, **changes})


def test_a_measurement_in_units_of_the_data_is_one_in_model_units():
    scaling = Scaling(256)
    x = random(3, 3, 4, 4).tanh()
    a, b = scaling.affine(x)
    operator = Mask(random(4, 4) > 0)
    plain = Measurement(operator, operator(x)[0], 0.1)
    y = operator(a * x + b)[0]
    found = in_model_units(Measurement(operator, y, 0.1 * float(a)), scaling, x)
    assert found.noise == pytest.approx(0.1)
    torch.testing.assert_close(found.residual(x), plain.residual(x))
    levels = scaling.decode(x).double()
    assert float((a * x + b - levels).abs().max()) <= 0.5 + 1e-9


def test_a_scale_for_each_channel_becomes_part_of_the_operator():
    scaling = Scaling(shift=(1.0, -2.0, 0.5), scale=(0.5, 2.0, 4.0))
    x = random(2, 3, 4, 4)
    for operator in (Grey(), Nonlinear(torch.sin)):
        y = operator(scaling.decode(x))
        given = in_model_units(Measurement(operator, y, 0.3), scaling, x)
        ratio = 0.3 / given.noise
        torch.testing.assert_close(given.residual(x), torch.zeros_like(y))
        other = random(2, 3, 4, 4, seed=5)
        torch.testing.assert_close(
            ratio * given.residual(other), y - operator(scaling.decode(other))
        )
