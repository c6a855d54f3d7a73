"""Accumulation, half precision and layouts: the same gradient, resumed exactly."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from itertools import islice

import pytest
import torch

from scoresde import VP, ScoreModel, parameterization
from scoresde.data import Scaling, Split
from scoresde.nn import UNet
from scoresde.training import (
    Checkpoint,
    DataDescription,
    Plan,
    TrainingError,
    TrainState,
    checkpoint,
    fit,
    losses,
)
from scoresde.training.batches import draw_batch
from scoresde.training.loop import update
from scoresde.training.precision import (
    DTYPES,
    MOST_SKIPPED,
    PATIENCE,
    LossScale,
    autocast,
    lay_out,
)


def gradients(state):
    return [p.grad.clone() for p in state.model.parameters()]


def small_unet(**options) -> ScoreModel:
    torch.manual_seed(0)
    net = UNet(1, width=8, blocks=1, heads=2, embedding=8, classes=3, **options)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    return ScoreModel(net, VP(), parameterization.v)


def unet_state(model: ScoreModel):
    return TrainState.of(model, Plan())


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_parts_sum_to_the_batch(plan, split, scaling, fresh, parts):
    # Without dropout, whose masks are drawn for each part.
    whole, summed = fresh(dropout=0.0), fresh(dropout=0.0)
    a = update(whole, plan, split, scaling)
    b = update(summed, replace(plan, accumulate=parts), split, scaling)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(a.grad_norm, b.grad_norm, rtol=1e-5, atol=0)
    for p, q in zip(gradients(whole), gradients(summed), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_every_part_has_masks_of_its_own(plan, split, scaling, fresh):
    # Equal rows in both parts: with equal masks their losses would be equal too.
    twice = Split(split.x[:1].repeat(50, 1, 1, 1), torch.zeros(50, dtype=torch.long))
    one = replace(plan, accumulate=2, batch=4, label_dropout=0.0, dither=False)
    masks = []
    state = fresh()
    state.model.net.register_forward_hook(lambda m, i, out: masks.append(out.detach()))
    for _ in fit(state, replace(one, steps=3), twice, scaling):
        pass
    first, second = masks[-2:]
    x = draw_batch(one, twice, scaling, VP(), 2)
    assert x.x0[:2].equal(x.x0[2:])
    assert not torch.equal(first, second)


def test_parts_must_be_equal(plan):
    with pytest.raises(ValueError, match="batch=16 cannot be split into accumulate=3"):
        replace(plan, accumulate=3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_with_loss_and_weights_in_float32(
    plan, split, scaling, fresh, precision
):
    exact, half = fresh(dropout=0.0), fresh(dropout=0.0)
    # The first update of a fresh network sees its zero head only.
    for state in (exact, half):
        for _ in fit(state, replace(plan, steps=3), split, scaling):
            pass
    a = update(exact, plan, split, scaling)
    b = update(half, replace(plan, precision=precision), split, scaling)
    assert b.loss.dtype == torch.float32
    assert not torch.equal(a.loss, b.loss)
    torch.testing.assert_close(a.loss, b.loss, rtol=0.02, atol=0)
    torch.testing.assert_close(a.grad_norm, b.grad_norm, rtol=0.05, atol=0)
    for p in [*half.model.parameters(), *half.ema.parameters()]:
        assert p.dtype == torch.float32


@pytest.mark.parametrize(
    "change", [{"accumulate": 4}, {"precision": "bf16"}, {"precision": "fp16"}]
)
def test_resume_is_bit_exact(plan, split, scaling, fresh, tmp_path, change):
    plan = replace(plan, **change)
    whole = fresh()
    whole.scale = LossScale(2.0**16, PATIENCE - 7)  # doubles on the way
    for _ in fit(whole, plan, split, scaling):
        pass
    half = fresh()
    half.scale = LossScale(2.0**16, PATIENCE - 7)
    for _ in islice(fit(half, plan, split, scaling), 5):
        pass
    data = DataDescription("toy", (1, 2, 2), scaling, ("a", "b", "c"))
    states = [half.model.state_dict(), half.ema.state_dict(), half.optimizer.state_dict()]
    checkpoint.save(
        tmp_path / "half.pt", Checkpoint({}, data, half.step, *states, scale=half.scale)
    )
    resumed, found = fresh(seed=9), checkpoint.load(tmp_path / "half.pt")
    resumed.model.load_state_dict(found.model)
    resumed.ema.load_state_dict(found.ema)
    resumed.optimizer.load_state_dict(found.optimizer)
    resumed.step, resumed.scale = found.step, found.scale
    for _ in fit(resumed, plan, split, scaling):
        pass
    assert resumed.scale == whole.scale
    assert (resumed.scale.value == 2.0**17) == (plan.precision == "fp16")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- overflows of fp16 ------------------------------------------------------------------------


def overflowing(state, until: int):
    """Have the gradients of the first ``until`` updates overflow."""
    weight = next(state.model.parameters())
    weight.register_hook(lambda grad: grad * math.inf if state.step < until else grad)
    return state


def test_an_overflow_skips_its_update_and_is_counted(plan, split, scaling, fresh):
    state = overflowing(fresh(), 3)
    before = [p.clone() for p in state.model.parameters()]
    half = replace(plan, precision="fp16", steps=3)
    found = list(fit(state, half, split, scaling))
    assert [m.skipped for m in found] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert not state.optimizer.state
    assert state.scale == LossScale(2.0**13, 0, 3, 3)
    after = list(fit(state, replace(half, steps=5), split, scaling))
    assert [m.skipped for m in after] == [3, 3]
    assert state.scale == LossScale(2.0**13, 2, 3, 0)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True)
    )


def test_overflows_in_a_row_stop(plan, split, scaling, fresh):
    state = overflowing(fresh(), 1000)
    half = replace(plan, precision="fp16", steps=1000)
    with pytest.raises(TrainingError, match=rf"step {MOST_SKIPPED}: .*{MOST_SKIPPED} overflows"):
        for _ in fit(state, half, split, scaling):
            pass
    assert state.step == MOST_SKIPPED - 1


def test_a_loss_that_is_not_finite_is_no_overflow(plan, split, scaling, fresh):
    state = fresh()
    next(state.model.parameters()).data.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 1: loss nan"):
        next(fit(state, replace(plan, precision="fp16"), split, scaling))


def test_the_factor_doubles_when_long_nothing_overflows():
    scale = LossScale()
    for _ in range(2 * PATIENCE):
        scale = scale.after(True)
    assert scale == LossScale(2.0**18)


# --- layouts ----------------------------------------------------------------------------------


def test_channels_last_changes_nothing_but_the_memory(plan, scaling):
    x = torch.randint(0, 17, (50, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    images = Split(x.to(torch.uint8), torch.arange(50) % 3)
    plain, laid = small_unet(dropout=0.0), small_unet(dropout=0.0)  # masks follow the memory
    lay_out(laid)
    assert laid.net.bottom.residuals[0].inner.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    a = update(unet_state(plain), plan, images, scaling)
    b = update(unet_state(laid), plan, images, scaling)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(a.grad_norm, b.grad_norm, rtol=1e-4, atol=0)
    assert plain.state_dict().keys() == laid.state_dict().keys()


def test_recomputed_blocks_have_the_same_gradients_with_dropout(plan, scaling):
    x = torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    images = Split(x, torch.arange(50) % 3)
    kept, again = small_unet(dropout=0.5), small_unet(dropout=0.5, recompute=True)
    calls = []
    again.net.bottom.residuals[0].register_forward_hook(lambda *args: calls.append(1))
    a = update(unet_state(kept), plan, images, Scaling(None))
    b = update(unet_state(again), plan, images, Scaling(None))
    assert torch.equal(a.loss, b.loss)
    assert len(calls) == 2
    for p, q in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    again.eval()
    losses.dsm_loss(
        again, x[:2], torch.full((2,), 0.5), torch.zeros(2, 1, 6, 6), label=torch.zeros(2).long()
    )
    assert len(calls) == 3


def test_autocast_of_float32_does_nothing():
    with autocast("float32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")


# --- products ---------------------------------------------------------------------------------


LAYERS = [
    (torch.nn.Linear(96, 8), (5, 96)),
    (torch.nn.Conv2d(16, 8, 3, padding=1), (2, 16, 5, 6)),
    (torch.nn.ConvTranspose2d(16, 8, 4, stride=2), (2, 16, 3, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_layers_compute_in_half_precision_and_weights_keep_theirs(layer, shape, precision):
    half = DTYPES[precision]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with autocast(precision, torch.device("cpu")):
        found = layer(x)
    assert found.dtype == half
    gradients = torch.autograd.grad(found.float().sum(), list(layer.parameters()))
    assert all(g.dtype == torch.float32 for g in gradients)
    # Whatever the order and the precision of the sum, every one of n terms and partial sums is
    # rounded a few times at most: n eps times the sum of the terms' sizes.
    wide, sizes = deepcopy(layer).double(), deepcopy(layer).double()
    with torch.no_grad():
        for p in sizes.parameters():
            p.abs_()
        bound = sizes(x.double().abs()) * torch.finfo(half).eps * layer.weight[0].numel()
    assert torch.all((found.double() - wide(x.double())).abs() <= bound)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_is_traced_whole_in_half_precision(recompute):
    net = small_unet(dropout=0.0, recompute=recompute).net.train()
    traced = torch.compile(net, backend="aot_eager", fullgraph=True)
    x, noise = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    found = []
    for f in (net, traced):
        with autocast("bf16", torch.device("cpu")):
            y = f(x, noise).float()
        found += [y.detach(), *torch.autograd.grad(y.sum(), net.bottom.parameters())]
    eager, compiled = found[: len(found) // 2], found[len(found) // 2 :]
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.03 * float(a.abs().max()))
