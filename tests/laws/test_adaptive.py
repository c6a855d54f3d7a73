"""Error control per sample: tolerances kept, no influence of batch mates, no bias of rejection."""

import math

import pytest
import torch

from scoresde import EDM, VP, Denoiser
from scoresde.samplers import BrownianPath, per_sample_noise, solve_adaptive
from scoresde.samplers.adaptive import EXPONENTIAL
from scoresde.testing import Gaussian, grid25

F64 = torch.float64


def starts(sde, n, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sde.prior().stddev * torch.randn(n, dim, generator=g, dtype=F64)


def test_flow_is_exact_both_ways(sde, gaussian):
    x = starts(sde, 8, 4)
    exact = gaussian.flow(x, sde, *torch.tensor([sde.t_max, sde.t_eps], dtype=F64))
    denoiser = gaussian.denoiser(sde)
    down = solve_adaptive(denoiser, x, sde.t_max, sde.t_eps, 1e-8, 1e-8, max_nfe=10_000)
    assert down.finished.all()
    assert (down.t == sde.t_eps).all()
    torch.testing.assert_close(down.x, exact, rtol=1e-5, atol=1e-6)
    up = solve_adaptive(denoiser, down.x, sde.t_eps, sde.t_max, 1e-8, 1e-8, max_nfe=10_000)
    torch.testing.assert_close(up.x, x, rtol=1e-4, atol=1e-5)


def test_the_error_follows_the_tolerance():
    sde, data = VP(), grid25()
    x = starts(sde, 64, 2)

    def run(tol):
        denoiser = data.denoiser(sde)
        return solve_adaptive(denoiser, x, sde.t_max, sde.t_eps, tol, tol, max_nfe=100_000).x

    exact = run(1e-10)
    errors = [float((run(tol) - exact).norm(dim=1).median()) for tol in (1e-3, 1e-5, 1e-7)]
    assert errors[0] < 0.02
    assert errors[1] < 0.02 * errors[0]
    assert errors[2] < 0.02 * errors[1]


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda s: type(s).__name__)
def test_the_exponential_pair_follows_its_tolerance_both_ways(sde):
    """On a mixture: the error falls with the tolerance, its cost as a third-order method's; and
    for data at a point, where x0 is constant, one step is exact.
    """
    data = grid25(std=0.2)
    denoiser = data.denoiser(sde)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x * sde.prior().stddev
    ends = (sde.t_max, float(sde.time(torch.tensor(1.0, dtype=F64))))
    exact = solve_adaptive(denoiser, x, *ends, 1e-11, 1e-11, 20_000).x
    errors, calls = [], []
    for tolerance in (1e-3, 1e-6):
        got = solve_adaptive(denoiser, x, *ends, tolerance, tolerance, 5000, pair=EXPONENTIAL)
        assert bool(got.finished.all())
        errors.append(float((got.x - exact).square().mean().sqrt()))
        calls.append(got.nfe)
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5
    assert 4 < calls[1] / calls[0] < 20  # (1e3)^(1/3) = 10
    back = solve_adaptive(denoiser, exact, *ends[::-1], 1e-8, 1e-8, 20_000, pair=EXPONENTIAL)
    torch.testing.assert_close(back.x, x, rtol=1e-4, atol=1e-4)
    point = Denoiser(sde, lambda x, t: torch.full_like(x, 0.7))
    one = solve_adaptive(point, x, *ends, 1e-9, 1e-9, 1000, pair=EXPONENTIAL)
    t, s = (torch.tensor(end, dtype=F64) for end in ends)
    kept = sde.sigma(s) / sde.sigma(t)
    torch.testing.assert_close(one.x, kept * (x - 0.7 * sde.alpha(t)) + 0.7 * sde.alpha(s))
    assert one.nfe < 20


@pytest.mark.parametrize("noisy", [False, True], ids=["ode", "sde"])
def test_batch_mates_never_change_a_result(noisy):
    """Samples 0 to 6 alone, together, and among 64, some of them far out."""
    sde, data = EDM(), grid25()
    x = starts(sde, 64, 2)
    x[7:] *= torch.logspace(-2, 1, 57, dtype=F64).unsqueeze(1)

    def run(rows):
        path = BrownianPath(rows) if noisy else None
        end = solve_adaptive(data.denoiser(sde), x[rows], 80.0, 0.01, 0.05, 0.05, 5000, path)
        assert end.finished.all()
        return end.x

    crowd, few = run(list(range(64))), run(list(range(7)))
    torch.testing.assert_close(few, crowd[:7], rtol=0, atol=1e-12)
    for i in range(3):
        torch.testing.assert_close(run([i])[0], crowd[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 8])
