"""The loop: a pure function of (seed, step), resumed bit for bit, near the known optimum."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from scoresde import VE, VP, ScoreModel, parameterization
from scoresde.data import Scaling, Split, holdout
from scoresde.nn import MLP
from scoresde.training import (
    Checkpoint,
    DataDescription,
    Plan,
    TrainingError,
    TrainState,
    checkpoint,
    fit,
    held_out_loss,
    losses,
    times,
)
from scoresde.training.batches import derived_seed, draw_batch
from scoresde.training.loop import update


def run(state, plan, split, scaling, until=None):
    steps = fit(state, plan, split, scaling)
    return [m.loss for m in islice(steps, None if until is None else until - state.step)]


def everything(state):
    """Every number of a state, flat."""
    moments = [
        s for group in state.optimizer.state_dict()["state"].values() for s in group.values()
    ]
    return [*state.model.state_dict().values(), *state.ema.state_dict().values(), *moments]


@pytest.mark.parametrize("dither", [True, False])
def test_resume_is_bit_exact_in_mid_epoch_with_dropout(
    plan, split, scaling, fresh, tmp_path, dither
):
    plan, whole = replace(plan, dither=dither), fresh()
    losses_whole = run(whole, plan, split, scaling)

    half = fresh()
    first = run(half, plan, split, scaling, until=5)
    assert 5 * plan.batch % len(split) != 0
    data = DataDescription("toy", (1, 2, 2), scaling, ("a", "b", "c"))
    saved = Checkpoint(
        {}, data, half.step, half.model.state_dict(), half.ema.state_dict(),
        half.optimizer.state_dict(),
    )  # fmt: skip
    checkpoint.save(tmp_path / "half.pt", saved)

    resumed, found = fresh(seed=99), checkpoint.load(tmp_path / "half.pt")
    checkpoint.load_tensors(resumed.model, found.model, "half.pt")
    checkpoint.load_tensors(resumed.ema, found.ema, "half.pt")
    resumed.optimizer.load_state_dict(found.optimizer)
    resumed.step = found.step
    torch.manual_seed(12345)
    second = run(resumed, plan, split, scaling)

    assert torch.equal(torch.stack(first + second), torch.stack(losses_whole))
    assert len(everything(whole)) == len(everything(resumed))
    for a, b in zip(everything(whole), everything(resumed), strict=True):
        assert torch.equal(a, b)


def test_global_generator_neither_matters_nor_moves(plan, split, scaling, fresh):
    quiet, disturbed = fresh(), fresh()
    expected = run(quiet, plan, split, scaling)
    found = []
    for metrics in fit(disturbed, plan, split, scaling):
        found.append(metrics.loss)
        torch.rand(7)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    before = torch.get_rng_state()
    update(quiet, plan, split, scaling)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_masks_follow_the_seed(plan, split, scaling, fresh):
    # Same weights, same batch: only the masks can make the losses of two seeds of dropout differ.
    with_masks = [run(fresh(), plan, split, scaling, until=3) for _ in range(2)]
    without = run(fresh(dropout=0.0), plan, split, scaling, until=3)
    assert torch.equal(torch.stack(with_masks[0]), torch.stack(with_masks[1]))
    assert not torch.equal(torch.stack(with_masks[0])[1:], torch.stack(without)[1:])


def test_batch_is_a_function_of_seed_and_step(plan, split, scaling):
    sde = VP()
    later = draw_batch(plan, split, scaling, sde, 7)
    torch.manual_seed(0)
    for step in range(7):
        draw_batch(plan, split, scaling, sde, step)
    again = draw_batch(plan, split, scaling, sde, 7)
    assert later.augment is None
    assert all(torch.equal(a, b) for a, b in zip(later[:4], again[:4], strict=True))
    for other in (
        draw_batch(plan, split, scaling, sde, 8),
        draw_batch(replace(plan, seed=plan.seed + 1), split, scaling, sde, 7),
    ):
        assert not torch.equal(other.eps, later.eps)
        assert not torch.equal(other.t, later.t)


def test_batch_is_dequantised_within_its_levels(plan, split, scaling):
    batch = draw_batch(plan, split, scaling, VP(), 0)
    levels = scaling.decode(batch.x0).flatten(1)
    known = {tuple(row) for row in split.x.flatten(1).tolist()}
    assert {tuple(row) for row in levels.tolist()} <= known
    assert not torch.equal(batch.x0, scaling.encode(levels.reshape(batch.x0.shape)))
    assert ((batch.t >= VP().t_min) & (batch.t <= VP().t_max)).all()


def test_dither_is_the_first_draw_of_a_batch_and_its_absence_the_middle(plan, split, scaling):
    dithered = draw_batch(plan, split, scaling, VP(), 3)
    levels = scaling.decode(dithered.x0)
    u = torch.rand(
        levels.shape, generator=torch.Generator().manual_seed(derived_seed(3, 3, "batch"))
    )
    assert torch.equal(dithered.x0, scaling.encode(levels, u))
    plain = draw_batch(replace(plan, dither=False), split, scaling, VP(), 3)
    assert torch.equal(plain.x0, scaling.encode(levels))


def test_dither_leaves_continuous_data_alone(plan, unconditional):
    numbers = Split(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    found = [
        draw_batch(replace(unconditional, dither=dither), numbers, Scaling(None), VP(), 3)
        for dither in (True, False)
    ]
    assert all(torch.equal(a, b) for a, b in zip(found[0][:3], found[1][:3], strict=True))


def test_streams_do_not_collide():
    seeds = [
        derived_seed(a, b, p) for a in range(40) for b in range(40) for p in ("batch", "dropout")
    ]
    assert len(set(seeds)) == len(seeds)


def test_label_dropout_has_its_rate(plan, split, scaling):
    large = replace(plan, batch=4000, label_dropout=0.3)
    label = draw_batch(large, split, scaling, VP(), 0).label
    rate = (label == 3).double().mean().item()
    assert abs(rate - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    never = draw_batch(replace(large, label_dropout=0.0), split, scaling, VP(), 0).label
    assert torch.equal(label[label != 3], never[label != 3])
    assert never.max() == 2


def test_unconditional_model_sees_no_labels(unconditional, split, scaling):
    assert draw_batch(unconditional, split, scaling, VP(), 0).label is None


def test_conditional_model_needs_labels(plan, split, scaling):
    with pytest.raises(ValueError, match="needs labels"):
        draw_batch(plan, Split(split.x), scaling, VP(), 0)


def zero_model(sde, dim=2):
    """F = 0 at every time: the head of a new network is zero."""
    torch.manual_seed(0)
    return ScoreModel(
        MLP(dim, width=8, depth=1, embedding=8, dropout=0.5), sde, parameterization.eps
    )


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["vp", "ve"])
def test_held_out_loss_of_no_prediction_is_the_noise(sde):
    # eps_hat = 0 leaves E eps^2 = 1, and every example is met at every part of the range.
    split = Split(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
    loss = held_out_loss(zero_model(sde), split, Scaling(None), draws=8)
    assert abs(loss - 1) < 5 * math.sqrt(2 / (500 * 2 * 8))


def test_held_out_loss_is_deterministic_and_restores_the_mode(fresh, split, scaling, plan):
    state = fresh()
    run(state, plan, split, scaling, until=3)
    state.model.train()
    torch.manual_seed(1)
    first = held_out_loss(state.model, split, scaling, conditional=True)
    torch.manual_seed(2)
    assert held_out_loss(state.model, split, scaling, conditional=True) == first
    assert state.model.training
    in_parts = held_out_loss(state.model, split, scaling, conditional=True, batch=7)
    assert in_parts == pytest.approx(first, rel=1e-5)
    assert held_out_loss(state.model, split, scaling, conditional=False) != first


def test_held_out_loss_without_dither_is_that_of_the_middles(fresh, split, scaling):
    state = fresh()
    middles = Split(scaling.encode(split.x), split.label)
    found = held_out_loss(state.model, split, scaling, dither=False)
    assert found == held_out_loss(state.model, middles, Scaling(None))
    assert found != held_out_loss(state.model, split, scaling)


def test_training_reaches_the_optimum_of_a_gaussian():
    # Data N(0, diag(v)): the least loss is alpha^2 v / (alpha^2 v + sigma^2), averaged over lam.
    sde, variance = VP(), torch.tensor([0.02, 4.0])
    x = torch.randn(6000, 2, generator=torch.Generator().manual_seed(0)) * variance.sqrt()
    train, held = holdout(Split(x), 2000)
    lam = sde.lam(losses.held_out_times(sde, 4000))[:, None]
    optimum = torch.sigmoid(2 * lam + variance.double().log()).mean().item()

    torch.manual_seed(0)
    model = ScoreModel(MLP(2, width=48, depth=2, embedding=32), sde, parameterization.v)
    plan = Plan(
        steps=300, batch=128, lr=3e-3, warmup=20, schedule="cosine", times=times.LogSNR(),
        weighting=losses.sigma2, ema=0.98,
    )  # fmt: skip
    state = TrainState.of(model, plan)
    untrained = held_out_loss(model, held, Scaling(None), draws=2)
    for _ in fit(state, plan, train, Scaling(None)):
        pass
    trained = held_out_loss(state.ema, held, Scaling(None), draws=2)
    assert untrained > 1.15 * optimum
    assert 0.97 * optimum < trained < optimum + 0.25 * (untrained - optimum)


def poisoned(state, value):
    with torch.no_grad():
        next(iter(state.model.parameters())).fill_(value)
    return state


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_stops_before_its_update(plan, split, scaling, fresh, value):
    state = fresh()
    run(state, plan, split, scaling, until=3)
    poisoned(state, value)
    before = [p.clone() for p in everything(state)]
    with pytest.raises(TrainingError, match=r"step 4: loss .*gradient norm .*learning rate 0\.0"):
        next(fit(state, plan, split, scaling))
    assert state.step == 3
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before, everything(state), strict=True)
    )
    assert all(torch.isfinite(p).all() for p in state.ema.parameters())


def test_a_huge_learning_rate_stops(plan, split, scaling, fresh):
    wild = replace(plan, lr=1e30, warmup=0, schedule="constant", clip=None, steps=50)
    with pytest.raises(TrainingError, match="lower lr"):
        run(fresh(), wild, split, scaling)


@pytest.mark.parametrize("clip", [0.01, 1e3, None])
def test_clipping_bounds_the_update(plan, split, scaling, fresh, clip):
    state = fresh()
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=1.0)
    one = replace(plan, clip=clip, lr=1.0, warmup=0, schedule="constant")
    before = nn.utils.parameters_to_vector(state.model.parameters()).detach()
    metrics = update(state, one, split, scaling)
    moved = (nn.utils.parameters_to_vector(state.model.parameters()).detach() - before).norm()
    expected = metrics.grad_norm if clip is None else metrics.grad_norm.clamp(max=clip)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_learning_rates_follow_their_formulas():
    rise = Plan(steps=12, lr=2.0, warmup=4).learning_rate
    wave = Plan(steps=12, lr=2.0, warmup=4, schedule="cosine").learning_rate
    fall = Plan(lr=2.0, warmup=4, schedule="inverse_sqrt", decay_from=100).learning_rate
    assert [rise(k) for k in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert [wave(k) for k in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert wave(8) == pytest.approx(1.0)
    assert wave(12) == pytest.approx(0.0, abs=1e-15)
    assert [fall(k) for k in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert fall(99) == 2.0
    assert fall(399) == pytest.approx(1.0)
    assert fall(9999) == pytest.approx(0.2)
    assert Plan(lr=2.0).learning_rate(0) == 2.0


def test_a_warm_up_longer_than_the_run_is_shortened():
    plan = Plan(steps=10, lr=2.0, warmup=100, schedule="cosine")
    assert plan.warmup_steps == 5
    assert plan.learning_rate(4) == 2.0
    assert plan.learning_rate(9) < 0.4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"ema": 1.1}, r"ema=\(1.1,\)"),
        ({"label_dropout": -0.1}, "label_dropout=-0.1"),
        ({"clip": 0.0}, "clip=0"),
    ],
)
def test_plan_refuses_numbers_out_of_range(plan, change, name):
    with pytest.raises(ValueError, match=name):
        replace(plan, **change)
