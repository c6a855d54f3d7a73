"""The laws of the steps: orders, invariances, exact moments, and the full matrix."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from scoresde import EDM, VE, VP, Denoiser, DiscreteVP, LinearFlow, SubVP, sample, trajectory
from scoresde import parameterization as params
from scoresde.convergence import weak_order
from scoresde.parameterization import ScoreModel
from scoresde.samplers import (
    DDIM,
    Corrected,
    EulerMaruyama,
    Heun,
    Langevin,
    ReverseDiffusion,
    ancestral,
    annealed_langevin,
    grids,
    per_sample_noise,
    solve_adaptive,
    white_noise,
)
from scoresde.sde import linear_betas
from scoresde.testing import Gaussian, Mixture, grid25
from scoresde.training.losses import network_target
from tests.laws.moments import bias

F64 = torch.float64
STOCHASTIC = [
    EulerMaruyama(),
    ReverseDiffusion(),
    ancestral(),
    DDIM(eta=0.5),
    DDIM(eta=1.0),
    Corrected(ReverseDiffusion(), Langevin()),
]
STEPS = [
    DDIM(),
    Heun(),
    Heun(published=True),
    *STOCHASTIC,
    Corrected(EulerMaruyama(), annealed_langevin(steps=2)),
]
GRIDS = [grids.uniform, grids.quadratic, grids.log_snr, grids.karras()]


def starts(sde, n, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sde.prior().stddev * torch.randn(n, dim, generator=g, dtype=F64)


def slope(errors):
    """Fitted order over successive halvings of the step."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


# --- orders of convergence ------------------------------------------------------------------


def till_the_modes_part(sde, n):
    """Short of the last decade of noise, where 25 sharp modes need more steps than a test has."""
    ends = float(sde.lam(torch.tensor(sde.t_max, dtype=F64))), math.log(1 / 0.3)
    return sde.time(torch.linspace(*ends, n + 1, dtype=F64))


@cache
def paths(sde):
    """64 starts and where error control to 1e-8 carries them along the flow."""
    x, ts = starts(sde, 64, 2), till_the_modes_part(sde, 1)
    solved = solve_adaptive(grid25().denoiser(sde), x, *ts.tolist(), 1e-8, 1e-8, max_nfe=10_000)
    assert solved.finished.all()
    return x, solved.x


@pytest.mark.parametrize("step", [DDIM(), Heun(), Heun(published=True)], ids=repr)
def test_order_on_a_mixture(sde, step):
    """The error falls at the declared order, neither slower nor faster."""
    denoiser = grid25().denoiser(sde)
    x, exact = paths(sde)
    errors = [
        float(
            (sample(denoiser, x, till_the_modes_part(sde, n), step, denoise=False) - exact).norm()
        )
        for n in (160, 320)
    ]
    assert slope(errors)[-1] == pytest.approx(step.order, abs=0.15)


@pytest.mark.parametrize("step", [DDIM(), Heun(), Heun(published=True)], ids=repr)
def test_order_on_a_gaussian_flow_map(sde, gaussian, step):
    denoiser, x = gaussian.denoiser(sde), starts(sde, 32, 4)
    exact = gaussian.flow(x, sde, *torch.tensor([sde.t_max, sde.t_eps], dtype=F64))
    errors = [
        float((sample(denoiser, x, grids.log_snr(sde, n), step, denoise=False) - exact).norm())
        for n in (160, 320)
    ]
    assert slope(errors)[-1] == pytest.approx(step.order, abs=0.15)


# --- exact moments of stochastic steps, without sampling ----------------------------------


@pytest.mark.parametrize("step", STOCHASTIC, ids=repr)
def test_stochastic_moments_converge_at_weak_order_one(sde, step):
    """Mean and variance on N(0.3, 0.5^2), propagated exactly: the bias halves as N doubles."""
    data = Gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([0.25], dtype=F64))
    biases = [bias(step, sde, grids.log_snr(sde, n), data) for n in (200, 400)]
    mean, variance = zip(*biases, strict=True)
    assert abs(variance[-1]) < 0.05
    assert abs(mean[-1]) < 0.01
    total = [abs(m) + abs(v) for m, v in biases]
    # Euler-Maruyama's first-order terms cancel for VE in equal steps of lam, and a corrector
    # repairs part of its predictor's bias.
    assert slope(total)[-1] > step.order - 0.15
    if isinstance(step, DDIM):
        assert slope(total)[-1] < step.order + 0.15


