"""``ss.calibrate``: exact posteriors pass, wrong ones and biased methods are found out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import parameterization
from scoresde.data import Scaling
from scoresde.nn import MLP
from scoresde.posterior import Fourier, Linear, Mask, Method, Nonlinear
from scoresde.testing import Gaussian, Mixture, mixture
from scoresde.training.checkpoint import DataDescription

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def three_modes() -> Mixture:
    means = torch.tensor([[-1.5, 0.5], [1.5, 0.5], [0.0, -1.5]], dtype=F64)
    return mixture([0.3, 0.5, 0.2], means, [0.3] * 3)


GAUSSIAN = Gaussian(random(3), torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=F64)))
PROBLEMS = {
    "gaussian": (GAUSSIAN, Linear(random(2, 3, seed=1)), 0.5),
    "mixture": (three_modes(), Linear(torch.tensor([[1.0, 0.3]], dtype=F64)), 0.4),
}


@dataclass(frozen=True)
class Exact(Method):
    """Draws of the exact posterior about its mean, times ``wide`` and plus ``shift``."""

    problem: str = "gaussian"
    wide: float = 1.0
    shift: float = 0.0
    name: ClassVar[str] = "exact"

    def __call__(self, denoiser, measurement, x, noise, nfe):
        problem, operator, _ = PROBLEMS[self.problem]
        found = torch.empty_like(x)
        source = torch.Generator().manual_seed(int(float(noise(x).flatten()[0].abs()) * 1e12))
        for y in measurement.y.unique(dim=0):
            mine = (measurement.y == y).all(1)
            exact = problem.posterior(operator, y, measurement.noise)
            draws = exact.sample(int(mine.sum()), source)
            centre = draws.mean(0)
            found[mine] = centre + self.wide * (draws - centre) + self.shift
        return found


def calibrated(name, method, **settings):
    problem, operator, noise = PROBLEMS[name]
    given = {"num": 40, "examples": 150, "batch": 4000, "nfe": 20, **settings}
    return ss.calibrate(
        problem.denoiser(ss.EDM()), operator, problem.sample, noise, method=method, **given
    )


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_exact_posteriors_are_calibrated(name):
    problem = PROBLEMS[name][0]
    prior = problem.sample(500, torch.Generator().manual_seed(9))
    found = calibrated(name, Exact(problem=name), examples=300, batch=8000, prior=prior)
    rows = found.rows
    assert len(found) == 300
    assert found.nfe == 0
    assert found.p_value > 0.01
    for row in (*(rows[f"coverage {c}%"] for c in (50, 90, 95)), rows["residual"]):
        assert abs(row.value - row.ideal) < 4 * row.error
        assert row.error < 0.05
    assert rows["skill"].value > 5 * rows["skill"].error > 0


def test_the_crps_of_an_exact_gaussian_posterior_is_its_closed_form():
    """The mean of N(m, s^2)'s CRPS is s / sqrt(pi)."""
    problem, operator, noise = PROBLEMS["gaussian"]
    exact = problem.posterior(operator, torch.zeros(2, dtype=F64), noise)
    row = calibrated("gaussian", Exact(), examples=400, batch=8000).rows["crps"]
    expected = float(exact.cov.diagonal().sqrt().mean()) / math.sqrt(math.pi)
    assert abs(row.value - expected) < 4 * row.error


def test_draws_that_are_too_wide_or_shifted_are_detected():
    wide, shifted = calibrated("gaussian", Exact(wide=2)), calibrated("gaussian", Exact(shift=1))
    assert wide.p_value < 1e-3
    assert shifted.p_value < 1e-6
    assert wide.rows["coverage 50%"].value > 0.65
    assert wide.rows["residual"].value > 1.2
    assert shifted.rows["coverage 90%"].value < 0.8


def test_twisted_smc_is_calibrated_on_a_mixture_and_moment_matching_is_not():
    settings = {"num": 20, "examples": 40, "nfe": 16}
    heuristic = calibrated("mixture", "moment_matching", **settings)
    particles = calibrated("mixture", "twisted_smc", particles=100, **settings)
    residual = heuristic.rows["residual"]
    assert residual.value - 1 > 5 * residual.error
    for name in ("coverage 50%", "coverage 90%", "residual"):
        row = particles.rows[name]
        assert abs(row.value - row.ideal) < 4 * row.error
    assert particles.p_value > 0.005


def test_results_do_not_depend_on_the_batch_and_follow_the_seed():
    settings = {"num": 6, "examples": 7, "nfe": 5}
    one = calibrated("mixture", "dps", **settings, batch=6)
    many = calibrated("mixture", "dps", **settings, batch=20)
    pieces = calibrated("mixture", "dps", **settings, batch=4)
    other = calibrated("mixture", "dps", **settings, seed=1)
    for found in (many, pieces):
        torch.testing.assert_close(found.crps, one.crps)
        torch.testing.assert_close(found.ranks, one.ranks)
    assert not torch.equal(other.crps, one.crps)


