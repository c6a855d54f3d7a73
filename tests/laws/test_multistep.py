"""The laws of the multistep family: exact weights, orders, reductions, invariances."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from scoresde import EDM, VE, VP, Denoiser, LinearFlow, SubVP, sample
from scoresde.samplers import (
    DDIM,
    EPS,
    X0,
    Multistep,
    SingleStep,
    UniPC,
    V,
    deis,
    dpm_solver,
    dpm_solver_singlestep,
    dpmpp_2m,
    dpmpp_3m,
    eab,
    grids,
    ipndm,
    ipndm_v,
    lms,
    per_sample_noise,
    plms,
    trajectory,
    unipc,
    white_noise,
)
from scoresde.samplers.integrals import (
    BH1,
    BH2,
    EXACT,
    FixedAdams,
    Interpolation,
    PublishedTaylor,
    Share,
    clock,
    ratio,
    share,
)
from scoresde.samplers.kernels import marginal
from scoresde.samplers.singlestep import THIRDS
from scoresde.testing import grid25

from .conftest import WholeFlow

F64 = torch.float64
PROCESS = pytest.mark.parametrize(
    "sde", [VP(), EDM(), LinearFlow()], ids=lambda sde: type(sde).__name__
)


def label(step):
    """A short name of a step for the test's id."""
    kind = type(step).__name__ + type(step.prediction).__name__ + type(step.rule).__name__
    return f"{kind}{step.points}{'' if step.start is None else 'started'}"


def starts(sde, n, seed=0):
    """Exact draws of the marginal of grid25 at t_max."""
    return noisy(sde, torch.tensor(sde.t_max, dtype=F64), n, seed)


