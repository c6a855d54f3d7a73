"""The laws of the stochastic steps: exact moments and weak orders, limits, textbook equalities."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from scoresde import EDM, VE, VP, Denoiser, DiscreteVP, LinearFlow, SubVP, sample
from scoresde.convergence import weak_order
from scoresde.samplers import (
    DDIM,
    BrownianPath,
    Heun,
    ancestral,
    dpm_solver_singlestep,
    dpmpp_2m,
    eab,
    grids,
    per_sample_noise,
    unipc,
)
from scoresde.samplers.integrals import EXACT
from scoresde.samplers.kernels import Marginal
from scoresde.samplers.renoising import Churned, Restart
from scoresde.samplers.steps import ddpm, euler_a
from scoresde.samplers.stochastic import DPM2A, DPMpp2SA, DPMppSDE
from scoresde.samplers.stochastic_multistep import (
    Forgetting,
    SASolver,
    StochasticMultistep,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
)
from scoresde.sde import linear_betas
from scoresde.testing import Gaussian, grid25, mixture
from tests.laws.moments import bias

from .conftest import WholeFlow

F64 = torch.float64
ONE_D = Gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([0.25], dtype=F64))
STEPS = [
    euler_a(),
    euler_a(0.5),
    ddpm(),
    DPM2A(),
    DPM2A(0.5),
    DPMpp2SA(),
    DPMpp2SA(0.5),
    DPMppSDE(),
    DPMppSDE(0.5, 0.4),
    dpmpp_2m_sde(),
    dpmpp_2m_sde(0.5),
    dpmpp_2m_sde(heun=True),
    dpmpp_3m_sde(),
    dpmpp_3m_sde(published=True),
    SASolver(),
    SASolver(3, 4),
    SASolver(3, 3, tau=0.7),
    StochasticMultistep(1, std=0.5),
    StochasticMultistep(2, 0.5, std=0.4),
    SASolver(2, 3, 0.8, std=0.4),
    Churned(Heun(), s_churn=4, steps=12),
    Restart(Heun(), 0.1, 1.0, times=2, steps=8),
]
PLAIN = ddpm("large")  # its beta is of x, not of x / alpha
MULTISTEP = (StochasticMultistep, SASolver)


def label(step):
    """Its repr without the addresses of functions."""
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", repr(step))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(n, dim, seed=0):
    return torch.randn(n, dim, generator=generator(seed), dtype=F64)


def starts(sde, n, dim, seed=0):
    return sde.prior().stddev * normal(n, dim, seed)


def silent(x, t=None, s=None):
    raise AssertionError("no noise was to be drawn")


def never(x, t):
    raise AssertionError("the network was not to be called")


def lam(sde, t):
    return float(sde.lam(t))


def walk(step, denoiser, x, ts, noise):
    return sample(denoiser, x, ts, step, noise, denoise=False)


# --- weak orders, without sampling ----------------------------------------------------------


ORDERS = [
    *(pytest.param(lambda n, s=s: s, id=label(s)) for s in [*STEPS[:-2], PLAIN]),
    pytest.param(lambda n: Churned(Heun(), s_churn=10, steps=n), id="churned Heun"),
    pytest.param(lambda n: Churned(DDIM(), s_churn=10, steps=n), id="churned DDIM"),
    pytest.param(lambda n: Restart(Heun(), 0.05, 0.3, 2), id="restarted Heun"),
]


TRAPEZOIDS = [SASolver(), SASolver(2, 3, 0.8, std=0.4)]


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("make", ORDERS)
def test_weak_order(sde, make):
    """The biases of mean and variance on N(0.3, 0.5^2) fall at the declared order."""
    biases = [bias(make(n), sde, grids.log_snr(sde, n), ONE_D) for n in (200, 400)]
    total = [abs(m) + abs(v) for m, v in biases]
    step, order = make(400), math.log2(total[0] / total[1])
    assert step.order == step.weak_order
    assert order > step.weak_order - 0.15
    assert order < step.weak_order + 0.15 or step in TRAPEZOIDS


@pytest.mark.parametrize("step", TRAPEZOIDS, ids=label)
def test_weak_order_of_the_trapezoid(step):
    """Its second-order terms cancel in the variance of a Gaussian, all or nearly; those of skewed
    data are counted here too. Under one process, as relabelling changes nothing (below).
    """
    assert weak_order(lambda n: step, EDM()).order == pytest.approx(step.weak_order, abs=0.15)


AFRESH = [
    (lambda n: Churned(dpmpp_2m(), 3, steps=n), 1),
    (lambda n: Churned(eab(), 3, steps=n), 2),
    (lambda n: Churned(unipc(), 3, steps=n), 3),
    (lambda n: Churned(dpmpp_2m_sde(), 3, steps=n), 1),
    (lambda n: Churned(SASolver(), 3, steps=n), 2),
    (lambda n: Churned(dpm_solver_singlestep(3), 3, steps=n), 3),
    (lambda n: Restart(eab(), 0.4, 1.5), 3),
]


@pytest.mark.parametrize(("make", "order"), AFRESH)
def test_a_multistep_method_that_is_churned_has_the_order_of_its_first_step(make, order):
    assert make(40).order == make(40).weak_order == order
    assert weak_order(make, EDM()).order == pytest.approx(order, abs=0.15)


def test_moments_on_every_process(sde):
    ts = grids.log_snr(sde, 60)
    for step in [*STEPS, PLAIN]:
        mean, variance = bias(step, sde, ts, ONE_D)
        # A constant x0 is no error in the frame of x0, and one in that of a residual.
        assert abs(mean) < (0.02 if getattr(step, "std", 0) else 1e-6), step
        assert abs(variance) < (0.25 if step.weak_order == 1 else 0.05), step


def test_the_whole_way_from_pure_noise_to_none():
    """From alpha = 0 to sigma = 0, where lam is infinite: LinearFlow's first and last step drop to
    first order.
    """
    sde = WholeFlow()
    ts = torch.cat(
        [torch.ones(1).double(), grids.log_snr(LinearFlow(), 60), torch.zeros(1).double()]
    )
    for step in [*STEPS[:-2], PLAIN, Churned(DPMpp2SA(), 4, steps=60), Restart(ddpm(), steps=20)]:
        mean, variance = bias(step, sde, ts, ONE_D)
        # A constant x0 is no error in the frame of x0, and one in that of a residual.
        assert abs(mean) < (0.02 if getattr(step, "std", 0) else 1e-6), step
        assert abs(variance) < (0.25 if step.weak_order == 1 else 0.05), step


def push(step, draws, denoiser, density, x, t, s):
    """The density on the points x after a step of one or two draws: exact but for quadrature."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(8) if draws == 2 else ([0.0], [1.0])

    def run(first, last):
        values = iter([first, last][2 - draws :])
        noise = lambda x, t, s: torch.full_like(x, next(values))  # noqa: E731
        return step(denoiser, x[:, None], t, s, None, noise)[0]

    total = torch.zeros_like(x)
    for first, mass in zip(nodes, masses, strict=True):
        mean = run(first, 0.0)
        std = float((run(first, 1.0) - mean)[0])
        total += mass * (density @ torch.exp(-(((x - mean) / std) ** 2) / 2))
    return total / total.sum()


