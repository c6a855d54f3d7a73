"""Measures that are told the truth by steps of known error."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

from scoresde import EDM, VP, Denoiser, LinearFlow, convergence, sample
from scoresde.convergence import (
    LINE,
    WINDOW,
    Bias,
    Convergence,
    bias,
    draws_noise,
    gap,
    mixture_paths,
    path_order,
    weak_order,
)
from scoresde.samplers import (
    DDIM,
    Churned,
    Corrected,
    DPMppSDE,
    Heun,
    Langevin,
    Restart,
    ReverseDiffusion,
    SASolver,
    dpm_solver_singlestep,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    euler_a,
)

F64 = torch.float64


class Marginal:
    """Forgets the state and draws it from the marginal, its variance wrong by a factor."""

    order = weak_order = nfe_per_step = 1

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, denoiser, x, t, s, state, noise):
        denoiser(x, t)
        alpha, sigma = denoiser.sde.alpha(s), denoiser.sde.sigma(s)
        variance = self.factor * (alpha**2 * LINE.cov + sigma**2)
        return alpha * LINE.mean + variance.sqrt() * noise(x, t, s), None


def test_the_order_is_the_slope_of_the_last_two():
    steps = (10, 20, 60)
    errors = (7.0, *(5.0 * n**-3.0 for n in steps[1:]))
    assert Convergence(steps, errors).order == pytest.approx(3)


def test_the_gap_is_relative_to_the_reference():
    exact = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert gap(1.25 * exact, exact) == pytest.approx((0.25, 0.25))
    off = exact.clone()
    off[2] += 10 * exact[2]
    relative, median = gap(off, exact)
    assert median == 0
    assert relative == pytest.approx(10 * float(exact[2].norm() / exact.norm()))


def test_noise_is_noticed():
    for step in (euler_a(), DDIM(eta=0.1), Churned(Heun(), 10), Restart(Heun()), Marginal(1.0)):
        assert draws_noise(step), step
    for step in (DDIM(), Heun(), euler_a(0.0), dpmpp_2m_sde(eta=0.0)):
        assert not draws_noise(step), step


@pytest.mark.parametrize("sde", [VP(), EDM(), LinearFlow()], ids=lambda sde: type(sde).__name__)
def test_paths_end_where_a_fine_solution_does(sde):
    paths = mixture_paths(sde)
    ends = [paths.end(dpm_solver_singlestep(3), n) for n in (160, 320)]
    # Richardson's extrapolation of a method of order 3.
    relative, _ = gap(ends[1] + (ends[1] - ends[0]) / 7, paths.exact)
    assert relative < 2e-9
    assert -float(sde.lam(paths.grid(3)[-1])) == pytest.approx(math.log(0.3))


def test_orders_of_paths():
    paths = mixture_paths(EDM())
    for step in (DDIM(), Heun()):
        assert path_order(lambda n, step=step: step, paths).order == pytest.approx(
            step.order, abs=0.15
        )


def test_the_slope_is_waited_for(monkeypatch):
    """Of n^-2 + 100 n^-3 the third-order part rules at 100 steps."""

    def error(n):
        return n**-2.0 + 100 * n**-3.0

    def exact(step, sde, n):
        return Bias(error(n), 0.0, (0.0, 0.0, 0.0))

    monkeypatch.setattr(convergence, "bias", exact)
    found = weak_order(lambda n: DDIM(), VP())
    assert found.steps[-1] >= 800
    assert found.order == pytest.approx(2, abs=0.1)
    monkeypatch.setattr(convergence, "bias", lambda step, sde, n: Bias(1 / n, 0.0, ()))
    assert weak_order(lambda n: DDIM(), VP()).steps == (100, 200, 400)


def test_superconvergence_on_gaussian_data_is_no_order():
    """SA-Solver's second-order terms cancel there, and not on skewed data."""
    coarse, fine = (bias(SASolver(), EDM(), n) for n in (100, 200))
    assert math.log2(coarse.variance / fine.variance) > 2.5
    assert math.log2(coarse.skewed[0] / fine.skewed[0]) == pytest.approx(2.2, abs=0.15)


