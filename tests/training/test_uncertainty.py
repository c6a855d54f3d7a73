"""A learned weight of every level: at its optimum exp(u) is the loss expected there."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from scoresde import VP, ScoreModel, parameterization
from scoresde.data import Scaling, Split
from scoresde.nn import MLP
from scoresde.training import (
    Checkpoint,
    DataDescription,
    Plan,
    TrainState,
    checkpoint,
    fit,
)
from scoresde.training.batches import draw_batch
from scoresde.training.distributed import Rank
from scoresde.training.learned_weight import LearnedWeight
from scoresde.training.loop import _backward, update


def weighted(state: TrainState) -> TrainState:
    """The state with a learned weight."""
    return replace(state, learned=LearnedWeight())


def numbers(learned: LearnedWeight) -> list[torch.Tensor]:
    moments = learned.optimizer.state_dict()["state"].values()
    return [*learned.u.state_dict().values(), *(m for group in moments for m in group.values())]


def test_it_starts_as_the_loss_itself():
    loss, noise = torch.rand(5), torch.linspace(-2, 4, 5, dtype=torch.float64)
    assert torch.equal(LearnedWeight()(loss, noise), loss)


def test_it_finds_a_known_loss_at_every_level():
    """Losses with mean f(noise), scattered as a square of normals: u becomes log f."""
    generator = torch.Generator().manual_seed(0)
    learned = LearnedWeight()
    rate = Plan(steps=500, lr=3e-2, warmup=10, schedule="cosine").learning_rate

    def expected(noise: torch.Tensor) -> torch.Tensor:
        return torch.exp(-1 - noise + torch.sin(2 * noise))

    for step in range(500):
        noise = 6 * torch.rand(256, generator=generator) - 2
        loss = expected(noise) * torch.randn(256, 8, generator=generator).square().mean(1)
        learned.optimizer.zero_grad()
        learned(loss, noise).mean().backward()
        for group in learned.optimizer.param_groups:
            group["lr"] = rate(step)
        learned.optimizer.step()
    noise = torch.linspace(-1.9, 3.9, 59)
    with torch.no_grad():
        ratio = learned.u(noise).exp() / expected(noise)
    assert (ratio - 1).abs().max() < 0.15
    assert (ratio - 1).square().mean().sqrt() < 0.05


def silent() -> ScoreModel:
    """A network that says 0."""
    torch.manual_seed(0)
    return ScoreModel(MLP(2, width=8, depth=1, embedding=8), VP(), parameterization.v)


def test_beside_a_network_that_stays_it_becomes_the_loss_of_that_network(plan):
    """F = 0 for Gaussian data of variance 1/16: the expected loss is alpha^2 + sigma^2 / 16."""
    data = Split(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) / 4)
    plan = replace(plan, steps=200, batch=256, classes=None, lr=4e-2, warmup=10)
    logged = {}
    for learn in (False, True):
        state = TrainState.of(silent(), replace(plan, learned_weight=learn))
        state.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        found = islice(fit(state, plan, data, Scaling(None)), 200 if learn else 20)
        logged[learn] = torch.stack([metrics.loss for metrics in found])
    # What is logged is the loss without the weight.
    assert torch.equal(logged[True][:20], logged[False])
    sde = state.model.sde
    t = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)
    expected = sde.alpha(t) ** 2 + sde.sigma(t) ** 2 / 16
    with torch.no_grad():
        u = state.learned.u(parameterization.v(sde, t).noise.float())
    assert ((u.exp() / expected) - 1).abs().max() < 0.2


def test_the_gradient_of_the_network_is_weighed_level_by_level(plan, split, scaling, fresh):
    """With u constant, u = log 4, it is a quarter of the gradient."""
    state = weighted(fresh(dropout=0.0))
    batch = draw_batch(plan, split, scaling, state.model.sde, 0)
    found = []
    for u in (0.0, 4.0):
        torch.nn.init.constant_(state.learned.u.linear.bias, torch.tensor(max(u, 1.0)).log())
        state.optimizer.zero_grad()
        _backward(state, plan, batch)
        found.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]))
    assert found[0].abs().max() > 0
    assert torch.allclose(found[1], found[0] / 4, rtol=1e-5)


def test_resume_is_bit_exact(plan, split, scaling, fresh, tmp_path):
    whole = weighted(fresh())
    for _ in fit(whole, plan, split, scaling):
        pass
    half = weighted(fresh())
    for _ in islice(fit(half, plan, split, scaling), 5):
        pass
    data = DataDescription("toy", (1, 2, 2), scaling, ("a", "b", "c"))
    states = (half.model.state_dict(), half.ema.state_dict(), half.optimizer.state_dict())
    saved = Checkpoint({}, data, 5, *states, learned=half.learned.state_dict())
    checkpoint.save(tmp_path / "half.pt", saved)
    found = checkpoint.load(tmp_path / "half.pt")
    resumed = weighted(fresh(seed=9))
    resumed.model.load_state_dict(found.model)
    resumed.optimizer.load_state_dict(found.optimizer)
    resumed.learned.u.load_state_dict(found.learned["u"])
    resumed.learned.optimizer.load_state_dict(found.learned["optimizer"])
    resumed.step = 5
    for _ in fit(resumed, plan, split, scaling):
        pass
    assert len(numbers(whole.learned)) == len(numbers(resumed.learned))
    for a, b in zip(numbers(whole.learned), numbers(resumed.learned), strict=True):
        assert torch.equal(a, b)
    assert whole.learned.u.linear.weight.any()
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_shares_of_its_gradient_add_up(plan, split, scaling, fresh):
    state = weighted(fresh(dropout=0.0))
    update(state, plan, split, scaling)
    batch = draw_batch(plan, split, scaling, state.model.sde, 1)

    def gradient(share: Rank) -> torch.Tensor:
        state.learned.optimizer.zero_grad()
        _backward(state, replace(plan, rank=share), batch)
        return torch.cat([p.grad.flatten() for p in state.learned.u.parameters()])

    total = gradient(Rank(0, 2)) + gradient(Rank(1, 2))
    torch.testing.assert_close(total, gradient(Rank()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_its_gradient_has_no_factor(plan, split, scaling, fresh, precision):
    moved = []
    for each in ("float32", precision):
        state = weighted(fresh(dropout=0.0))
        update(state, replace(plan, precision=each), split, scaling)
        moved.append(torch.cat([p.grad.flatten() for p in state.learned.u.parameters()]))
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[1], moved[0], rtol=0.05, atol=1e-3)