@pytest.mark.parametrize(
    ("step", "draws"), [(euler_a(), 1), (DPM2A(), 1), (DPMpp2SA(), 1), (DPMppSDE(), 2)], ids=label
)
def test_weak_order_where_the_denoiser_is_not_linear(step, draws):
    """Two modes: the moments E x^2 and E x^4 of a density carried along on a line of points."""
    sde, x = EDM(), torch.linspace(-9, 9, 241, dtype=F64)
    data = mixture([1.0, 1.0], torch.tensor([[-0.8], [0.8]], dtype=F64), [0.3, 0.3])
    density = lambda t: (p := data.log_prob(x[:, None], sde, t).exp()) / p.sum()  # noqa: E731
    errors = []
    for n in (10, 20, 40):
        ts = torch.linspace(math.log(1.5), math.log(0.4), n + 1, dtype=F64).exp()
        p = density(ts[0])
        for t, s in pairwise(ts):
            p = push(step, draws, data.denoiser(sde), p, x, t, s)
        gap = p - density(ts[-1])
        errors.append(sum(abs(float(gap @ x**k)) for k in (2, 4)))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(step.weak_order, abs=0.15)


MULTISTEP_CASES = [
    dpmpp_2m_sde(heun=True),
    dpmpp_3m_sde(),
    SASolver(),
    StochasticMultistep(3, 1.0, std=0.5),
]