def noisy(sde, t, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sde.perturb(grid25().sample(n, g), t, torch.randn(n, 2, generator=g, dtype=F64))


def between(sde, first, last, n):
    """n steps equal in lam."""
    return sde.time(torch.linspace(first, last, n + 1, dtype=F64))


def slope(sde, step, first, counts=(160, 320)):
    """Observed order on grid25, from lam = first to lam = log(1 / 0.3)."""
    x, exact = reference(sde, first)
    errors = []
    for n in counts:
        ts = between(sde, first, LAST, n)
        end = sample(grid25().denoiser(sde), x, ts, step, denoise=False)
        errors.append(float((end - exact).norm()))
    return math.log2(errors[-2] / errors[-1])


LAST = math.log(1 / 0.3)


@cache
def reference(sde, first):
    """32 starts and their end by a single-step method, independent of what is tested."""
    ts = between(sde, first, LAST, 960)
    x = noisy(sde, ts[0], 32)
    step = dpm_solver_singlestep(3, X0)
    return x, sample(grid25().denoiser(sde), x, ts, step, denoise=False)


def first_lam(sde):
    """lam at t_max, or -4.5: the linear flow spends a third of its lam below, on nothing."""
    return max(-4.5, float(sde.lam(torch.tensor(sde.t_max, dtype=F64))))


# --- weights ------------------------------------------------------------------------------


def closed_moment(prediction, at, to, k):
    """u_s int theta^k dtheta for the natural variable theta of a frame, in closed form."""
    theta = {
        EPS: lambda p: p.sigma / p.alpha,
        X0: lambda p: p.alpha / p.sigma,
        V: lambda p: p.sigma / (p.alpha + p.sigma),
    }[prediction]
    unit = {EPS: to.alpha, X0: to.sigma, V: to.alpha + to.sigma}[prediction]
    return unit * (theta(to) ** (k + 1) - theta(at) ** (k + 1)) / (k + 1)


@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_the_share_is_that_of_the_noise_in_units_of_the_data(sde, std):
    ts = torch.linspace(0.2, 0.9, 5, dtype=F64) * sde.t_max
    found = Share(std)(sde, sde.lam(ts).numpy())
    expected = sde.sigma(ts) / (sde.alpha(ts) * std + sde.sigma(ts))
    assert found == pytest.approx(expected.numpy(), rel=1e-10)


def inverse_ratio(sde, lam):
    return np.exp(lam)


STEP_LAMS = [(0.3, 0.45), (-2.0, 1.5), (-4.0, 3.7), (1.0, 0.2)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("ends", STEP_LAMS, ids=str)
@pytest.mark.parametrize(
    ("prediction", "variable"), [(EPS, ratio), (X0, inverse_ratio), (V, share)]
)
def test_weights_integrate_polynomials_exactly(prediction, variable, ends, count):
    """sum_j w_j theta_j^k = u_s int theta^k dtheta for k below the number of readings."""
    sde = VP()
    at, to = (marginal(sde, t) for t in sde.time(torch.tensor(ends, dtype=F64)))
    lams = (at.lam, at.lam - 0.2, at.lam - 0.5, at.lam + 0.7)[:count]
    weights = Interpolation(variable).weights(prediction, sde, at, to, lams)
    theta = variable(sde, np.array(lams))
    for k in range(count):
        terms = np.array(weights) * theta**k
        expected = closed_moment(prediction, at, to, k)
        assert terms.sum() == pytest.approx(expected, abs=1e-13 * np.abs(terms).sum())


@pytest.mark.parametrize("ends", STEP_LAMS, ids=str)
@pytest.mark.parametrize(("prediction", "sign"), [(EPS, -1), (X0, 1)], ids=["eps", "x0"])
def test_weights_in_lam_are_the_phi_functions(prediction, sign, ends):
    """M_k = u_s int lam^k d(e^(+-lam)), by parts: u_s [e^(+-lam) lam^k] -+ k M_{k-1}."""
    sde = EDM()
    at, to = (marginal(sde, t) for t in sde.time(torch.tensor(ends, dtype=F64)))
    lams = (at.lam, at.lam - 0.3, at.lam - 0.4)
    weights = np.array(EXACT.weights(prediction, sde, at, to, lams))
    unit = to.alpha if prediction == EPS else to.sigma
    edge = lambda u, k: math.exp(sign * u) * u**k  # noqa: E731
    moment = unit * (edge(to.lam, 0) - edge(at.lam, 0))
    for k in range(3):
        if k:
            moment = unit * (edge(to.lam, k) - edge(at.lam, k)) - sign * k * moment
        terms = weights * np.array(lams) ** k
        assert terms.sum() == pytest.approx(moment, abs=1e-12 * (np.abs(terms).sum() + unit))


def test_the_clock_is_the_natural_variable_of_its_process():
    """On EDM time is sigma / alpha, on the linear flow it is sigma / (alpha + sigma)."""
    for sde, prediction, variable in [(EDM(), EPS, ratio), (LinearFlow(), V, share)]:
        at, to = (marginal(sde, t) for t in sde.time(torch.tensor([-1.5, 0.4], dtype=F64)))
        lams = (at.lam, -2.0, -2.2, -3.1)
        here, there = (
            Interpolation(v).weights(prediction, sde, at, to, lams) for v in (clock, variable)
        )
        np.testing.assert_allclose(here, there, rtol=1e-11)


def test_published_third_order_lacks_half_of_its_third_term():
    """DPM-Solver's own D1, D2 and phi, with and without the factor 2."""
    sde = VP()
    at, to = (marginal(sde, t) for t in sde.time(torch.tensor([0.2, 0.9], dtype=F64)))
    l0, l1, l2 = lams = (at.lam, -0.3, -1.1)
    h = to.lam - l0
    r0, r1 = (l0 - l1) / h, (l1 - l2) / h
    phi1 = math.expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    d10, d11 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = (d10 - d11) / (r0 + r1)
    for rule, factor in [(PublishedTaylor(), 1), (EXACT, 2)]:
        expected = to.alpha * (-phi1 * np.array([1, 0, 0]) + phi2 * d1 - phi3 * factor * d2)
        np.testing.assert_allclose(rule.weights(X0, sde, at, to, lams), expected, rtol=1e-10)


@pytest.mark.parametrize(("prediction", "sign"), [(X0, -1), (EPS, 1)], ids=["x0", "eps"])
@pytest.mark.parametrize(("rule", "scale"), [(BH1, lambda hh: hh), (BH2, math.expm1)])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_unipc_weights_solve_its_linear_system(prediction, sign, rule, scale, count):
    """x = ... - c E m0 - c B sum rho_k (m_k - m_0) / r_k, R rho = b, rho = 1 / 2 for two."""
    sde = VP()
    at, to = (marginal(sde, t) for t in sde.time(torch.tensor([0.2, 0.9], dtype=F64)))
    lams = (at.lam, to.lam, -0.3, -1.1)[:count]  # as the corrector sees them
    h = to.lam - at.lam
    hh, c = sign * h, to.alpha if prediction == X0 else to.sigma
    r = (np.array(lams[1:]) - at.lam) / h
    e, phi, b = math.expm1(hh), math.expm1(hh) / hh - 1, []
    for i in range(1, count):
        b.append(phi * math.factorial(i) / scale(hh))
        phi = phi / hh - 1 / math.factorial(i + 1)
    rho = np.linalg.solve(np.vander(r, increasing=True).T, b) if count > 2 else np.array([0.5])
    others = -c * scale(hh) * rho / r
    expected = [-c * e - others.sum(), *others]
    got = rule.weights(prediction, sde, at, to, lams)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


# --- orders -------------------------------------------------------------------------------

ORDERS = {
    "eab_eps2": eab(EPS, 2),
    "eab_x02": eab(X0, 2),
    "eab_v2": eab(V, 2),
    "dpmpp_2m": dpmpp_2m(),
    "dpmpp_3m": dpmpp_3m(),
    "dpm_solver3": dpm_solver(3),
    "eab_v3": eab(V, 3),
    "lms2": lms(2),
    "lms3": lms(3),
    "deis3_clock": deis(3, clock),
    "ipndm3": ipndm(3),
    "plms": plms(),
    "unipc1": unipc(1),
    "unipc2": unipc(2),
    "unipc2_bh1": unipc(2, EPS, exponential=False),
}
FOURTH = {
    "eab_eps4": eab(EPS, 4),
    "eab_x04": eab(X0, 4),
    "eab_v4": eab(V, 4),
    "lms4": lms(4),
    "unipc3": unipc(3),
}


@PROCESS
@pytest.mark.parametrize("name", ORDERS)
def test_order_on_a_mixture(sde, name):
    """From t_max, where the start is easy: neither slower nor faster than declared."""
    step = ORDERS[name]
    assert slope(sde, step, first_lam(sde)) == pytest.approx(step.order, abs=0.15)


@PROCESS
@pytest.mark.parametrize("name", FOURTH)
def test_fourth_order_on_a_mixture(sde, name):
    assert FOURTH[name].order == 4
    assert slope(sde, FOURTH[name], first_lam(sde)) > 3.5


STARTED = [eab(EPS, 3), eab(X0, 3), lms(3), unipc(2), eab(X0, 4), lms(4), unipc(3)]
RAMPED = [eab(EPS, 3, ramp=True), eab(X0, 4, ramp=True), lms(4, ramp=True)]
RAMPED += [unipc(3, published=True), dpmpp_3m(published=True)]


@pytest.mark.parametrize("step", [*STARTED, *RAMPED], ids=label)
def test_the_start_decides_the_order_where_the_start_is_hard(step):
    """From lam = 0, in the middle of the modes' separation, the ramp caps the order at 2 (3 for
    UniPC) and the single-step start does not.
    """
    tolerance = 0.15 if step.order < 4 else 0.3
    assert slope(VP(), step, 0.0, (80, 160)) == pytest.approx(step.order, abs=tolerance)


@pytest.mark.parametrize("step", [eab(X0, 3), eab(V, 4), unipc(3), lms(3)], ids=label)
def test_the_flow_is_inverted_at_the_same_order(gaussian, step):
    """Upwards, against the exact flow map of a Gaussian."""
    sde = VP()
    g = torch.Generator().manual_seed(0)
    t, s = between(sde, 1.0, -1.0, 1)
    x = sde.perturb(gaussian.sample(8, g), t, torch.randn(8, 4, generator=g, dtype=F64))
    exact = gaussian.flow(x, sde, t, s)
    errors = [
        (
            sample(gaussian.denoiser(sde), x, between(sde, 1.0, -1.0, n), step, denoise=False)
            - exact
        )
        for n in (40, 80)
    ]
    assert math.log2(float(errors[0].norm() / errors[1].norm())) > step.order - 0.3
    assert float(errors[1].abs().max()) < 1e-3


# --- reductions to published formulas -------------------------------------------------------

FIRST = [eab(EPS, 1), eab(X0, 1), eab(V, 1), lms(1), deis(1, clock), dpm_solver(1), ipndm(1)]


@pytest.mark.parametrize("step", FIRST, ids=label)
def test_order_one_of_every_family_is_ddim(sde, step):
    x, ts = starts(sde, 4), grids.karras()(sde, 6)
    denoiser = grid25().denoiser(sde)
    expected = sample(denoiser, x, ts, DDIM(), denoise=False)
    got = sample(denoiser, x, ts, step, denoise=False)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "step", [unipc(2), unipc(4, EPS, published=True), dpmpp_2m(), ipndm()], ids=label
)
def test_a_ramp_begins_with_ddim(sde, step):
    x, ts = starts(sde, 4), grids.log_snr(sde, 6)[:2]
    denoiser = grid25().denoiser(sde)
    got = sample(denoiser, x, ts, step, denoise=False)
    torch.testing.assert_close(got, sample(denoiser, x, ts, DDIM(), denoise=False))


def walk(step, sde, denoiser, x, ts):
    return [x, *(end for _, end in trajectory(denoiser, x, ts, step))]


def readings(prediction, denoiser, xs, ts):
    """What the step saw, newest last, as alpha, sigma, lam of each level and eps or x0."""
    read = denoiser.eps if prediction == EPS else denoiser
    return [marginal(denoiser.sde, t) for t in ts], [
        read(x, t) for x, t in zip(xs, ts, strict=True)
    ]


def test_dpmpp_2m_is_its_published_formula(sde):
    """x' = (sigma'/sigma) x - alpha' (e^-h - 1) [(1 + 1/2r) D - (1/2r) D_old], r = h_old / h."""
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4), grids.karras()(sde, 8)
    xs = walk(dpmpp_2m(), sde, denoiser, x, ts)
    (p0, p1, p2), (_, d1, _) = readings(X0, denoiser, xs[3:6], ts[3:6])
    d0 = denoiser(xs[3], ts[3])
    h = p2.lam - p1.lam
    r = (p1.lam - p0.lam) / h
    mean = (1 + 1 / (2 * r)) * d1 - d0 / (2 * r)
    expected = p2.sigma / p1.sigma * xs[4] - p2.alpha * math.expm1(-h) * mean
    torch.testing.assert_close(xs[5], expected, rtol=1e-10, atol=1e-12)