@pytest.mark.parametrize("kind", [Mask, Fourier])
def test_the_residual_counts_what_is_measured_alone(kind):
    """12 of 36 pixels; or frequencies that are measured in pairs of equal numbers."""
    rows = torch.zeros(6, 6, dtype=torch.bool)
    rows[:2] = True
    problem = Gaussian(torch.zeros(1, 6, 6, dtype=F64), torch.ones(1, 6, 6, dtype=F64))
    found = ss.calibrate(
        problem.denoiser(ss.VP()), kind(rows), problem.sample, 0.5, num=10, nfe=12, batch=500,
        examples=50,
    )  # fmt: skip
    row = found.rows["residual"]
    assert abs(row.value - 1) < 4 * row.error < 0.25
    assert all(int(name[4]) >= 2 for name in found.names[:8]) == (kind is Mask)


def test_known_pixels_without_noise_are_no_quantity():
    problem = Gaussian(torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64))
    found = ss.calibrate(
        problem.denoiser(ss.VP()), Mask(torch.tensor([1, 0, 0, 1])), problem.sample, 0.0,
        method="replacement", num=8, nfe=8, examples=20, batch=160,
    )  # fmt: skip
    assert found.names[:2] == ("x[1]", "x[2]")
    assert found.residual is None
    assert "residual" not in found.rows


def normal(scaling, classes=None):
    net = MLP(3, width=8, depth=1, classes=None if classes is None else len(classes))
    for weight in net.parameters():
        nn.init.zeros_(weight)
    model = ss.ScoreModel(net, ss.VP(), parameterization.v).requires_grad_(False)
    model.data = DataDescription("made", (3,), scaling, classes)
    return model


def test_a_trained_model_is_calibrated_in_units_of_the_data():
    shift, scale = (1.0, -2.0, 5.0), (0.5, 2.0, 30.0)
    model = normal(Scaling(None, -1, 1, shift, scale), ("a", "b"))
    x0 = torch.tensor(shift) + torch.tensor(scale) * random(150, 3, seed=5).float()
    quantities = {"size": lambda x: x.norm(dim=1), "third": lambda x: x[:, 2]}
    operator = Linear(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.1]]))
    found = ss.calibrate(
        model, operator, x0, 0.5, num=20, nfe=20, batch=3000, examples=150,
        quantities=quantities, label=["a", "b", "b"] * 50, prior=x0[:20],
    )  # fmt: skip
    assert found.names == ("size", "third")
    assert found.p_value > 0.01
    for name in ("coverage 90%", "residual"):
        row = found.rows[name]
        assert abs(row.value - row.ideal) < 4 * row.error
    # A standard normal's CRPS is 1 / sqrt(pi), in model units.
    prior = found.rows["prior_crps"]
    assert abs(prior.value - 1 / math.sqrt(math.pi)) < 5 * prior.error


def test_a_stopped_calibration_keeps_what_is_done():
    calls = []

    def stopping():
        calls.append(1)
        return len(calls) > 25

    found = calibrated("mixture", "dps", num=6, examples=20, nfe=5, batch=12, stopping=stopping)
    assert len(found) == 10
    assert found.asked == 20
    with pytest.raises(RuntimeError, match="0 of 20 examples are done"):
        calibrated("mixture", "dps", num=6, examples=20, nfe=5, stopping=lambda: True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num": 1}, "num"),
        ({"examples": 1}, "examples"),
        ({"prior": torch.zeros(5, 4)}, r"prior: need samples of shape \(2,\), got \(5, 4\)"),
        ({"quantities": {"all": lambda x: x}}, "quantities: all gives"),
        ({"label": [0, 1]}, "label: 150 examples but 2 labels"),
        ({"particles": 5}, "draws every sample by itself"),
    ],
)
def test_bad_arguments_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        calibrated("mixture", "dps", **settings)


def test_bad_examples_and_measurements_are_refused():
    denoiser = three_modes().denoiser(ss.VP())
    operator = PROBLEMS["mixture"][1]
    with pytest.raises(ValueError, match="x0: need 2 or more finite examples"):
        ss.calibrate(denoiser, operator, torch.full((4, 2), math.nan), 0.1)
    with pytest.raises(ValueError, match=r"made for samples \(2,\), got \(3,\)"):
        ss.calibrate(denoiser, operator, torch.zeros(4, 3), 0.1)
    with pytest.raises(ValueError, match="noise"):
        ss.calibrate(denoiser, operator, torch.zeros(4, 2), -0.1)


def test_a_function_of_samples_is_an_operator_too():
    problem = three_modes()
    found = ss.calibrate(
        problem.denoiser(ss.VP()), Nonlinear(lambda x: x.square().sum(1, keepdim=True), (2,)),
        problem.sample, 0.5, method="dps", num=5, nfe=6, examples=12, batch=60,
    )  # fmt: skip
    assert found.names[0] == "x[0]"
    assert found.ranks.isfinite().all()
