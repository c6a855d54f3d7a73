"""The laws of the single-step family: orders, reductions, invariances."""

import math
from functools import cache

import pytest
import torch

from scoresde import EDM, VE, VP, Denoiser, LinearFlow, SubVP, sample
from scoresde.samplers import (
    DDIM,
    EPS,
    X0,
    Heun,
    Scheme,
    SingleStep,
    V,
    dpm_2,
    dpm_fast,
    dpm_solver_singlestep,
    dpmpp_2s,
    eab,
    grids,
    white_noise,
)
from scoresde.samplers.integrals import Interpolation, ratio
from scoresde.samplers.kernels import marginal
from scoresde.samplers.singlestep import LINEAR, MIDPOINT, THIRDS, TRAPEZOID
from scoresde.testing import grid25

from .conftest import WholeFlow

F64 = torch.float64
LAST = math.log(1 / 0.3)
STEPS = {
    "dpm_2": dpm_2(),
    "dpmpp_2s": dpmpp_2s(),
    "trapezoid": SingleStep(X0, TRAPEZOID),
    "linear_v": SingleStep(V, LINEAR),
    "dpm_solver_3": dpm_solver_singlestep(3),
    "dpm_solver_3_x0": dpm_solver_singlestep(3, X0),
    "thirds_v": SingleStep(V, THIRDS),
    "rk3_rho": SingleStep(EPS, THIRDS, Interpolation(ratio)),
}
STEP = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
PROCESS = pytest.mark.parametrize(
    "sde", [VP(), EDM(), LinearFlow()], ids=lambda sde: type(sde).__name__
)


def starts(sde, n):
    g = torch.Generator().manual_seed(0)
    return sde.prior().stddev * torch.randn(n, 2, generator=g, dtype=F64)


def between(sde, n):
    """n steps equal in lam, from t_max to sigma / alpha = 0.3."""
    first = float(sde.lam(torch.tensor(sde.t_max, dtype=F64)))
    return sde.time(torch.linspace(first, LAST, n + 1, dtype=F64))


@cache
def reference(sde):
    """32 starts and their end by a multistep method, independent of what is tested."""
    x = starts(sde, 32)
    return x, sample(grid25().denoiser(sde), x, between(sde, 640), eab(X0, 4), denoise=False)


def error(sde, step, n):
    x, exact = reference(sde)
    end = sample(grid25().denoiser(sde), x, between(sde, n), step, denoise=False)
    return float((end - exact).norm())


# --- orders -------------------------------------------------------------------------------


@PROCESS
@STEP
def test_order_on_a_mixture(sde, step):
    """Neither slower nor faster than declared."""
    observed = math.log2(error(sde, step, 80) / error(sde, step, 160))
    assert observed == pytest.approx(step.order, abs=0.15)


def test_order_on_the_flow_map_of_a_gaussian_both_ways(gaussian):
    sde = VP()
    ends = torch.tensor([-1.0, 1.0], dtype=F64)
    g = torch.Generator().manual_seed(0)
    for first, last in (ends, ends.flip(0)):
        t, s = sde.time(torch.stack([first, last]))
        x = sde.perturb(gaussian.sample(8, g), t, torch.randn(8, 4, generator=g, dtype=F64))
        exact = gaussian.flow(x, sde, t, s)
        for step in (dpm_2(), dpmpp_2s(), dpm_solver_singlestep(3), SingleStep(V, THIRDS)):
            errors = []
            for n in (20, 40):
                ts = sde.time(torch.linspace(float(first), float(last), n + 1, dtype=F64))
                end = sample(gaussian.denoiser(sde), x, ts, step, denoise=False)
                errors.append(float((end - exact).norm()))
            assert math.log2(errors[0] / errors[1]) == pytest.approx(step.order, abs=0.3)


# --- reductions to published formulas --------------------------------------------------------