def test_two_readings_on_equal_steps_of_lam_are_phi_functions(sde):
    """eab(X0, 2): alpha' [(1 - e^-h) D + phi2 (D - D_old)], phi2 = 1 + (e^-h - 1) / h."""
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4), grids.log_snr(sde, 8)
    xs = walk(eab(X0, 2), sde, denoiser, x, ts)
    (_, p1, p2), (d0, d1, _) = readings(X0, denoiser, xs[3:6], ts[3:6])
    h = p2.lam - p1.lam
    change = -math.expm1(-h) * d1 + (1 + math.expm1(-h) / h) * (d1 - d0)
    expected = p2.sigma / p1.sigma * xs[4] + p2.alpha * change
    torch.testing.assert_close(xs[5], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [lms, ipndm_v], ids=lambda f: f.__name__)
def test_third_order_in_sigma_is_the_variable_step_formula(make):
    """The coefficients of iPNDM_v for three unequal steps of sigma / alpha."""
    sde = EDM()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4), grids.karras()(sde, 8)
    xs = walk(make(3), sde, denoiser, x, ts)
    e = [denoiser.eps(u, t) for u, t in zip(xs[4:7], ts[4:7], strict=True)]
    h2, h1, h = (float(a - b) for a, b in pairwise(ts[4:8]))
    temp = (1 - h / (3 * (h + h1))) * h * (h + h1) / (h1 * (h1 + h2)) / 2
    c = ((2 + h / h1) / 2 + temp, -h / h1 / 2 - (1 + h1 / h2) * temp, temp * h1 / h2)
    expected = xs[6] - h * (c[0] * e[2] + c[1] * e[1] + c[2] * e[0])
    torch.testing.assert_close(xs[7], expected, rtol=1e-9, atol=1e-11)