@pytest.mark.parametrize("step", MULTISTEP_CASES, ids=label)
def test_multistep_biases_fall_where_the_denoiser_is_not_linear(step):
    """Two modes: E x^2 and E x^4 of walks of n and 2n steps along the same Brownian paths.

    History makes the law of a walk more than a density on a line, so this one is sampled; coupled,
    20,000 walks tell the differences to 4e-5. From 10 to 40 steps second order is a factor of 16,
    first order of 4.
    """
    n, sde = 20_000, EDM()
    data = mixture([1.0, 1.0], torch.tensor([[-0.8], [0.8]], dtype=F64), [0.3, 0.3])
    path = BrownianPath(range(n), lambda t: (2 * sde.lam(t)).exp())
    x = data.sample(n, generator(0)) + 1.5 * normal(n, 1, seed=1)
    ends = []
    for steps in (10, 20, 40, 80):
        ts = torch.linspace(math.log(1.5), math.log(0.4), steps + 1, dtype=F64).exp()
        ends.append(walk(step, data.denoiser(sde), x, ts, path))
    gaps = [sum(abs(float((a**k - b**k).mean())) for k in (2, 4)) for a, b in pairwise(ends)]
    assert gaps[2] < gaps[0] / 6 + 1e-4
    assert gaps[0] < 0.02


# --- without noise: the deterministic methods ---------------------------------------------------


def two_levels(sde, n=10):
    """Two neighbouring times, their alpha, sigma and lam."""
    t, s = grids.log_snr(sde, n)[3:5]
    read = lambda u: (float(sde.alpha(u)), float(sde.sigma(u)), lam(sde, u))  # noqa: E731
    return t, s, read(t), read(s)


def test_euler_a_without_noise_is_ddim(sde):
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 8, 2), grids.karras()(sde, 8)
    got = walk(euler_a(0.0), denoiser, x, ts, silent)
    torch.testing.assert_close(got, walk(DDIM(), denoiser, x, ts, silent), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("step", "r"), [(DPMpp2SA(0.0), 0.5), (DPMppSDE(0.0, 0.3), 0.3)])
def test_two_stages_without_noise_are_dpm_solver_pp_2s(sde, step, r):
    """x_s = (sigma_s/sigma_t) x - alpha_s phi (D + (D_mid - D) / 2r), phi = expm1(-h)."""
    denoiser, x = grid25().denoiser(sde), starts(sde, 8, 2)
    t, s, (_, sig_t, lam_t), (alpha, sig, lam_s) = two_levels(sde)
    h = lam_s - lam_t
    m = sde.time(torch.tensor(lam_t + r * h, dtype=F64))
    d = denoiser(x, t)
    mid = float(sde.sigma(m)) / sig_t * x - float(sde.alpha(m)) * math.expm1(-r * h) * d
    mean = d + (denoiser(mid, m) - d) / (2 * r)
    expected = sig / sig_t * x - alpha * math.expm1(-h) * mean
    got, _ = step(denoiser, x, t, s, None, silent)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_dpm_2_a_without_noise_is_the_midpoint_rule_in_sigma_over_alpha(sde):
    denoiser, x = grid25().denoiser(sde), starts(sde, 8, 2)
    t, s, (alpha_t, _, lam_t), (alpha, _, lam_s) = two_levels(sde)
    m = sde.time(torch.tensor((lam_t + lam_s) / 2, dtype=F64))
    r, r_m, r_s = math.exp(-lam_t), math.exp(-lam(sde, m)), math.exp(-lam_s)
    y_mid = x / alpha_t + (r_m - r) * denoiser.eps(x, t)
    y = x / alpha_t + (r_s - r) * denoiser.eps(float(sde.alpha(m)) * y_mid, m)
    got, _ = DPM2A(0.0)(denoiser, x, t, s, None, silent)
    torch.testing.assert_close(got, alpha * y, rtol=1e-8, atol=1e-9)


def test_2m_without_noise_is_dpm_solver_pp_2m(sde):
    """x_s = (sigma_s/sigma_t) x - alpha_s expm1(-h) [(1 + 1/2r) D - D_last / 2r] over a grid."""
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 8, 2), grids.karras()(sde, 8)
    expected, last, h_last = x, None, None
    for t, s in pairwise(ts):
        h, d = lam(sde, s) - lam(sde, t), denoiser(expected, t)
        mean = d if last is None else d + (d - last) * h / (2 * h_last)
        ratio = float(sde.sigma(s) / sde.sigma(t))
        expected = ratio * expected - float(sde.alpha(s)) * math.expm1(-h) * mean
        last, h_last = d, h
    got = walk(dpmpp_2m_sde(0.0), denoiser, x, ts, silent)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


