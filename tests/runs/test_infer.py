"""``ss.infer`` of a trained model: units of the data, levels, conditions, and a population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import parameterization
from scoresde.data import Scaling
from scoresde.nn import MLP
from scoresde.posterior import Linear, Mask, Population, PopulationMethod
from scoresde.registry import POSTERIORS
from scoresde.testing import Gaussian
from scoresde.training.checkpoint import DataDescription

D = 3


def normal(scaling: Scaling, classes: tuple[str, ...] | None = None) -> ss.ScoreModel:
    """A network that gives 0: with v under VP the exact denoiser of standard normal data."""
    net = MLP(D, width=8, depth=1, classes=None if classes is None else len(classes))
    for weight in net.parameters():
        nn.init.zeros_(weight)
    model = ss.ScoreModel(net, ss.VP(), parameterization.v).requires_grad_(False)
    model.data = DataDescription("made", (D,), scaling, classes)
    return model


def test_a_posterior_in_units_of_the_data_is_exact_for_a_gaussian():
    shift, scale = (1.0, -2.0, 5.0), (0.5, 2.0, 3.0)
    data = Gaussian(torch.tensor(shift).double(), torch.tensor(scale).double() ** 2)
    operator, y = (
        Linear(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, -1.0]])),
        torch.tensor([0, -4.0]),
    )
    found = ss.infer(normal(Scaling(None, -1, 1, shift, scale)), operator, y, 0.5, num=800, nfe=20)
    exact = data.posterior(operator, y, 0.5)
    std = exact.cov.diagonal().sqrt()
    assert found.x.shape == (800, D)
    assert found.nfe == 20
    assert float(((found.x.double().mean(0) - exact.mean) / std).abs().max()) < 0.1
    assert float((found.x.double().std(0) / std - 1).abs().max()) < 0.08


@pytest.mark.parametrize("name", ["replacement", "repaint", "moment_matching", "diffpir"])
def test_known_levels_are_returned_exactly(name: str):
    y = torch.tensor([17, 0, 250], dtype=torch.uint8)
    found = ss.infer(
        normal(Scaling(256)), Mask(torch.tensor([1, 0, 1])), y, 0.0, method=name, num=4, nfe=20
    )
    assert found.x.dtype == torch.uint8
    assert (found.x[:, [0, 2]] == y[[0, 2]]).all()
    assert len(found.x[:, 1].unique()) > 1


def test_every_method_draws_from_a_model_with_a_label():
    model = normal(Scaling(), ("a", "b"))
    for name in POSTERIORS:
        found = ss.infer(
            model, Mask(torch.tensor([1, 0, 1])), torch.zeros(D), 0.1, method=name, num=2, nfe=12,
            label="b",
        )  # fmt: skip
        assert found.x.isfinite().all()
    with pytest.raises(ValueError, match="no class 'c'"):
        ss.infer(model, Mask(torch.tensor([1, 0, 1])), torch.zeros(D), 0.1, label="c")
    with pytest.raises(ValueError, match=r"trained on examples of \(3,\), got \(4,\)"):
        ss.infer(model, Mask(torch.tensor([1, 0, 1])), torch.zeros(D), 0.1, shape=(4,))


def test_a_denoiser_with_a_condition_for_each_sample_is_drawn_in_any_batch():
    model = normal(Scaling(), ("a", "b"))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    denoiser = model.bound({"label": torch.tensor([0, 1, 1, 0, 1])})
    ask = (denoiser, Mask(torch.tensor([1, 0, 1])), torch.linspace(-1, 1, 15).reshape(5, D), 0.1)
    whole = ss.infer(*ask, num=5, nfe=9, shape=(D,))
    torch.testing.assert_close(ss.infer(*ask, num=5, nfe=9, shape=(D,), batch=2).x, whole.x)
    with pytest.raises(ValueError, match=r"one sample \(5, 3\), or of 5 samples \(3,\); give"):
        ss.infer(*ask, num=5, nfe=9)
    with pytest.raises(ValueError, match="y: its shape is"):
        ss.infer(*ask, num=4, nfe=9, shape=(D,))


@dataclass(frozen=True)
class Together(PopulationMethod):
    name: ClassVar[str] = "together"

    def populate(self, denoiser, measurement, x, noise, nfe):
        return Population(denoiser(x, torch.tensor(0.5)) + len(x), -3.0, 0.25, 5.0)


def test_a_population_is_drawn_in_one_call_with_its_evidence():
    model = normal(Scaling())
    ask = (model, Mask(torch.tensor([1, 0, 1])), torch.zeros(D), 0.1)
    found = ss.infer(*ask, method=Together(), num=3, particles=5, batch=2)
    assert found.x.shape == (3, D)
    assert (found.log_evidence, found.log_evidence_error) == (-3.0, 0.25)
    assert found.nfe == 1
    assert float(found.x.mean()) > 3.5
    assert found.size == 5
    assert len(ss.infer(*ask, method=Together(), num=9, particles=5)) == 9
    assert float(ss.infer(*ask, method=Together(), num=200).x.mean()) > 390
    assert float(ss.infer(*ask, method=Together(), num=3).x.mean()) > 250
    with pytest.raises(ValueError, match="particles: need 2 or more, got 1"):
        ss.infer(*ask, method="twisted_smc", num=1, particles=1)


@pytest.mark.parametrize("name", ["moment_matching", "replacement", "twisted_smc"])
def test_a_measurement_with_a_batch_of_one_is_one_for_all(name: str):
    model, mask = normal(Scaling()), Mask(torch.tensor([1, 0, 1]))
    y = torch.tensor([0.5, 0.0, -0.2])
    one, row = (ss.infer(model, mask, v, 0.1, method=name, num=3, nfe=6) for v in (y, y[None]))
    assert torch.equal(one.x, row.x)
    denoiser, a = model.denoiser(), Linear(torch.eye(3)[:2])
    found = ss.infer(denoiser, a, torch.zeros(1, 2), 0.1, method=name, num=3, nfe=6)
    assert found.x.shape == (3, 3)