def test_fixed_weights_are_those_of_equal_steps():
    """Adams-Bashforth in sigma with equal steps of sigma is iPNDM."""
    sde = EDM(t_min=1.0, t_eps=1.0)
    at, to = (marginal(sde, t) for t in torch.tensor([5.0, 4.0], dtype=F64))
    for count in (1, 2, 3, 4):
        lams = tuple(-math.log(5.0 + j) for j in range(count))
        fixed, exact = (
            rule.weights(EPS, sde, at, to, lams) for rule in (FixedAdams(), Interpolation(ratio))
        )
        np.testing.assert_allclose(fixed, exact, rtol=1e-11)


def test_plms_begins_with_heun():
    sde = VP()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4), grids.uniform(sde, 10)
    p, q = marginal(sde, ts[0]), marginal(sde, ts[1])
    eps = denoiser.eps(x, ts[0])
    gap = q.sigma - q.alpha * p.sigma / p.alpha
    guess = q.alpha / p.alpha * x + gap * eps
    mean = (eps + denoiser.eps(guess, ts[1])) / 2
    got = sample(denoiser, x, ts[:2], plms(), denoise=False)
    torch.testing.assert_close(got, q.alpha / p.alpha * x + gap * mean, rtol=1e-10, atol=1e-12)


# --- invariances and contracts -----------------------------------------------------------------