# --- textbook equalities -------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm_on_the_table_is_the_textbook_chain(variance):
    """x_{i-1} = posterior mean + sqrt(variance) z, to 1e-12, at every level."""
    sde, betas = DiscreteVP(), torch.tensor(linear_betas(), dtype=F64)
    bars = torch.cumprod(1 - betas, 0)
    x, z = normal(16, 5), normal(16, 5, seed=1)
    mix = torch.linspace(-0.1, 1.1, 80, dtype=F64).reshape(16, 5)
    denoiser = Denoiser(sde, lambda x, t: torch.tanh(x), lambda x, t: mix)
    for i in (1, 2, 10, 500, 998, 999):
        t, s = torch.tensor([(i + 1) / 1000, i / 1000], dtype=F64)
        beta, bar, last = betas[i], bars[i], bars[i - 1]
        mean = last.sqrt() * beta / (1 - bar) * torch.tanh(x)
        mean = mean + (1 - beta).sqrt() * (1 - last) / (1 - bar) * x
        small = beta * (1 - last) / (1 - bar)
        learned = torch.exp(mix * beta.log() + (1 - mix) * small.log())
        v = {"small": small, "large": beta, "learned": learned}[variance]
        got, _ = ddpm(variance)(denoiser, x, t, s, None, lambda x, t, s: z)
        torch.testing.assert_close(got, mean + v.sqrt() * z, rtol=0, atol=1e-12)


def test_a_variance_of_the_chain_is_for_the_chain():
    with pytest.raises(ValueError, match="variance=large is of eta=1"):
        DDIM(0.5, "large")
    sde, (t, s) = DiscreteVP(), torch.tensor([0.5, 0.4], dtype=F64)
    denoiser, x = Denoiser(sde, lambda x, t: x), normal(2, 3)
    with pytest.raises(ValueError, match="no learned variance"):
        ddpm("learned")(denoiser, x, t, s, None, per_sample_noise(range(2)))