SHRINKING = [
    *(lambda n, s=s: s for s in STOCHASTIC[:5]),
    lambda n: Corrected(ReverseDiffusion(), Langevin(1 / math.sqrt(n))),
    lambda n: Corrected(Heun(), annealed_langevin(1 / math.sqrt(n), steps=2)),
]


@pytest.mark.parametrize("make", SHRINKING, ids=lambda make: repr(make(100)))
def test_weak_order_one_both_ways(sde, make):
    """On skewed data too; a corrector's snr shrinks with the steps, or its bias would stay."""
    assert make(100).order == make(100).weak_order == 1
    assert weak_order(make, sde).order == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("sde", "step", "std", "published"),
    [
        (VP(), EulerMaruyama(), 0.5, 0.5002),
        (VP(), ReverseDiffusion(), 0.5, 0.5019),
        (VE(), EulerMaruyama(), 0.25, 0.2503),
        (VE(), ReverseDiffusion(), 0.25, 0.2509),
        (VE(), ancestral(), 0.25, 0.2488),
    ],
)
def test_score_sde_deviations_on_its_own_grid(sde, step, std, published):
    """The deviation that score_sde's own predictors reach on N(0, std^2) in 1000 uniform steps."""
    data = Gaussian(torch.zeros(1, dtype=F64), torch.tensor([std**2], dtype=F64))
    _, variance = bias(step, sde, grids.uniform(sde, 999), data)
    assert std * math.sqrt(1 + variance) == pytest.approx(published, abs=5e-4)


# --- textbook equalities -------------------------------------------------------------------


def test_ancestral_on_the_table_is_the_ddpm_posterior():
    """x_{i-1} = posterior mean(x0_hat, x_i) + sqrt(posterior variance) z, to 1e-12, at every
    level.
    """
    sde, betas = DiscreteVP(), torch.tensor(linear_betas(), dtype=F64)
    alpha_bar = torch.cumprod(1 - betas, 0)
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(16, 5, generator=g, dtype=F64) for _ in range(2))
    denoiser = Denoiser(sde, lambda x, t: torch.tanh(x))
    for i in (1, 2, 10, 500, 998, 999):
        t, s = torch.tensor([(i + 1) / 1000, i / 1000], dtype=F64)
        beta, bar, previous = betas[i], alpha_bar[i], alpha_bar[i - 1]
        mean = previous.sqrt() * beta / (1 - bar) * torch.tanh(x)
        mean = mean + (1 - beta).sqrt() * (1 - previous) / (1 - bar) * x
        expected = mean + (beta * (1 - previous) / (1 - bar)).sqrt() * z
        got, _ = ancestral()(denoiser, x, t, s, None, lambda x, t, s: z)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_reverse_diffusion_is_the_published_predictor():
    """VP: x + [x - sqrt(1-b) x] + b score + sqrt(b) z on the table; VE: x + (v_i - v_j) score +
    ...
    """
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(4, 3, generator=g, dtype=F64) for _ in range(2))
    t, s = torch.tensor([0.5, 0.499], dtype=F64)
    for sde, drift, var in [
        (DiscreteVP(), math.sqrt(1 - linear_betas()[499]) - 1, linear_betas()[499]),
        (VE(), 0.0, float(VE().sigma(t) ** 2 - VE().sigma(s) ** 2)),
    ]:
        denoiser = Denoiser(sde, lambda x, t: 0.3 * x)
        expected = x - (drift * x - var * denoiser.score(x, t)) + math.sqrt(var) * z
        got, _ = ReverseDiffusion()(denoiser, x, t, s, None, lambda x, t, s: z)
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_ddim_is_euler_in_sigma_over_alpha(sde):
    """x/alpha moves by (r_s - r_t) eps with r = sigma / alpha: Euler on the probability flow."""
    denoiser, x = grid25().denoiser(sde), starts(sde, 8, 2)
    t, s = grids.log_snr(sde, 10)[3:5]
    ratio = lambda u: sde.sigma(u) / sde.alpha(u)  # noqa: E731
    moved = x / sde.alpha(t) + (ratio(s) - ratio(t)) * denoiser.eps(x, t)
    got, _ = DDIM()(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, sde.alpha(s) * moved, rtol=1e-10, atol=1e-12)