def two_levels(sde):
    """A step of the middle of a grid: times, levels, and the level in the middle in lam."""
    t, s = grids.log_snr(sde, 10)[4:6]
    middle = sde.time((sde.lam(t) + sde.lam(s)) / 2)
    return t, s, middle, *(marginal(sde, u) for u in (t, s, middle))


def test_dpm_2_is_its_published_formula():
    """d_mid at exp((ln sigma + ln sigma') / 2) moves sigma all the way."""
    sde = EDM()
    denoiser, x = grid25().denoiser(sde), starts(sde, 4)
    t, s, mid, at, to, between = two_levels(sde)
    guess = x + (between.sigma - at.sigma) * denoiser.eps(x, t)
    expected = x + (to.sigma - at.sigma) * denoiser.eps(guess, mid)
    got, _ = dpm_2()(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_dpmpp_2s_is_its_published_formula(sde):
    """x' = (sigma' / sigma) x - alpha' (e^-h - 1) D(x_mid)."""
    denoiser, x = grid25().denoiser(sde), starts(sde, 4)
    t, s, mid, at, to, between = two_levels(sde)
    half, whole = (math.expm1(at.lam - p.lam) for p in (between, to))
    guess = between.sigma / at.sigma * x - between.alpha * half * denoiser(x, t)
    expected = to.sigma / at.sigma * x - to.alpha * whole * denoiser(guess, mid)
    got, _ = dpmpp_2s()(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_dpm_solver_3_is_its_published_formula(sde):
    """The noise form with r1 = 1/3, r2 = 2/3: DPM-Solver, algorithm 2."""
    denoiser, x = grid25().denoiser(sde), starts(sde, 4)
    t, s, _, at, to, _ = two_levels(sde)
    h, e0 = to.lam - at.lam, denoiser.eps(x, t)
    t1, t2 = sde.time(at.lam + h * torch.tensor([1 / 3, 2 / 3], dtype=F64))
    p1, p2 = marginal(sde, t1), marginal(sde, t2)
    x1 = p1.alpha / at.alpha * x - p1.sigma * math.expm1(h / 3) * e0
    d1 = denoiser.eps(x1, t1) - e0
    second = math.expm1(2 * h / 3)
    x2 = p2.alpha / at.alpha * x - p2.sigma * (second * e0 + 2 * (second / (2 * h / 3) - 1) * d1)
    d2 = denoiser.eps(x2, t2) - e0
    whole = math.expm1(h)
    expected = to.alpha / at.alpha * x - to.sigma * (whole * e0 + 1.5 * (whole / h - 1) * d2)
    got, _ = dpm_solver_singlestep(3)(denoiser, x, t, s, None, white_noise())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_one_call_is_ddim_and_the_trapezoid_in_rho_is_heun(sde):
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 4), grids.karras()(sde, 6)
    trapezoid = SingleStep(EPS, TRAPEZOID, Interpolation(ratio))
    for ours, theirs in [
        (dpm_solver_singlestep(1), DDIM()),
        (dpm_solver_singlestep(1, X0), DDIM()),
        (dpm_solver_singlestep(1, V), DDIM()),
        (trapezoid, Heun(published=True)),
    ]:
        expected = sample(denoiser, x, ts, theirs, denoise=False)
        got = sample(denoiser, x, ts, ours, denoise=False)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("nfe", range(1, 13))
def test_dpm_fast_spends_exactly_its_calls(nfe):
    calls = []
    denoiser = Denoiser(VP(), lambda x, t: calls.append(1) or 0.5 * x)
    step = dpm_fast(nfe)
    sample(denoiser, torch.ones(1, 2), grids.log_snr(VP(), nfe // 3 + 1), step, denoise=False)
    assert len(calls) == step.nfe == nfe


@pytest.mark.parametrize(("nfe", "order"), [(119, 3), (120, 2)])
def test_dpm_fast_has_the_order_its_last_steps_allow(nfe, order):
    """From sigma / alpha = 3.3 to 0.3 in 40 or 41 steps, and twice as many."""
    assert dpm_fast(nfe).order == order
    sde = VP()
    grid = lambda n: sde.time(torch.linspace(-LAST, LAST, n // 3 + 2, dtype=F64))  # noqa: E731
    x, denoiser = 3 * starts(sde, 32), grid25().denoiser(sde)
    exact = sample(denoiser, x, grid(1200), eab(X0, 4), denoise=False)
    errors = [
        float((sample(denoiser, x, grid(n), dpm_fast(n), denoise=False) - exact).norm())
        for n in (nfe, 2 * nfe + nfe % 3 // 2)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


# --- invariances and contracts -----------------------------------------------------------------


@STEP
def test_relabelling_vp_as_ve_changes_nothing(step):
    lam = torch.linspace(-3.5, 4.5, 16, dtype=F64)
    y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * math.exp(3.5)
    ends = []
    for sde in (VP(), VE()):
        ts = sde.time(lam)
        ends.append(sample(grid25().denoiser(sde), sde.alpha(ts[0]) * y, ts, step))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-8)


@STEP
def test_a_step_is_pure_and_does_not_mix_its_batch(step):
    sde = SubVP()
    denoiser, x, ts = grid25().denoiser(sde), starts(sde, 5), grids.karras()(sde, 6)
    kept, together = x.clone(), sample(denoiser, x, ts, step)
    assert torch.equal(x, kept)
    assert torch.equal(together, sample(denoiser, x, ts, step))
    for i in range(5):
        alone = sample(denoiser, x[i : i + 1], ts, step)[0]
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-12)


@STEP
@pytest.mark.parametrize("times", [(1.0, 0.7, 0.3, 0.1, 0.0), (0.0, 0.1, 0.5, 1.0)])
def test_no_nan_where_alpha_or_sigma_vanishes(step, times):
    sde, ts = WholeFlow(), torch.tensor(times, dtype=F64)
    end = sample(grid25().denoiser(sde), grid25().sample(4, torch.Generator()), ts, step)
    assert end.isfinite().all()


@STEP
def test_calls_and_dtypes_are_as_declared(step):
    for shape, dtype in [((2,), torch.float32), ((3, 1, 4, 4), F64)]:
        calls = []
        denoiser = Denoiser(VP(), lambda x, t, calls=calls: calls.append(1) or 0.5 * x)
        y = sample(
            denoiser, torch.ones(shape, dtype=dtype), grids.log_snr(VP(), 5), step, denoise=False
        )
        assert len(calls) == 5 * step.nfe_per_step
        assert (y.shape, y.dtype) == (shape, dtype)


def test_bad_options_are_refused_before_any_call():
    for make, text in [
        (lambda: dpm_solver_singlestep(4), "orders 1, 2 and 3, got order=4"),
        (lambda: dpm_fast(0), "nfe=0"),
        (lambda: Scheme(2, (0.5,), ((0,),)), "1 inner calls"),
        (lambda: Scheme(2, (0.5,), ((1,), (0,))), "earlier calls"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()


def test_midpoint_of_a_linear_problem_is_exact_for_a_point_mass():
    """x0_hat constant: every scheme in the data frame is exact in one step."""
    sde = VP()
    denoiser = Denoiser(sde, lambda x, t: torch.full_like(x, 0.3))
    x, ts = starts(sde, 4), torch.tensor([0.9, 0.1], dtype=F64)
    p, q = (marginal(sde, t) for t in ts)
    expected = q.alpha * 0.3 + q.sigma / p.sigma * (x - p.alpha * 0.3)
    for scheme in (MIDPOINT, LINEAR, TRAPEZOID, THIRDS):
        for prediction in (EPS, X0, V):
            got = sample(denoiser, x, ts, SingleStep(prediction, scheme), denoise=False)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