@pytest.mark.parametrize("step", [ddpm(), euler_a()], ids=label)
def test_ancestral_by_other_names(sde, step):
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 5, 2), grids.uniform(sde, 20)
    got, expected = (
        walk(s, denoiser, x, ts, per_sample_noise(range(5))) for s in (step, ancestral())
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_strided_ddpm_is_the_chain_of_the_retained_levels():
    """A stride of 100 on the table is DDPM with beta = 1 - bar_t / bar_s."""
    sde, bars = DiscreteVP(), torch.cumprod(1 - torch.tensor(linear_betas(), dtype=F64), 0)
    x, z = starts(sde, 4, 3), torch.ones(4, 3, dtype=F64)
    t, s = torch.tensor([0.6, 0.5], dtype=F64)
    beta = 1 - bars[599] / bars[499]
    mean = bars[499].sqrt() * beta / (1 - bars[599]) * 0.5 * x
    mean = mean + (1 - beta).sqrt() * (1 - bars[499]) / (1 - bars[599]) * x
    denoiser = Denoiser(sde, lambda x, t: 0.5 * x)
    got, _ = ddpm("large")(denoiser, x, t, s, None, lambda x, t, s: z)
    torch.testing.assert_close(got, mean + beta.sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_family_is_that_of_k_diffusion(sde, eta):
    """In y: up = min(r', eta sqrt(r'^2 (r^2 - r'^2) / r^2)), down = sqrt(r'^2 - up^2)."""
    denoiser, x = grid25().denoiser(sde), starts(sde, 6, 2)
    t, s, (alpha_t, _, lam_t), (alpha, _, lam_s) = two_levels(sde, 5)
    r, r_s, z = math.exp(-lam_t), math.exp(-lam_s), normal(6, 2, seed=1)
    up = min(r_s, eta * math.sqrt(r_s**2 * (r**2 - r_s**2) / r**2))
    down = math.sqrt(r_s**2 - up**2)
    h = math.log(r / down)
    m = sde.time(torch.tensor(lam_t + h / 2, dtype=F64))
    alpha_m, r_m = float(sde.alpha(m)), math.exp(-lam_t - h / 2)
    y, d = x / alpha_t, denoiser(x, t)
    euler = y + (y - d) / r * (down - r)
    y_mid = y + (y - d) / r * (r_m - r)
    two_a = y + (y_mid - denoiser(alpha_m * y_mid, m)) / r_m * (down - r)
    y_mid = r_m / r * y - math.expm1(-h / 2) * d
    two_s = down / r * y - math.expm1(-h) * denoiser(alpha_m * y_mid, m)
    for step, mean in [(euler_a(eta), euler), (DPM2A(eta), two_a), (DPMpp2SA(eta), two_s)]:
        got, _ = step(denoiser, x, t, s, None, lambda x, t, s: z)
        torch.testing.assert_close(got / alpha, mean + up * z, rtol=1e-7, atol=1e-8)


def published_3m(denoiser, x, ts, eta, z):
    """DPM-Solver++(3M) SDE in sigma-space as k-diffusion has it, its phi_3 term included."""
    d1, d2, h1, h2 = None, None, None, None
    for t, s in pairwise(ts):
        d, h = denoiser(x, t), math.log(float(t / s))
        big = h * (eta + 1)
        x = math.exp(-big) * x - math.expm1(-big) * d
        phi_2 = math.expm1(-big) / big + 1
        if h2 is not None:
            r0, r1 = h1 / h, h2 / h
            first, older = (d - d1) / r0, (d1 - d2) / r1
            slope = first + (first - older) * r0 / (r0 + r1)
            x = x + phi_2 * slope - (phi_2 / big - 0.5) * (first - older) / (r0 + r1)
        elif h1 is not None:
            x = x + phi_2 * (d - d1) * h / h1
        x = x + z * float(s) * math.sqrt(-math.expm1(-2 * h * eta))
        d1, d2, h1, h2 = d, d1, h, h1
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_published_3m_is_that_of_k_diffusion(eta):
    sde = EDM()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 6, 2), grids.karras()(sde, 12)
    z = normal(6, 2, seed=1)
    got = walk(dpmpp_3m_sde(eta, published=True), denoiser, x, ts, lambda x, t, s: z)
    expected = published_3m(denoiser, x, ts, eta, z)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_heun_2m_is_that_of_k_diffusion(eta):
    """The extrapolation weighted by expm1(-H) / H + 1, H = (1 + eta) h."""
    sde = EDM()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 6, 2), grids.karras()(sde, 3)
    z, d, expected = normal(6, 2, seed=1), [], x
    for i, (t, s) in enumerate(pairwise(ts)):
        h, ratio = math.log(float(t / s)), float(s / t)
        big = (1 + eta) * h
        d.append(denoiser(expected, t))
        expected = ratio * math.exp(-eta * h) * expected - math.expm1(-big) * d[-1]
        if i:
            r = math.log(float(ts[i - 1] / t)) / h
            expected = expected + (math.expm1(-big) / big + 1) / r * (d[-1] - d[-2])
        expected = expected + z * float(s) * math.sqrt(-math.expm1(-2 * eta * h))
    got = walk(dpmpp_2m_sde(eta, heun=True), denoiser, x, ts, lambda x, t, s: z)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_churned_heun_is_edm_algorithm_2():
    sde, n = EDM(), 12
    step = Churned(Heun(published=True), s_churn=5, s_tmin=0.05, s_tmax=50, s_noise=1.003, steps=n)
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 6, 2), grids.karras()(sde, n)
    z, expected = normal(6, 2, seed=1), x
    for t, s in pairwise(ts.tolist()):
        gamma = min(5 / n, math.sqrt(2) - 1) if 0.05 <= t <= 50 else 0.0
        hat = torch.tensor(t * (1 + gamma), dtype=F64)
        expected = expected + math.sqrt(float(hat) ** 2 - t**2) * 1.003 * z
        d = (expected - denoiser(expected, hat)) / hat
        guess, s = expected + (s - hat) * d, torch.tensor(s, dtype=F64)
        expected = expected + (s - hat) * (d + (guess - denoiser(guess, s)) / s) / 2
    got = walk(step, denoiser, x, ts, lambda x, t=None, s=None: z)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("step", [DDIM(), Heun(), ancestral(), dpmpp_2m_sde()], ids=label)
def test_churn_of_nothing_is_the_step_itself(sde, step):
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4, 2), grids.karras()(sde, 6)
    for still in (Churned(step, s_churn=0), Churned(step, s_tmin=1e9)):
        got, expected = (
            walk(s, denoiser, x, ts, per_sample_noise(range(4))) for s in (still, step)
        )
        assert torch.equal(got, expected)


def test_restart_walks_its_interval_as_often_as_told():
    """Calls: the grid's, and times x steps more at one step; none where the grid stays above."""
    sde, calls = EDM(), []
    denoiser = Denoiser(sde, lambda x, t: calls.append(float(t)) or 0.1 * x)
    step = Restart(DDIM(), low=0.1, high=2.0, times=3, steps=4)
    ts = grids.karras()(sde, 10)
    walk(step, denoiser, starts(sde, 2, 2), ts, per_sample_noise([0, 1]))
    assert len(calls) == 10 + 3 * 4
    assert sum(t == pytest.approx(2.0) for t in calls) == 3
    calls.clear()
    walk(step, denoiser, starts(sde, 2, 2), ts[:4], per_sample_noise([0, 1]))
    assert len(calls) == 3


