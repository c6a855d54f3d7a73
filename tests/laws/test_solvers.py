"""The black-box back-ends against exact flows and moments."""

import math

import pytest
import torch

from scoresde import VE, VP, Denoiser, SolverError, solve_ode, solve_sde
from scoresde.solvers import ODE_METHODS, SDE_METHODS
from scoresde.testing import Gaussian

F64 = torch.float64


def starts(sde, n, dim=4):
    g = torch.Generator().manual_seed(0)
    return sde.prior().stddev * torch.randn(n, dim, generator=g, dtype=F64)


def test_every_torchdiffeq_method_is_offered():
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(ODE_METHODS) == set(SOLVERS)


def test_ode_is_the_exact_flow_map_both_ways(sde, gaussian):
    x = starts(sde, 16)
    ends = torch.tensor([sde.t_max, sde.t_eps], dtype=F64)
    exact = gaussian.flow(x, sde, *ends)
    down = solve_ode(gaussian.denoiser(sde), x, *ends, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(down.x, exact, rtol=1e-6, atol=1e-7)
    up = solve_ode(gaussian.denoiser(sde), down.x, *ends.flip(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(up.x, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ODE_METHODS)
def test_every_ode_method_solves_every_shape(method, gaussian):
    sde = VP()
    x = starts(sde, 6).reshape(6, 2, 2)
    shaped = Gaussian(gaussian.mean.reshape(2, 2), gaussian.cov)
    exact = shaped.flow(x, sde, *torch.tensor([sde.t_max, sde.t_eps], dtype=F64))
    coarse = method in ("euler", "fehlberg2", "adaptive_heun")
    steps, tol = (600 if coarse else 60), (1e-4 if coarse else 1e-5)
    got = solve_ode(
        shaped.denoiser(sde),
        x,
        sde.t_max,
        sde.t_eps,
        method=method,
        rtol=tol,
        atol=tol,
        steps=steps,
    )
    assert got.x.shape == x.shape
    torch.testing.assert_close(got.x, exact, rtol=0, atol=2e-2 if coarse else 2e-3)


def test_nfe_is_counted_where_the_network_is_called(gaussian):
    sde, calls = VP(), []
    inner = gaussian.denoiser(sde)
    counted = Denoiser(sde, lambda x, t: calls.append(1) or inner(x, t))
    assert solve_ode(counted, starts(sde, 2), 1.0, 0.1).nfe == len(calls)
    calls.clear()
    assert (
        solve_ode(counted, starts(sde, 2), 1.0, 0.1, method="rk4", steps=7).nfe == 28 == len(calls)
    )


@pytest.mark.parametrize("method", SDE_METHODS)
def test_reverse_sde_has_the_exact_moments(sde, method):
    data = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.25, 0.09], dtype=F64))
    x = starts(sde, 4000, 2)
    got = solve_sde(data.denoiser(sde), x, sde.t_max, sde.t_eps, 60, method=method, seed=3)
    assert (got.mean(0) - data.mean).abs().max() < 5 * 0.5 / math.sqrt(len(x)) + 0.01
    torch.testing.assert_close(got.std(0), data.cov.sqrt(), rtol=0.08, atol=0)


def test_reverse_sde_without_noise_is_the_probability_flow(gaussian):
    sde = VP()
    x = starts(sde, 8)
    exact = gaussian.flow(x, sde, *torch.tensor([sde.t_max, sde.t_eps], dtype=F64))
    got = solve_sde(gaussian.denoiser(sde), x, sde.t_max, sde.t_eps, 400, eta=0.0)
    torch.testing.assert_close(got, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_sde_takes_the_steps_it_is_told_to(method, gaussian):
    sde, calls = VP(), []
    inner = gaussian.denoiser(sde)
    counted = Denoiser(sde, lambda x, t: calls.append(1) or inner(x, t))
    for steps in (1, 7, 10, 50, 100):
        calls.clear()
        solve_sde(counted, starts(sde, 2), 1.0, 1e-3, steps, method=method)
        assert len(calls) == steps + 1  # and one to look at shapes


def test_a_solve_over_nothing_changes_nothing(gaussian):
    sde, x = VP(), starts(VP(), 3)
    found = solve_ode(gaussian.denoiser(sde), x, 0.5, 0.5)
    torch.testing.assert_close(found.x, x)
    assert found.nfe == 0


def test_sde_seed_fixes_the_path(gaussian):
    sde = VE()
    run = lambda seed: solve_sde(  # noqa: E731
        gaussian.denoiser(sde), starts(sde, 4), 1.0, 1e-5, 10, seed=seed
    )
    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))


def test_float32_states_stay_float32(gaussian):
    sde = VP()
    x = starts(sde, 4).float()
    assert solve_ode(gaussian.denoiser(sde), x, 1.0, 0.01).x.dtype == torch.float32
    assert solve_sde(gaussian.denoiser(sde), x, 1.0, 0.01, 5).dtype == torch.float32


def test_bad_input_is_one_line_with_a_remedy(gaussian):
    sde = VP()
    denoiser, x = gaussian.denoiser(sde), starts(sde, 2)
    for call, text in [
        (
            lambda: solve_ode(denoiser, x, 1.0, 0.1, method="rk5"),
            "unknown ODE method 'rk5'; choose",
        ),
        (lambda: solve_ode(denoiser, x, 1.0, 0.0), r"time 0 is outside \(0, 1\]"),
        (lambda: solve_ode(denoiser, x, 1.0, 0.1, method="rk4", steps=0), "steps=0"),
        (lambda: solve_ode(denoiser, x, 1.0, 0.1, rtol=0.0), "rtol=0"),
        (lambda: solve_sde(denoiser, x, 1.0, 0.1, 0), "steps=0"),
        (lambda: solve_sde(denoiser, x, 0.1, 1.0, 5), "cleaner t1 < t0"),
        (lambda: solve_sde(denoiser, x, 1.0, 0.1, 5, eta=-1.0), "eta=-1"),
        (lambda: solve_ode(denoiser, x[:0], 1.0, 0.1), "batch is empty"),
        (lambda: solve_sde(denoiser, x, 1.0, 0.1, 5, method="heun"), "unknown SDE method 'heun'"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


def test_a_solve_that_cannot_finish_says_where(gaussian):
    sde = VP()
    rough = Denoiser(sde, lambda x, t: torch.sign(torch.sin(1e6 * x)))
    nan = Denoiser(sde, lambda x, t: x * math.nan)
    for call, text in [
        (lambda: solve_ode(rough, starts(sde, 4), 1.0, 1e-3, max_nfe=200), "200 network calls"),
        (lambda: solve_ode(nan, starts(sde, 4), 1.0, 1e-3), "dopri5 at log-SNR"),
        (lambda: solve_ode(nan, starts(sde, 4), 1.0, 1e-3, method="rk4"), "not finite"),
        (lambda: solve_sde(nan, starts(sde, 4), 1.0, 1e-3, 5), "4 of 4 samples are not finite"),
    ]:
        with pytest.raises(SolverError, match=text):
            call()
