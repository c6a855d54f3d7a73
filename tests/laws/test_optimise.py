"""The optimiser: better than every standard grid, on its own starts and on fresh ones."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from scoresde import EDM, VP
from scoresde.convergence import mixture_paths, path_order
from scoresde.registry.grid_files import from_file, load_grid, save_grid
from scoresde.samplers import (
    EPS,
    Heun,
    Multistep,
    Residual,
    ancestral,
    grids,
    optimise_grid,
    recommended,
    sample,
    search_grid,
    solve_adaptive,
)
from scoresde.samplers.kernels import marginal
from scoresde.samplers.optimise import _informative
from scoresde.testing import Gaussian, Mixture, grid25

F64 = torch.float64
STEP = Multistep(EPS, 3)


def starts(sde, n, dim=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sde.prior().stddev * torch.randn(n, dim, generator=g, dtype=F64)


def judge(denoiser, x):
    """The relative L2 error of the denoised end from ``x``, as a function of step and grid."""
    sde = denoiser.sde
    end = solve_adaptive(denoiser, x, sde.t_max, sde.t_min, 1e-6, 1e-6, 100_000).x
    exact = denoiser(end, torch.tensor(sde.t_min, dtype=F64))

    def error(step, ts):
        return float((sample(denoiser, x, ts, step) - exact).norm() / exact.norm())

    return error


@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
@pytest.mark.parametrize("free", [True, False], ids=["free", "pinned"])
def test_better_than_every_standard_grid(process, free):
    denoiser, n = grid25().denoiser(process), 8
    t_end = None if free else process.t_eps
    x, fresh = starts(process, 32), starts(process, 96, seed=1)
    found = search_grid(denoiser, STEP, n, x, t_end=t_end, budget=2500)
    assert found.loss < found.loss_before - 0.3
    standard = [grids.log_snr, grids.karras(), grids.uniform, grids.quadratic]
    for judged in (x, fresh):
        error = judge(denoiser, judged)
        assert all(error(STEP, found.times) < error(STEP, g(process, n)) for g in standard)


@pytest.mark.parametrize("n", [1, 24])
def test_the_grid_decreases_between_pinned_ends(sde, n):
    denoiser, x = grid25().denoiser(sde), starts(sde, 8)
    pinned = optimise_grid(denoiser, STEP, n, x, t_end=sde.t_eps, budget=1200)
    assert pinned.dtype == F64
    assert pinned.shape == (n + 1,)
    assert (pinned.diff() < 0).all()
    assert (pinned[0], pinned[-1]) == (sde.t_max, sde.t_eps)


def test_a_free_end_stays_above_t_min(sde):
    ts = optimise_grid(grid25().denoiser(sde), STEP, 4, starts(sde, 8), budget=1200)
    assert (ts.diff() < 0).all()
    assert ts[0] == sde.t_max
    assert sde.t_min <= ts[-1] < sde.t_max


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_never_worse_than_the_default_on_fresh_starts(seed):
    """Also on the half that the search did not use, and where the default is all there is."""
    sde = VP()
    denoiser, x, n = grid25().denoiser(sde), starts(sde, 64, seed=seed), 7
    step, grid = recommended(n + 1)
    found = search_grid(denoiser, step, n, x, budget=300, candidates=[grid])
    assert found.loss <= found.loss_before
    for judged in (x[:32], starts(sde, 256, seed=10 + seed)):
        error = judge(denoiser, judged)
        assert error(step, found.times) <= 1.001 * error(step, grid(sde, n))


def test_the_default_is_kept_unless_the_other_half_shows_a_gain():
    """From zero, between two equal components, every grid is exact: the default stays."""
    sde = VP()
    data = Mixture(torch.ones(2) / 2, torch.tensor([[-0.5], [0.5]]), torch.full((2,), 0.1))
    denoiser, x = data.denoiser(sde), starts(sde, 32, 1)
    (step, _), grid = recommended(7), grids.karras()
    found = search_grid(denoiser, step, 6, x, budget=300, candidates=[grid])
    assert found.loss < found.loss_before
    x[:16] = 0
    kept = search_grid(denoiser, step, 6, x, budget=300, candidates=[grid])
    assert kept.loss == kept.loss_before
    torch.testing.assert_close(kept.times, grid(sde, 6), rtol=1e-9, atol=1e-9)


def test_informative_rows_estimate_sums_and_contain_the_large_errors():
    """Weighted sums over the rows drawn are those over all rows, nearly; outliers are certain."""
    errors = np.random.default_rng(0).lognormal(-3.0, 1.0, 240)
    errors[:3] = 1e3
    chosen, weights = _informative([errors])
    assert len(set(chosen)) == 60
    assert {0, 1, 2} <= set(chosen)
    assert (weights[chosen < 3] == 1).all()
    small = np.where(errors < 1e3, errors, 0.0)
    for f in (np.ones(240), errors**2, np.log(errors), small):
        assert weights @ f[chosen] == pytest.approx(f.sum(), rel=0.05)
    assert len(_informative([np.ones(2000)])[0]) == 64


def test_never_worse_than_where_it_starts():
    """A budget that the reference alone spends leaves the best candidate, or a better grid."""
    sde = EDM()
    denoiser, x = grid25().denoiser(sde), starts(sde, 16)
    found = search_grid(denoiser, Heun(), 6, x, budget=1500, candidates=[grids.karras()])
    assert found.loss <= found.loss_before
    error = judge(denoiser, x)
    before, after = error(Heun(), grids.karras()(sde, 6)), error(Heun(), found.times)
    assert after <= before


def test_calls_are_counted_and_bounded_and_nothing_is_random():
    sde, made = VP(), 0
    exact = grid25().denoiser(sde)

    def predict(x, t):
        nonlocal made
        made += len(x)
        return exact(x, t)

    denoiser, x = dataclasses.replace(exact, predict=predict), starts(sde, 8)
    found = search_grid(denoiser, STEP, 10, x, budget=1000)
    assert -(-made // 8) == found.calls
    assert found.calls <= 1000 + 40
    again = search_grid(denoiser, STEP, 10, x, budget=1000)
    torch.testing.assert_close(again.times, found.times, rtol=0, atol=0)


def test_any_shape_and_float32():
    sde = EDM()
    data = Gaussian(torch.zeros(1, 2, 3), torch.tensor(0.25))
    x = starts(sde, 4, 6).float().reshape(4, 1, 2, 3)
    ts = optimise_grid(data.denoiser(sde), STEP, 3, x, budget=2000)
    assert ts.dtype == F64
    assert (ts.diff() < 0).all()


def test_bad_input_is_named():
    sde = VP()
    denoiser, x = grid25().denoiser(sde), starts(sde, 4)
    with pytest.raises(ValueError, match="draws noise"):
        optimise_grid(denoiser, ancestral(), 4, x)
    with pytest.raises(ValueError, match="raise it"):
        optimise_grid(denoiser, STEP, 4, x, budget=16)
    with pytest.raises(ValueError, match="at least one start"):
        optimise_grid(denoiser, STEP, 4, x[:0])
    with pytest.raises(ValueError, match="t_end < t_max"):
        optimise_grid(denoiser, STEP, 4, x, t_end=2.0)
    with pytest.raises(ValueError, match="at least 1 step"):
        optimise_grid(denoiser, STEP, 0, x)
    with pytest.raises(ValueError, match="candidate"):
        optimise_grid(denoiser, STEP, 4, x, candidates=[])


# --- on disk ----------------------------------------------------------------------------------


def test_a_stored_grid_comes_back_and_knows_its_process(tmp_path, sde):
    path, ts = tmp_path / "grid.json", grids.quadratic(sde, 6)
    save_grid(path, ts, sde, STEP)
    stored = load_grid(path)
    torch.testing.assert_close(stored(sde, 6), ts, rtol=0, atol=0)
    torch.testing.assert_close(from_file(path)(sde, 6), ts, rtol=0, atol=0)
    assert type(sde).__name__ in stored.process
    assert "0x" not in stored.step
    with pytest.raises(ValueError, match="has 6 steps, asked for 7"):
        stored(sde, 7)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.json"]


def test_a_stored_grid_is_refused_elsewhere(tmp_path):
    path, sde = tmp_path / "grid.json", VP()
    save_grid(path, grids.log_snr(sde, 4), sde, STEP)
    with pytest.raises(ValueError, match=r"is for VP\(.*not for VP\(beta_min=0.2"):
        load_grid(path)(VP(beta_min=0.2), 4)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"lams": content["lams"][1:]}))
    with pytest.raises(ValueError, match=r"grid\.json has 5 times and 4 lams"):
        load_grid(path)


# --- the default ------------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [2, 5, 10, 20, 50])
def test_the_default_spends_the_calls_it_is_given(sde, nfe):
    step, grid = recommended(nfe)
    made, exact = 0, grid25().denoiser(sde)

    def predict(x, t):
        nonlocal made
        made += 1
        return exact(x, t)

    ts = grid(sde, nfe - 1)
    assert (ts.diff() < 0).all()
    assert ts[0] == sde.t_max
    assert ts[-1] >= sde.t_min
    end = sample(dataclasses.replace(exact, predict=predict), starts(sde, 4), ts, step)
    assert made == nfe
    assert end.isfinite().all()


@pytest.mark.parametrize("nfe", [5, 12, 40])
def test_data_scaled_by_c_with_deviation_scaled_by_c_give_scaled_samples(nfe):
    """With alpha = 1 the grid, started at a scaled t_max, is the same grid of sigma / std."""
    c, base = 0.3, grid25()
    sde, scaled = EDM(), EDM(t_min=0.002 * 0.3, t_eps=0.002 * 0.3, t_max=80 * 0.3)
    data = Mixture(base.weights, c * base.means, c * base.stds)
    x = starts(sde, 16)
    ends = []
    for process, problem, factor in ((sde, base, 1.0), (scaled, data, c)):
        step, grid = recommended(nfe, std=0.5 * factor)
        ends.append(sample(problem.denoiser(process), factor * x, grid(process, nfe - 1), step))
    torch.testing.assert_close(ends[1], c * ends[0], rtol=1e-8, atol=1e-9)


def test_the_default_step_has_at_least_its_order():
    """The first steps, of lower order, do not show on these paths."""
    found = path_order(lambda n: recommended(n + 1)[0], mixture_paths(VP()))
    assert found.order > recommended(10)[0].order - 0.15


@pytest.mark.parametrize("std", [0.05, 0.5, 20.0])
def test_the_default_grid_decreases_for_every_number_of_steps(sde, std):
    for n in (*range(1, 20), 49, 199, 999):
        ts = recommended(n + 1, std=std)[1](sde, n)
        assert ts.shape == (n + 1,)
        assert (ts.diff() < 0).all()
        assert ts[0] == sde.t_max
        assert ts[-1] >= sde.t_min


def test_the_default_is_exact_for_gaussian_data_on_any_grid(sde):
    """The residual vanishes, so that neither the grid nor the corrector matters."""
    data = Gaussian(torch.zeros(3, dtype=F64), torch.tensor(0.16, dtype=F64))
    x, denoiser = starts(sde, 8, 3), data.denoiser(sde)
    t, s = torch.tensor([sde.t_max, sde.t_eps], dtype=F64)
    step, _ = recommended(4, std=0.4)
    for grid in (grids.uniform, grids.log_snr, grids.karras()):
        end = sample(denoiser, x, grid(sde, 6), step, denoise=False)
        torch.testing.assert_close(end, data.flow(x, sde, t, s), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", [EDM(), VP()], ids=["edm", "vp"])
@pytest.mark.parametrize("nfe", [6, 10, 20])
def test_the_default_beats_ddim_on_the_usual_grids(process, nfe):
    denoiser, x = grid25().denoiser(process), starts(process, 64, seed=2)
    step, grid = recommended(nfe)
    error, n = judge(denoiser, x), nfe - 1
    for usual in (grids.uniform, grids.log_snr, grids.karras()):
        assert error(step, grid(process, n)) < 0.5 * error(Multistep(EPS, 1), usual(process, n))


def test_one_call_solves_the_gaussian_the_residual_is_made_for(sde):
    """Data N(0, d^2): the residual vanishes, and one step is the exact flow."""
    data = Gaussian(torch.zeros(3, dtype=F64), torch.tensor(0.49, dtype=F64))
    x = starts(sde, 16, 3)
    t, s = torch.tensor([sde.t_max, sde.t_eps], dtype=F64)
    step = Multistep(Residual(0.7), 1)
    one, _ = step(data.denoiser(sde), x, t, s, None, None)
    torch.testing.assert_close(one, data.flow(x, sde, t, s), rtol=1e-9, atol=1e-9)


def test_the_kernel_of_the_residual_is_the_derivative_of_its_angle(sde):
    prediction, to = Residual(0.3), marginal(sde, torch.tensor(0.5 * sde.t_max, dtype=F64))
    lam = torch.linspace(-4, 5, 19, dtype=F64, requires_grad=True)
    theta = torch.atan(torch.exp(-lam) / 0.3)
    (slope,) = torch.autograd.grad(theta.sum(), lam)
    kernel = torch.from_numpy(prediction.kernel(lam.detach().numpy(), to))
    torch.testing.assert_close(kernel, prediction.unit(to) * slope)


def test_bad_options_of_the_default_are_refused():
    with pytest.raises(ValueError, match="nfe >= 2"):
        recommended(1)
    with pytest.raises(ValueError, match="std > 0"):
        Residual(0.0)
    with pytest.raises(ValueError, match="at least 1 step"):
        recommended(5)[1](VP(), 0)