@pytest.mark.parametrize("grid", [grids.karras(), grids.log_snr])
@pytest.mark.parametrize("n", [12, 40, 160])
def test_no_step_of_a_restart_is_longer_than_that_before_it(sde, grid, n):
    """In r^(1/7), the variable of the way down; so its error shrinks with that of the grid."""
    taken = []

    class Watched(DDIM):
        def __call__(self, denoiser, x, t, s, state, noise):
            taken.append([math.exp(-lam(sde, each) / 7) for each in (t, s)])
            return super().__call__(denoiser, x, t, s, state, noise)

    step = Restart(Watched(), low=0.1, high=2.0, times=2, steps=2)
    walk(step, ONE_D.denoiser(sde), starts(sde, 1, 1), grid(sde, n), per_sample_noise([0]))
    first, second = (k for k in range(1, len(taken)) if taken[k][0] > taken[k - 1][1] + 1e-9)
    before, inner = taken[first - 1], taken[first:second]
    assert len(inner) >= 2
    assert inner[-1][1] == pytest.approx(before[1])
    assert max(a - b for a, b in inner) <= (before[0] - before[1]) * (1 + 1e-6)
    assert len(taken) == n + 2 * len(inner)


def test_dpmpp_sde_reads_its_two_draws_as_one_brownian_path(sde):
    """With x0 held, two ancestral steps and one whole step with the same two draws agree."""
    denoiser = Denoiser(sde, lambda x, t: torch.full_like(x, 0.3))
    x, (t, s) = starts(sde, 5, 2), grids.log_snr(sde, 6)[2:4]
    middle, draws = [], [normal(5, 2, seed=1), normal(5, 2, seed=2)]

    def noise(x, t, s):
        middle.append((t, s))
        return draws[len(middle) % 2]

    whole, _ = DPMppSDE(r=0.3)(denoiser, x, t, s, None, noise)
    (start, m), (again, end) = middle
    assert (start, m, end) == (t, again, s)
    assert lam(sde, m) == pytest.approx(0.7 * lam(sde, t) + 0.3 * lam(sde, s), abs=1e-9)
    halves = walk(euler_a(), denoiser, x, torch.stack([t, m, s]), noise)
    torch.testing.assert_close(whole, halves, rtol=1e-8, atol=1e-9)


# --- stochastic Adams ------------------------------------------------------------------------


def integrals(decay, count):
    """The integrals of H e^(-H (1 - u)) u^k over [0, 1], k < count: Gauss in 400 panels."""
    edges = torch.linspace(0, 1, 401, dtype=F64)
    gauss = torch.tensor([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], dtype=F64)
    u = (edges[:-1, None] + gauss / 400).flatten()
    w = torch.tensor([5 / 18, 8 / 18, 5 / 18], dtype=F64).repeat(400) / 400
    return [float((w * decay * torch.exp(-decay * (1 - u)) * u**k).sum()) for k in range(count)]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("h", [1e-3, 0.1, 1.0, 7.0])
