"""Gradients through samplers, solvers and likelihoods against finite differences."""

from collections.abc import Callable

import pytest
import torch

from scoresde import VP, Denoiser, log_likelihood, sample, solve_ode, solve_sde, trajectory
from scoresde.likelihood import Exact, Hutchinson, adaptive_log_likelihood, path_log_likelihood
from scoresde.likelihood.divergence import HutchPlusPlus, rademacher
from scoresde.registry import STEPS, build_step
from scoresde.registry.steps import grid_steps
from scoresde.samplers import BrownianPath, per_sample_noise, solve_adaptive
from scoresde.samplers.adaptive import DORMAND_PRINCE, EXPONENTIAL
from scoresde.samplers.grids import log_snr
from scoresde.testing import mixture

F64 = torch.float64
SDE = VP()
LAW = mixture(
    [0.3, 0.3, 0.4],
    torch.tensor([[-0.6, 0.2], [0.5, -0.4], [0.1, 0.7]], dtype=F64),
    [0.2, 0.1, 0.15],
)
ODE = ("dopri5", "dopri8", "euler", "rk4")


def model(weight: torch.Tensor) -> Denoiser:
    """The denoiser of LAW with a parameter, which is 1 in it."""
    exact = LAW.denoiser(SDE)
    return Denoiser(SDE, lambda x, t: weight * exact(x, t) + (1 - weight) * 0.1 * x)


def check(end: Callable[[Denoiser, torch.Tensor, bool], torch.Tensor], rtol: float = 1e-5) -> None:
    """The gradients of sum sin(end) to the state and the parameter, along one random direction.

    Without ``grad`` nothing has a graph, and the value is the same.
    """
    g = torch.Generator().manual_seed(0)
    x, dx, one = (torch.randn(2, 2, generator=g, dtype=F64) for _ in range(3))
    weight, one = torch.tensor(0.9, dtype=F64), torch.tensor(1.0, dtype=F64)

    def value(h: float, k: float) -> torch.Tensor:
        return end(model(weight + k * one), x + h * dx, False).sin().sum()

    h = 1e-5
    expected = [
        float(value(h, 0) - value(-h, 0)) / (2 * h),
        float(value(0, h) - value(0, -h)) / (2 * h),
    ]
    x.requires_grad_(), weight.requires_grad_()
    without = end(model(weight), x, False)
    assert not without.requires_grad
    found = end(model(weight), x, True)
    torch.testing.assert_close(found.detach(), without)
    of_x, of_weight = torch.autograd.grad(found.sin().sum(), (x, weight))
    got = torch.stack([(of_x * dx).sum(), of_weight])
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=rtol, atol=rtol)
    # The parameter alone, from a state that requires no gradient.
    alone = torch.autograd.grad(end(model(weight), x.detach(), True).sin().sum(), weight)[0]
    torch.testing.assert_close(alone, of_weight)


@pytest.mark.parametrize("kind", STEPS)
def test_of_every_step(kind):
    own = {"rtol": 1e-7, "atol": 1e-7} if kind == "dpm_adaptive" else {}
    step = build_step(kind, own, 6)
    ts = log_snr(SDE, grid_steps(step, 6))
    noise = {2: lambda: per_sample_noise(range(2)), 1: lambda: None}

    def end(denoiser, x, grad):
        return sample(denoiser, x, ts, step, noise[len(x)](), grad=grad)

    check(end)


def test_of_recommended_calls_and_of_a_trajectory():
    check(lambda denoiser, x, grad: sample(denoiser, x, nfe=6, grad=grad))

    def last(denoiser, x, grad):
        ts, step = log_snr(SDE, 4), build_step("heun", {}, 4)
        return torch.stack([x for _, x in trajectory(denoiser, x, ts, step, grad=grad)])

    check(last)


@pytest.mark.parametrize("method", ODE)
@pytest.mark.parametrize("ends", [(1.0, 0.1), (0.1, 1.0)])
def test_of_the_black_box(method, ends):
    """Adaptive steps are constants: their dependence on the state would spoil the gradient."""
    options = {"method": method, "rtol": 1e-6, "atol": 1e-6, "steps": 12}

    def end(denoiser, x, grad):
        return solve_ode(denoiser, x, *ends, grad=grad, **options).x

    check(end)


@pytest.mark.parametrize(("pair", "tol"), [(DORMAND_PRINCE, 1e-7), (EXPONENTIAL, 1e-5)])
def test_of_the_adaptive_solver(pair, tol):
    def end(denoiser, x, grad):
        return solve_adaptive(denoiser, x, 1.0, 0.1, tol, tol, pair=pair, grad=grad).x

    check(end, 1e-3 if pair is EXPONENTIAL else 3e-5)


def test_of_the_adaptive_reverse_sde():
    def end(denoiser, x, grad):
        noise = BrownianPath(range(2))
        return solve_adaptive(denoiser, x, 1.0, 0.1, 1e-1, 1e-1, noise=noise, grad=grad).x

    check(end)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "hutchinsons", "hutch++"])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_of_a_likelihood(divergence, method):
    g, like = torch.Generator().manual_seed(1), torch.zeros(2, 2, dtype=F64)
    probing = {
        "exact": Exact(),
        "hutchinson": Hutchinson(rademacher(like, 1, g)),
        "hutchinsons": Hutchinson(rademacher(like, 3, g)),
        "hutch++": HutchPlusPlus(rademacher(like, 1, g), rademacher(like, 2, g)),
    }[divergence]
    options = {"method": method, "rtol": 1e-6, "atol": 1e-6, "steps": 12, "t0": 0.05}

    def value(denoiser, x, grad):
        found = log_likelihood(denoiser, x / 2, probing, grad=grad, **options)
        return torch.cat([found.log_prob[:, None], found.latent], 1)

    check(value, 1e-4)


def test_what_keeps_no_graph_says_so():
    x = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    denoiser = model(torch.tensor(1.0, dtype=F64, requires_grad=True))
    assert not solve_sde(denoiser, x, 1.0, 0.1, 4).requires_grad
    for likelihood in (adaptive_log_likelihood, path_log_likelihood):
        assert not likelihood(denoiser, x).log_prob.requires_grad
    with pytest.raises(ValueError, match="scipy_solver leaves autograd"):
        solve_ode(denoiser, x, 1.0, 0.1, method="scipy_solver", grad=True)