ALL = [
    eab(EPS, 4),
    eab(X0, 3),
    eab(V, 4),
    eab(X0, 3, ramp=True),
    lms(),
    deis(3),
    dpm_solver(3, published=True),
    dpmpp_2m(),
    dpmpp_3m(),
    ipndm(),
    plms(),
    unipc(2, exponential=False),
    unipc(3, published=True),
    unipc(4, EPS),
]
CLOCKED = deis(4, clock)


@pytest.mark.parametrize("step", ALL, ids=label)
def test_relabelling_vp_as_ve_changes_nothing(step):
    """Through x / alpha the two processes are one: same lam, same samples."""
    lam = torch.linspace(-3.5, 4.5, 16, dtype=F64)
    y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * math.exp(3.5)
    results = []
    for sde in (VP(), VE()):
        ts = sde.time(lam)
        results.append(sample(grid25().denoiser(sde), sde.alpha(ts[0]) * y, ts, step))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("step", [*ALL, CLOCKED], ids=label)
def test_a_sample_does_not_depend_on_its_batch(step):
    sde = SubVP()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 5), grids.karras()(sde, 8)
    together = sample(denoiser, x, ts, step)
    for i in range(5):
        torch.testing.assert_close(
            sample(denoiser, x[i : i + 1], ts, step)[0], together[i], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("step", [*ALL, CLOCKED], ids=label)
def test_a_step_is_a_pure_function_and_leaves_its_state_alone(step):
    sde, noise = VP(), white_noise()
    denoiser, ts = grid25().denoiser(sde), grids.uniform(sde, 6)
    x, state, kept = starts(sde, 3), None, []
    for t, s in pairwise(ts):
        before = x.clone(), clones(state)
        first, after = step(denoiser, x, t, s, state, noise)
        again, _ = step(denoiser, x, t, s, state, noise)
        assert torch.equal(first, again)
        assert torch.equal(x, before[0])
        assert all(torch.equal(a, b) for a, b in zip(clones(state), before[1], strict=True))
        x, state = first, after
        kept.append(x)
    restarted = list(trajectory(denoiser, starts(sde, 3), ts, step))
    assert all(torch.equal(a, b) for a, (_, b) in zip(kept, restarted, strict=True))


def clones(state):
    """All tensors inside nested tuples."""
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    return [u for part in state for u in clones(part)] if isinstance(state, tuple) else []


@pytest.mark.parametrize("step", [*ALL, CLOCKED], ids=label)
def test_calls_are_as_declared(step):
    calls = []
    denoiser = Denoiser(VP(), lambda x, t: calls.append(1) or 0.5 * x)
    sample(denoiser, torch.ones(2, 3), grids.log_snr(VP(), 9), step, denoise=False)
    assert len(calls) == 9 * step.nfe_per_step + step.nfe_to_start


@pytest.mark.parametrize("step", [eab(V, 4), unipc(3), dpmpp_2m(), ipndm()], ids=label)
def test_any_shape_and_dtype(step):
    for shape, dtype in [((2,), torch.float32), ((3, 1, 4, 4), F64), ((1, 2, 3), torch.float32)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        denoiser = Denoiser(VP(), lambda x, t: 0.5 * x)
        y = sample(denoiser, x, grids.karras()(VP(), 7), step, per_sample_noise(range(len(x))))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert y.isfinite().all()


@pytest.mark.parametrize("step", [*ALL, CLOCKED], ids=label)
@pytest.mark.parametrize("times", [(1.0, 0.8, 0.6, 0.3, 0.1, 0.0), (0.0, 0.1, 0.4, 0.7, 1.0)])
def test_no_nan_where_alpha_or_sigma_vanishes(step, times):
    """The linear flow from pure noise to clean data and back, both ends included."""
    sde, ts = WholeFlow(), torch.tensor(times, dtype=F64)
    x = noisy(sde, ts[0], 4)
    walked = list(trajectory(grid25().denoiser(sde), x, ts, step))
    assert all(end.isfinite().all() for _, end in walked)


@pytest.mark.parametrize("step", [eab(X0, 3), unipc(2), lms()], ids=label)
def test_the_step_to_sigma_zero_is_the_denoised_state(step):
    """Ending the grid at sigma = 0 is ending it a step earlier and denoising there."""
    sde = EDM()
    denoiser, x = grid25().denoiser(sde), starts(sde, 4)
    ts = torch.cat([grids.karras()(sde, 12), torch.zeros(1, dtype=F64)])
    end = sample(denoiser, x, ts, step, denoise=False)
    torch.testing.assert_close(end, sample(denoiser, x, ts[:-1], step), rtol=0, atol=1e-12)


def test_bad_options_are_refused_before_any_call():
    for make, text in [
        (lambda: eab(X0, 5), "1 to 4 readings, got 5"),
        (lambda: lms(0), "got 0"),
        (lambda: unipc(5), "1 to 4 readings, got 5"),
        (lambda: dpm_solver(4), "orders 1, 2 and 3, got order=4"),
        (lambda: Multistep(X0, 3, EXACT, SingleStep(EPS, THIRDS)), "must read"),
        (lambda: UniPC(V, 3, BH2, SingleStep(EPS, THIRDS)), "must read"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()