def test_weights_integrate_polynomials(eta, h):
    """sum_j w_j u_j^k = alpha_s times the integral of H e^(-H (1 - u)) u^k, H = (1 + eta) h."""
    at, to = Marginal(0.3, 0.3 * math.exp(1.0), -1.0), Marginal(0.7, 0.7 * math.exp(1 - h), h - 1)
    exact, nodes = integrals((1 + eta) * h, 4), [1.0, 0.0, -0.7, -2.1]
    for count in (1, 2, 3, 4):
        lams = tuple(u * h - 1 for u in nodes[:count])
        weights = EXACT.weights(Forgetting(eta=eta), VP(), at, to, lams)
        for k in range(count):
            total = sum(w * u**k for w, u in zip(weights, nodes, strict=False))
            assert total == pytest.approx(0.7 * exact[k], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("std", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("eta", [0.25, 1.0, 2.0])
def test_gaussian_data_of_the_deviation_of_the_frame_costs_no_error(sde, std, eta):
    """From its marginal at t_max one single step gives the exact mean and variance at t_eps."""
    if std == 0:
        data = Gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([1e-30], dtype=F64))
    else:
        data = Gaussian(torch.tensor([0.0], dtype=F64), torch.tensor([std**2], dtype=F64))
    ts = torch.tensor([sde.t_max, sde.t_eps], dtype=F64)
    for step in (StochasticMultistep(1, eta, std), SASolver(1, 1, eta**0.5, std)):
        mean, variance = bias(step, sde, ts, data)
        assert abs(mean) < 1e-9
        assert abs(variance) < 1e-9


def ramp(sde, degree):
    """A denoiser that is a polynomial of lam whatever x is, and its exact transport."""
    powers = [math.cos(k + 1) for k in range(degree + 1)]
    value = lambda u: sum(p * u**k for k, p in enumerate(powers))  # noqa: E731
    denoiser = Denoiser(sde, lambda x, t: torch.full_like(x, value(float(sde.lam(t)))))

    def exact(x, t, s, eta):
        h = lam(sde, s) - lam(sde, t)
        taylor = [0.0] * (degree + 1)  # of value(lam_t + u h) in u
        for k, p in enumerate(powers):
            for j in range(k + 1):
                taylor[j] += p * math.comb(k, j) * lam(sde, t) ** (k - j) * h**j
        integral = sum(
            c * m for c, m in zip(taylor, integrals((1 + eta) * h, degree + 1), strict=True)
        )
        ratio = float(sde.sigma(s) / sde.sigma(t)) * math.exp(-eta * h)
        return ratio * x + float(sde.alpha(s)) * integral

    return denoiser, exact


@pytest.mark.parametrize(
    ("step", "degree", "exactly"),
    [
        (dpmpp_2m_sde(heun=True), 1, True),
        (dpmpp_2m_sde(), 1, False),
        (dpmpp_3m_sde(), 2, True),
        (dpmpp_3m_sde(0.0), 2, True),
        (dpmpp_3m_sde(published=True), 2, False),
        (SASolver(), 1, True),
        (SASolver(1, 3), 2, True),
        (SASolver(3, 4, 0.5), 3, True),
        (SASolver(4, 3), 3, False),
    ],
    ids=label,
)
def test_steps_are_exact_for_polynomials_of_lam(step, degree, exactly):
    """Once started; the factor 2 is what makes the third-order step exact for a parabola."""
    sde = VP()
    denoiser, exact = ramp(sde, degree)
    ts, x, state = grids.karras()(sde, 12), torch.ones(1, 1, dtype=F64), None
    eta = step.tau**2 if isinstance(step, SASolver) else step.eta
    gaps = []
    for t, s in pairwise(ts):
        y, state = step(denoiser, x, t, s, state, lambda x, t, s: torch.zeros_like(x))
        gaps.append(abs(float(y - exact(x, t, s, eta))))
        x = y
    if exactly:
        assert max(gaps[3:]) < 1e-10
    else:
        assert min(gaps[3:]) > 1e-6


def test_sa_predictor_is_exact_for_its_degree():
    """The state handed to the network at s is the predicted one."""
    sde, seen = VP(), []
    denoiser, exact = ramp(sde, 2)
    spy = Denoiser(sde, lambda x, t: seen.append(float(x)) or denoiser(x, t))
    ts, x, state = grids.karras()(sde, 8), torch.ones(1, 1, dtype=F64), None
    for i, (t, s) in enumerate(pairwise(ts)):
        y, state = SASolver(3, 1)(spy, x, t, s, state, lambda x, t, s: torch.zeros_like(x))
        if i >= 2:
            assert seen[-1] == pytest.approx(float(exact(x, t, s, 1.0)), abs=1e-11)
        x = y
    assert len(seen) == len(ts)  # one call a step, and one more


# --- invariances -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS, ids=label)
def test_relabelling_vp_as_ve_changes_nothing(step):
    """Through x / alpha the two processes are one: same lam, same draws, same samples."""
    y, ends = normal(8, 2) * math.exp(3.5), []
    for sde in (VP(), VE()):
        ts = sde.time(torch.linspace(-3.5, 4.5, 13, dtype=F64))
        x = sde.alpha(ts[0]) * y
        ends.append(sample(grid25().denoiser(sde), x, ts, step, per_sample_noise(range(8))))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("step", [*STEPS, PLAIN], ids=label)
def test_a_sample_does_not_depend_on_its_batch(step):
    sde, data = SubVP(), grid25()
    x, ts = starts(sde, 7, 2), grids.karras()(sde, 12)
    run = lambda i: sample(data.denoiser(sde), x[i], ts, step, per_sample_noise(i))  # noqa: E731
    together = run(list(range(7)))
    for i in (0, 3, 6):
        torch.testing.assert_close(run([i])[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [*STEPS, PLAIN], ids=label)
def test_a_step_is_a_pure_function(step):
    """Neither the input nor the state changes, the same arguments give the same result, and the
    network is called as often as declared.
    """
    sde, calls = VP(), []
    exact = grid25().denoiser(sde)
    denoiser = Denoiser(sde, lambda x, t: calls.append(float(t)) or exact(x, t))
    x, ts = starts(sde, 3, 2), grids.log_snr(sde, 5)
    z = normal(3, 2)
    noise = lambda x, t=None, s=None: z.clone()  # noqa: E731
    kept, state = x.clone(), None
    for t, s in pairwise(ts):
        calls.clear()
        before = [p.value.clone() for p in state or ()]
        first, after = step(denoiser, x, t, s, state, noise)
        made = len(calls)
        again, _ = step(denoiser, x, t, s, state, noise)
        assert torch.equal(first, again)
        assert torch.equal(x, kept)
        assert all(torch.equal(a, p.value) for a, p in zip(before, state or (), strict=True))
        if isinstance(step, MULTISTEP):
            assert made == 1 + (isinstance(step, SASolver) and state is None)
        elif step != STEPS[-1]:  # a restart calls more where it restarts
            assert made == step.nfe_per_step
        x, state, kept = first, after, first.clone()


@pytest.mark.parametrize("step", [*STEPS, PLAIN], ids=label)
def test_any_shape_and_single_precision(step):
    sde = VP()
    denoiser = Gaussian(torch.full((3, 9, 7), 0.4), torch.tensor(0.25)).denoiser(sde)
    x = starts(sde, 2, 189).reshape(2, 3, 9, 7)
    ts = grids.log_snr(sde, 8)
    z = torch.randn(2, 3, 9, 7, generator=generator(1), dtype=F64)
    noise = lambda x, t=None, s=None: z.to(x)  # noqa: E731
    ends = [sample(denoiser, start, ts, step, noise) for start in (x, x.float())]
    assert ends[1].dtype == torch.float32
    torch.testing.assert_close(ends[1].double(), ends[0], rtol=1e-4, atol=1e-4)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: euler_a(1.5), "0 <= eta <= 1, got eta=1.5"),
        (lambda: euler_a(float("nan")), "eta=nan"),
        (lambda: DPM2A(-1), "eta=-1"),
        (lambda: DPMpp2SA(2), "eta=2"),
        (lambda: DPMppSDE(eta=1.1), "eta=1.1"),
        (lambda: DPMppSDE(r=1.0), "0 < r < 1, got r=1"),
        (lambda: dpmpp_2m_sde(-0.1), "eta=-0.1"),
        (lambda: dpmpp_3m_sde(float("inf")), "eta=inf"),
        (lambda: SASolver(5, 2), "predictor=5"),
        (lambda: SASolver(2, 0), "corrector=0"),
        (lambda: SASolver(tau=-1), "tau=-1"),
        (lambda: Churned(Heun(), s_churn=-1), "s_churn=-1"),
        (lambda: Churned(Heun(), steps=0), "steps=0"),
        (lambda: Churned(Heun(), s_tmin=2, s_tmax=1), "s_tmin=2, s_tmax=1"),
        (lambda: Restart(Heun(), times=0), "times=0"),
        (lambda: Restart(Heun(), low=0.0), "low=0"),
        (lambda: Restart(Heun(), low=1.0, high=0.5), "low=1, high=0.5"),
    ],
)
def test_bad_options_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("step", [*STEPS, PLAIN], ids=label)
def test_an_increasing_grid_is_refused_before_the_first_call(step):
    ts = grids.uniform(VP(), 5).flip(0)
    with pytest.raises(ValueError, match=r"goes to less noise, got t=0\.001 to s=0\.2"):
        sample(Denoiser(VP(), never), torch.zeros(1, 2), ts, step, per_sample_noise([0]))


@pytest.mark.parametrize(
    "step", [euler_a(0.0), DPM2A(0.0), DPMpp2SA(0.0), dpmpp_2m_sde(0.0)], ids=label
)
def test_without_noise_a_grid_may_increase(step):
    sde, x = VP(), 0.5 * normal(4, 2)
    denoiser = Gaussian(torch.zeros(2, dtype=F64), torch.tensor(0.25, dtype=F64)).denoiser(sde)
    ts = grids.log_snr(sde, 200)
    up = walk(step, denoiser, x, ts.flip(0), silent)
    back = walk(step, denoiser, up, ts, silent)
    torch.testing.assert_close(back, x, rtol=0.1, atol=0.02)