def test_heun_on_the_linear_flow_is_the_textbook_trapezoid():
    sde, data = LinearFlow(), grid25()
    denoiser, x = data.denoiser(sde), starts(sde, 8, 2)
    t, s = torch.tensor([0.7, 0.6], dtype=F64)
    slope = denoiser.velocity(x, t)
    guess = x + (s - t) * slope
    expected = x + (s - t) * (slope + denoiser.velocity(guess, s)) / 2
    got, _ = Heun()(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_published_heun_is_the_edm_sampler():
    """d = (x - D) / sigma, an Euler step of sigma, and the mean of both slopes."""
    sde, data = EDM(), grid25()
    denoiser, x = data.denoiser(sde), starts(sde, 8, 2)
    t, s = torch.tensor([2.0, 1.1], dtype=F64)
    d = (x - denoiser(x, t)) / t
    guess = x + (s - t) * d
    expected = x + (s - t) * (d + (guess - denoiser(guess, s)) / s) / 2
    got, _ = Heun(published=True)(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


HEUNS = [Heun(), Heun(published=True)]


@pytest.mark.parametrize("n", [10, 18])
def test_heun_errs_less_than_ddim_at_few_steps(sde, n):
    """On a mixture off the origin, on every grid: the bounded variables keep the first step tame.

    Equal steps of EDM's time waste all but one step; no rule can do anything with them.
    """
    plane = grid25()
    data = Mixture(plane.weights, plane.means + 1.0, plane.stds)
    denoiser, x = data.denoiser(sde), starts(sde, 64, 2)
    flow = solve_adaptive(denoiser, x, sde.t_max, sde.t_eps, 1e-8, 1e-8, max_nfe=10_000)
    exact = denoiser(flow.x, torch.tensor(sde.t_eps, dtype=F64))
    for grid in GRIDS[1:] if isinstance(sde, EDM) else GRIDS:
        ts = grid(sde, n)
        error = {s: (sample(denoiser, x, ts, s) - exact).norm() for s in (*HEUNS, DDIM())}
        assert error[Heun()] < error[DDIM()]
        assert error[Heun()] < 1.05 * error[Heun(published=True)]


# --- invariances -----------------------------------------------------------------------------


INVARIANT = [
    DDIM(),
    Heun(),
    Heun(published=True),
    ancestral(),
    DDIM(eta=0.5),
    Corrected(Heun(), Langevin()),
]


@pytest.mark.parametrize("step", INVARIANT, ids=repr)
def test_relabelling_vp_as_ve_changes_nothing(step):
    """Through x / alpha the two processes are one: same lam, same samples."""
    vp, ve = VP(), VE()
    lam = torch.linspace(-3.5, 4.5, 21, dtype=F64)
    data, seeds = grid25(), range(16)
    y = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * math.exp(3.5)
    ends = []
    for sde in (vp, ve):
        ts = sde.time(lam)
        x = sde.alpha(ts[0]) * y
        ends.append(sample(data.denoiser(sde), x, ts, step, per_sample_noise(seeds)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [EulerMaruyama(), ReverseDiffusion()], ids=repr)
def test_relabelling_agrees_in_the_limit_for_steps_discretised_in_x(step):
    """Their discretisation is of x, not of x / alpha: the moments agree as the step vanishes."""
    lam = lambda n: torch.linspace(-3.5, 4.5, n + 1, dtype=F64)  # noqa: E731
    data = Gaussian(torch.tensor([0.3], dtype=F64), torch.tensor([0.25], dtype=F64))
    gap = [
        abs(
            bias(step, VP(), VP().time(lam(n)), data)[1]
            - bias(step, VE(), VE().time(lam(n)), data)[1]
        )
        for n in (100, 400)
    ]
    assert gap[1] < 0.4 * gap[0]
    assert gap[1] < 0.01


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_a_sample_does_not_depend_on_its_batch(step):
    sde, data = SubVP(), grid25()
    x, ts = starts(sde, 7, 2), grids.karras()(sde, 12)
    run = lambda i: sample(data.denoiser(sde), x[i], ts, step, per_sample_noise(i))  # noqa: E731
    together = run(list(range(7)))
    for i in range(7):
        torch.testing.assert_close(run([i])[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_a_step_is_a_pure_function(step):
    """The same step object twice, and after other use, gives the same result; inputs are not
    changed.
    """
    sde = VP()
    x, ts = starts(sde, 3, 2), grids.uniform(sde, 5)
    kept, denoiser = x.clone(), grid25().denoiser(sde)
    first = sample(denoiser, x, ts, step, per_sample_noise([1, 2, 3]))
    sample(denoiser, x, grids.uniform(sde, 3), step, per_sample_noise([4, 5, 6]))
    again = sample(denoiser, x, ts, step, per_sample_noise([1, 2, 3]))
    assert torch.equal(first, again)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("published", [False, True])
def test_langevin_leaves_the_marginal_invariant(published):
    """Exact draws of p_t stay so after many corrections (a bias of order snr^2)."""
    sde, data = VP(), grid25()
    g = torch.Generator().manual_seed(0)
    t = torch.tensor(0.2, dtype=F64)
    n = 20_000
    x = sde.perturb(data.sample(n, g), t, torch.randn(n, 2, generator=g, dtype=F64))
    kernel = Langevin(snr=0.1, steps=30, published=published)
    y = kernel(data.denoiser(sde), x, t, white_noise(g))
    assert (y - x).square().mean().sqrt() > 0.1  # it moved
    torch.testing.assert_close(y.var(0) / x.var(0), torch.ones(2, dtype=F64), rtol=0.04, atol=0)
    gap = data.log_prob(y, sde, t).mean() - data.log_prob(x, sde, t).mean()
    assert abs(gap) < 0.03


def test_the_bias_of_langevin_is_that_of_its_docstring():
    """On pure noise the stationary variance is sigma^2 / (1 - snr^2)."""
    sde, data = VE(), Gaussian(torch.zeros(1, dtype=F64), torch.tensor(1e-12, dtype=F64))
    t = torch.tensor(0.4, dtype=F64)
    x, z = torch.tensor([[[0.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]], dtype=F64)
    for snr in (0.25, 0.5):
        moved = Langevin(snr)(data.denoiser(sde), x, t, lambda x, *times: z)
        b, a, c = moved.squeeze(1).tolist()  # x -> a x + b + c z
        stationary = c**2 / (1 - a**2)
        assert stationary / float(sde.sigma(t)) ** 2 == pytest.approx(1 / (1 - snr**2), rel=1e-6)
        assert b == 0


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_declared_calls_are_the_calls_made(step):
    sde, calls = VP(), []
    inner = grid25().denoiser(sde)
    counted = Denoiser(sde, lambda x, t: calls.append(1) or inner(x, t))
    sample(counted, starts(sde, 2, 2), grids.uniform(sde, 7), step, denoise=False)
    assert len(calls) == 7 * step.nfe_per_step


@pytest.mark.parametrize(
    "step", [EulerMaruyama(), ReverseDiffusion(), ancestral(), DDIM(eta=0.5)], ids=repr
)
def test_a_stochastic_step_refuses_to_run_backwards(step):
    sde = VP()
    with pytest.raises(ValueError, match="goes to less noise"):
        sample(grid25().denoiser(sde), starts(sde, 2, 2), grids.uniform(sde, 5).flip(0), step)


def test_langevin_repairs_a_wrong_start():
    sde, data = VE(), Gaussian(torch.tensor([1.0], dtype=F64), torch.tensor([0.25], dtype=F64))
    t = torch.tensor(0.4, dtype=F64)
    x = torch.zeros(4000, 1, dtype=F64)
    noise = white_noise(torch.Generator().manual_seed(0))
    y = annealed_langevin(snr=0.3, steps=200)(data.denoiser(sde), x, t, noise)
    std = math.sqrt(0.25 + float(sde.sigma(t)) ** 2)
    assert y.mean() == pytest.approx(1.0, abs=0.05)
    assert y.std() == pytest.approx(std, rel=0.1)


# --- grids and the loop ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_decrease_between_the_ends_of_the_process(sde, grid):
    for n in (1, 2, 17):
        ts = grid(sde, n)
        assert ts.dtype == F64
        assert ts.shape == (n + 1,)
        assert (float(ts[0]), float(ts[-1])) == (sde.t_max, sde.t_eps)
        assert (ts.diff() < 0).all()
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        grid(sde, 0)


def test_named_grids_are_uniform_in_what_they_say(sde):
    spread = lambda v: float(v.diff().std() / v.diff().mean().abs())  # noqa: E731
    assert spread(grids.uniform(sde, 20)) < 1e-9
    assert spread(grids.quadratic(sde, 20).sqrt()) < 1e-9
    assert spread(sde.lam(grids.log_snr(sde, 20))) < 1e-9
    ratio = (-sde.lam(grids.karras(7.0)(sde, 20))).exp()
    assert spread(ratio ** (1 / 7)) < 1e-6


def test_trajectory_yields_every_level_and_sample_its_denoised_end():
    sde = VP()
    denoiser, ts, x = grid25().denoiser(sde), grids.uniform(sde, 6), starts(sde, 4, 2)
    walk = list(trajectory(denoiser, x, ts, DDIM()))
    assert [float(s) for s, _ in walk] == ts[1:].tolist()
    end = walk[-1][1]
    assert torch.equal(sample(denoiser, x, ts, DDIM(), denoise=False), end)
    assert torch.equal(sample(denoiser, x, ts, DDIM()), denoiser(end, ts[-1]))


def test_the_flipped_grid_inverts_the_flow(sde):
    data, x = grid25(), starts(sde, 8, 2)
    ts = grids.log_snr(sde, 600)
    clean = sample(data.denoiser(sde), x, ts, Heun(), denoise=False)
    back = sample(data.denoiser(sde), clean, ts.flip(0), Heun(), denoise=False)
    torch.testing.assert_close(back / x.std(), x / x.std(), rtol=0, atol=0.02)


@pytest.mark.parametrize("ts", [torch.tensor([1.0]), torch.tensor([0.5, 0.5]), torch.zeros(2, 2)])
def test_a_grid_that_is_not_monotone_is_refused(ts):
    with pytest.raises(ValueError, match="strictly monotone"):
        sample(grid25().denoiser(VP()), torch.zeros(1, 2), ts, DDIM())


def test_bad_step_options_are_refused():
    for make, text in [
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: Langevin(snr=0.0), "snr=0"),
        (lambda: Langevin(snr=1.0), "snr=1"),
        (lambda: grids.karras(rho=-1), "rho=-1"),
        (lambda: per_sample_noise([1])(torch.zeros(2, 2)), "1 seeds for a batch of 2"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()


# --- the matrix has no holes --------------------------------------------------------------


@cache
def time_of(sde, noise):
    """The time of a noise coordinate: found once, as all pairings meet the same ones."""
    return sde.time(torch.tensor(-4 * noise, dtype=F64))


class ExactNetwork(torch.nn.Module):
    """The F of a parameterisation that makes x0_hat exact for a Gaussian: every pairing, no
    training.
    """

    def __init__(self, data, sde, parameterization):
        super().__init__()
        self.denoiser, self.sde, self.parameterization = data.denoiser(sde), sde, parameterization

    def forward(self, u, noise):
        t = time_of(self.sde, float(noise[0]))
        c = self.parameterization(self.sde, t)
        x = u / c.inp
        return (self.denoiser(x, t) - c.skip * x) / c.out


MATRIX = [DDIM(), Heun(), EulerMaruyama(), ReverseDiffusion(), ancestral()]
MATRIX += [Corrected(ReverseDiffusion(), Langevin()), Corrected(Heun(), annealed_langevin())]


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 9, 7)], ids=str)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "flow", "edm"])
def test_every_process_parameterisation_sampler_and_shape(sde, name, shape):
    """Mean and standard deviation of Gaussian data N(0.4, 0.5^2) through the whole pipeline."""
    p = params.edm() if name == "edm" else getattr(params, name)
    data = Gaussian(torch.full(shape, 0.4, dtype=F64), torch.tensor(0.25, dtype=F64))
    denoiser = ScoreModel(ExactNetwork(data, sde, p), sde, p).denoiser()
    n = max(40, 4000 // math.prod(shape))
    x = starts(sde, n, math.prod(shape)).reshape(n, *shape)
    noise = white_noise(torch.Generator().manual_seed(1))
    for step in MATRIX:
        y = sample(denoiser, x, grids.log_snr(sde, 40), step, noise)
        assert y.shape == x.shape
        assert float(y.mean()) == pytest.approx(0.4, abs=0.06), step
        # First order in 40 steps: ancestral ends near 0.42, reverse diffusion near 0.58.
        tolerance = 0.1 if step in (DDIM(), Heun()) else 0.2
        assert float(y.std()) == pytest.approx(0.5, rel=tolerance), step


def test_network_target_is_what_the_exact_network_returns(sde):
    """The target averaged over x0 | x is the exact F: the two directions of (7) agree."""
    data = Gaussian(torch.zeros(1, dtype=F64), torch.tensor(1e-8, dtype=F64))
    t = torch.tensor(0.3 * sde.t_max, dtype=F64)
    eps = torch.ones(1, 1, dtype=F64)
    x0 = torch.zeros(1, 1, dtype=F64)
    c = params.v(sde, t)
    net = ExactNetwork(data, sde, params.v)
    got = net(c.inp * sde.perturb(x0, t, eps), c.noise[None])
    torch.testing.assert_close(got, network_target(sde, c, x0, t, eps), rtol=1e-4, atol=1e-4)
