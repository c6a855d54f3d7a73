"""Weights brought back to unit size after every update, whatever a run does around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch

from scoresde import VP, ScoreModel, parameterization
from scoresde.nn import EDM2
from scoresde.training import Plan, TrainState, averages, fit
from scoresde.training.precision import lay_out


@pytest.fixture
def unit() -> Callable[..., TrainState]:
    """A magnitude-preserving network of its seed, fresh."""

    def make(seed: int = 0, **options) -> TrainState:
        torch.manual_seed(seed)
        small = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}
        net = EDM2(1, head_channels=8, classes=3, **{**small, "dropout": 0.0, **options})
        model = ScoreModel(net, VP(), parameterization.v)
        return TrainState.of(model, Plan())

    return make


def run(state, plan, split, scaling, until=None):
    for _ in islice(fit(state, plan, split, scaling), until):
        pass
    return [*state.model.state_dict().values(), *state.ema.state_dict().values()]


def sizes(model: torch.nn.Module) -> torch.Tensor:
    weights = [p for p in model.parameters() if p.ndim]
    return torch.cat([w.detach().flatten(1).square().mean(1).sqrt() for w in weights])


def test_after_every_update_the_weights_have_unit_size(plan, split, scaling, unit):
    state = unit()
    before = [p.detach().clone() for p in state.model.parameters()]
    for _ in fit(state, plan, split, scaling):
        assert torch.allclose(sizes(state.model), torch.ones(()), rtol=0, atol=1e-5)
    moved = [not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True)]
    assert all(moved)


def test_averages_are_of_unit_weights(plan, split, scaling, unit):
    state = unit()
    mean = [p.detach().clone() for p in state.model.parameters()]
    for metrics in fit(state, plan, split, scaling):
        keep = averages.warmed_up(plan.ema[0], metrics.step - 1)
        for kept, p in zip(mean, state.model.parameters(), strict=True):
            kept.lerp_(p.detach(), 1 - keep)
    for kept, p in zip(mean, state.ema.parameters(), strict=True):
        assert torch.allclose(kept, p, rtol=0, atol=1e-6)
    # Averages of unit vectors are shorter, and their network is no other for it.
    assert (sizes(state.ema) <= 1 + 1e-5).all()


def test_resume_is_bit_exact(plan, split, scaling, unit):
    whole, half, resumed = unit(dropout=0.2), unit(dropout=0.2), unit(seed=5, dropout=0.2)
    expected = run(whole, plan, split, scaling)
    run(half, plan, split, scaling, 5)
    resumed.model.load_state_dict(half.model.state_dict())
    resumed.ema.load_state_dict(half.ema.state_dict())
    resumed.optimizer.load_state_dict(half.optimizer.state_dict())
    resumed.step = 5
    found = run(resumed, plan, split, scaling)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_recomputed_blocks_make_the_same_run_bit_for_bit(plan, split, scaling, unit):
    kept = run(unit(dropout=0.2), plan, split, scaling)
    again = run(unit(dropout=0.2, recompute=True), plan, split, scaling)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_parts_of_a_batch_and_other_layouts_make_the_same_run(plan, split, scaling, unit):
    # After a few steps: Adam's first ones turn rounding into signs.
    plan = replace(plan, steps=3)
    expected = run(unit(), plan, split, scaling)
    in_parts = run(unit(), replace(plan, accumulate=4), split, scaling)
    turned = unit()
    lay_out(turned.model)
    beside = run(turned, plan, split, scaling)
    for found in (in_parts, beside):
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-3)
    assert turned.model.net.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(plan, split, scaling, unit, precision):
    found = []
    for each in ("float32", precision):
        state = unit()
        for metrics in fit(state, replace(plan, precision=each, steps=4), split, scaling):
            last = metrics.loss
        found.append(last)
        assert torch.allclose(sizes(state.model), torch.ones(()), rtol=0, atol=1e-5)
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0)
