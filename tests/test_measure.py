"""Measures that are told the truth by steps of known error."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import EDM, VP, LinearFlow
from scoresde.measure import (
    LINE,
    Convergence,
    draws_noise,
    gap,
    mixture_paths,
    path_order,
    weak_order,
)
from scoresde.samplers import (
    DDIM,
    EulerA,
    Heun,
    churn,
    dpm_solver_singlestep,
    dpmpp_2m_sde,
    restart,
)

F64 = torch.float64


class Marginal:
    """Forgets the state and draws it from the marginal, its variance wrong by a factor."""

    order = weak_order = nfe_per_step = 1

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, denoiser, x, t, s, state, noise):
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
    for step in (EulerA(), DDIM(eta=0.1), churn(Heun(), 10), restart(Heun()), Marginal(1.0)):
        assert draws_noise(step), step
    for step in (DDIM(), Heun(), EulerA(0.0), dpmpp_2m_sde(eta=0.0)):
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


def test_moments_are_exact():
    right = weak_order(lambda n: Marginal(1.0), VP())
    assert max(right.errors) < 1e-12
    wrong = weak_order(lambda n: Marginal(1 + 3 / n**2), VP())
    assert wrong.errors == pytest.approx([3 / n**2 for n in wrong.steps])
    assert wrong.order == pytest.approx(2)