def test_rejection_on_one_path_has_no_bias(dim):
    """N(0, 0.5^2), where redrawing on rejection, as published, errs by 50 % in 1-D."""
    sde = EDM()
    data = Gaussian(torch.zeros(dim, dtype=F64), torch.tensor(0.25, dtype=F64))
    n = 8000 // dim
    errors = []
    for tol in (0.5, 0.05):
        path = BrownianPath(range(n))
        end = solve_adaptive(
            data.denoiser(sde), starts(sde, n, dim), sde.t_max, sde.t_eps, tol, tol, 5000, path
        )
        assert end.finished.all()
        errors.append(abs(float(end.x.std()) / 0.5 - 1))
    assert errors[0] < 0.15
    assert errors[1] < 0.015 + 3 / math.sqrt(2 * 8000)


def test_the_cap_returns_the_states_reached_and_says_so():
    sde, data, calls = VP(), grid25(), []
    denoiser = data.denoiser(sde)
    counted = Denoiser(sde, lambda x, t: calls.append(1) or denoiser(x, t))
    x = starts(sde, 5, 2)
    for noise in (None, BrownianPath(range(5))):
        calls.clear()
        end = solve_adaptive(counted, x, 1.0, 1e-3, 1e-6, 1e-6, max_nfe=40, noise=noise)
        assert not end.finished.any()
        assert end.nfe == len(calls) <= 40
        assert ((end.t < 1.0) & (end.t > 1e-3)).all()
        # The states are those of the flow at the times they reached.
        if noise is None:
            on = solve_adaptive(denoiser, x, 1.0, float(end.t[0]), 1e-8, 1e-8, 10_000)
            torch.testing.assert_close(end.x[0], on.x[0], rtol=0, atol=1e-4)


def test_halves_of_a_cell_add_up():
    """Cells of a dyadic partition: the path does not depend on the depth at which it is asked."""
    path, x = BrownianPath(range(6)), torch.empty(6, 3, dtype=F64)
    level = torch.tensor([0, 1, 2, 3, 4, 5])
    index = torch.tensor([0, 1, 2, 5, 11, 30])
    whole = path.cells(x, level, index)
    halves = path.cells(x, level + 1, 2 * index) + path.cells(x, level + 1, 2 * index + 1)
    torch.testing.assert_close(halves, whole)


def test_cells_are_brownian_increments():
    path, x = BrownianPath(range(20_000)), torch.empty(20_000, 1, dtype=F64)
    level = torch.full((20_000,), 2)
    cells = [2 * path.cells(x, level, torch.full_like(level, k)) for k in range(4)]
    covariance = torch.cat(cells, 1).T @ torch.cat(cells, 1) / len(x)
    torch.testing.assert_close(covariance, torch.eye(4, dtype=F64), rtol=0, atol=0.04)


def test_any_shape_and_float32():
    sde = VP()
    data = Gaussian(torch.zeros(3, 5, 4), torch.tensor(0.25))
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    for noise in (None, BrownianPath([1, 2])):
        end = solve_adaptive(data.denoiser(sde), x, 1.0, 1e-3, 1e-2, 1e-2, noise=noise)
        assert end.x.shape == x.shape
        assert end.x.dtype == torch.float32
        assert end.finished.all()


def test_bad_input_is_named():
    sde, data = VP(), grid25()
    denoiser, x = data.denoiser(sde), starts(sde, 2, 2)
    path = BrownianPath([1, 2])
    for call, text in [
        (lambda: solve_adaptive(denoiser, x, 2.0, 0.1), "t0=2"),
        (lambda: solve_adaptive(denoiser, x, 0.5, 0.5), "t0 != t1"),
        (lambda: solve_adaptive(denoiser, x, 1.0, 0.1, rtol=0), "rtol=0"),
        (lambda: solve_adaptive(denoiser, x, 1.0, 0.1, max_nfe=0), "max_nfe >= 1, got max_nfe=0"),
        (lambda: solve_adaptive(denoiser, x, 0.1, 1.0, noise=path), "needs t1 < t0"),
        (
            lambda: solve_adaptive(denoiser, x, 1.0, 0.1, noise=per_sample_noise([1, 2])),
            r"give noise=BrownianPath\(seeds\)",
        ),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    broken = Denoiser(sde, lambda x, t: x / (x[:, :1] < 0).to(x))
    with pytest.raises(
        RuntimeError, match=r"solve_adaptive: . of 2 samples are not finite near t="
    ):
        solve_adaptive(broken, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), 1.0, 0.1)