def hermite(z):
    """He_1, He_2 and He_3."""
    return z, z**2 - 1, z**3 - 3 * z


def skewed_denoiser(sde, eps):
    """E[x0 | x] for data N(0.3, 0.6^2) (1 + eps He_3(z)): Gauss-Hermite over the posterior."""
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(6))

    def predict(x, t):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        total = alpha**2 * 0.36 + sigma**2
        x0 = 0.3 + alpha * 0.36 / total * (x - alpha * 0.3) + 0.6 * sigma / total**0.5 * nodes
        mass = weights * (1 + eps * hermite((x0 - 0.3) / 0.6)[2])
        return (x0 * mass).sum(1, keepdim=True) / mass.sum(1, keepdim=True)

    return Denoiser(sde, predict)


def moments(step, sde, n, draws, eps):
    """E He_i at the end of n steps from the marginal of skewed data, over a tensor of nodes."""
    nodes, weights = (torch.from_numpy(each) for each in hermegauss(6))
    axes = torch.cartesian_prod(*[nodes] * (draws + 1))
    mass = torch.cartesian_prod(*[weights / weights.sum()] * (draws + 1)).prod(1)
    ts = sde.time(torch.linspace(*WINDOW, n + 1, dtype=F64))
    alphas, sigmas = sde.alpha(ts), sde.sigma(ts)
    stds = (0.36 * alphas**2 + sigmas**2).sqrt()
    mass = mass * (1 + eps * (0.6 * alphas[0] / stds[0]) ** 3 * hermite(axes[:, 0])[2])
    columns = iter(axes.T[1:])

    def noise(x, t=None, s=None):
        return next(columns)[:, None]

    x = alphas[0] * 0.3 + stds[0] * axes[:, :1]
    end = sample(skewed_denoiser(sde, eps), x, ts, step, noise, denoise=False)[:, 0]
    z = (end - alphas[-1] * 0.3) / stds[-1]
    exact = 6 * float((0.6 * alphas[-1] / stds[-1]) ** 3)
    return torch.stack([mass @ each for each in hermite(z)]), exact


@pytest.mark.parametrize(
    ("step", "n", "draws"),
    [
        (euler_a(), 3, 3),
        (DPMppSDE(), 2, 4),
        (dpmpp_3m_sde(), 4, 4),
        (SASolver(), 4, 4),
        (Corrected(ReverseDiffusion(), Langevin()), 2, 4),
        (Churned(Heun(), 1.0, steps=3), 3, 3),
    ],
    ids=["euler_a", "dpmpp_sde", "dpmpp_3m_sde", "sa_solver", "pc", "churn"],
)
def test_moments_are_those_of_a_cubature(step, n, draws):
    """The derivatives by eps are central differences of moments over a tensor of nodes."""
    for sde in (VP(), EDM()):
        found = bias(step, sde, n)
        gaussian, exact = moments(step, sde, n, draws, 0.0)
        assert found.mean == pytest.approx(float(gaussian[0]), abs=1e-10)
        assert found.variance == pytest.approx(
            float(gaussian[1] - gaussian[0] ** 2), rel=1e-7, abs=1e-10
        )
        up, down = (moments(step, sde, n, draws, eps)[0] for eps in (1e-5, -1e-5))
        response = (up - down) / 2e-5 / exact - torch.tensor([0.0, 0.0, 1.0])
        assert found.skewed == pytest.approx(response.tolist(), rel=1e-5, abs=1e-6)


def test_a_step_that_draws_the_marginal_has_no_bias_but_that_of_its_variance():
    """And forgets the skew altogether."""
    for sde in (VP(), EDM()):
        mean, variance, skewed = bias(Marginal(1.25), sde, 4)
        assert (mean, variance) == pytest.approx((0.0, 0.25), abs=1e-12)
        assert skewed == pytest.approx((0.0, 0.0, -1.0), abs=1e-12)
