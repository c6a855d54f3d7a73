"""Augmentation: identity at no change, exact flips and shifts, told to the network, repeatable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from scoresde import VP, ScoreModel, parameterization
from scoresde.cli.main import main
from scoresde.nn import UNet
from scoresde.training import Plan, TrainState
from scoresde.training import checkpoint as ck
from scoresde.training.augment import (
    EDMAugment,
    PlainAugment,
    flipped,
    linear,
    resampled,
    shifted,
    transformed,
)
from scoresde.training.batches import draw_batch
from scoresde.training.distributed import Rank
from scoresde.training.loop import _backward, update
from tests.cli.test_train import taken_back


def images(n: int = 64, height: int = 6, width: int = 9, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, 2, height, width, generator=generator(1), dtype=dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(n: int = 1, **set_to: float) -> torch.Tensor:
    """The label of n images, zero but for what is named."""
    names = ("x", "y", "scale", "cos", "sin", "along", "across", "right", "down")
    return torch.tensor([[set_to.get(name, 0.0) for name in names]] * n)


# --- what is exact ------------------------------------------------------------------------------


def test_probability_zero_changes_no_bit():
    x = images()
    found, label = EDMAugment(0.0, flip=0.0).on_units(x, generator())
    assert torch.equal(found, x)
    assert label is not None
    assert not label.any()
    with pytest.raises(ValueError, match="flip=0 and crop=0 do nothing"):
        PlainAugment(flip=0.0, crop=0)


def test_an_image_is_touched_where_its_label_is_not_zero_and_nowhere_else():
    x = images(500)
    found, label = EDMAugment(0.12).on_units(x, generator())
    told, touched = (label != 0).any(1), (found != x).flatten(1).any(1)
    assert torch.equal(told, touched)
    assert 50 < told.sum() < 450


def test_flips_undo_themselves_and_move_pixels_only():
    x = images(2)
    for label, axis in ((numbers(2, x=1), 3), (numbers(2, y=1), 2)):
        once = transformed(x, label)
        assert torch.equal(once, x.flip(axis))
        assert torch.equal(transformed(once, label), x)
    mixed = flipped(x, torch.tensor([True, False]), 3)
    assert torch.equal(mixed, torch.stack([x[0].flip(2), x[1]]))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -3), (-4, 1)])
def test_a_whole_shift_is_the_slice_of_a_reflected_image(down, right):
    x = images(3)
    padded = F.pad(x, (4, 4, 4, 4), "reflect")
    expected = padded[:, :, 4 - down : 10 - down, 4 - right : 13 - right]
    assert torch.equal(shifted(x, torch.tensor([[down, right]] * 3)), expected)


def test_a_shift_larger_than_the_image_still_shows_the_image():
    levels = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    found = shifted(levels, torch.tensor([[7, -50]]))
    assert set(found.flatten().tolist()) <= set(range(6))
    one = torch.full((1, 1, 1, 1), 5)
    assert torch.equal(shifted(one, torch.tensor([[3, 3]])), one)


def test_plain_flips_as_often_as_asked_and_shifts_by_every_whole_number():
    # Level = 10 row + column says where each pixel came from.
    place = 10 * torch.arange(8)[:, None] + torch.arange(8)
    levels = place.to(torch.uint8).expand(4000, 1, 8, 8)
    found = PlainAugment(flip=0.3, crop=2).on_levels(levels, generator())[:, 0].int()
    mirrored = found[:, 4, 4] > found[:, 4, 5]
    down = 4 - found[:, 4, 4] // 10
    assert abs(mirrored.float().mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    counts = torch.bincount(down + 2, minlength=5)
    assert counts.shape == (5,)
    assert (counts - 800).abs().max() < 5 * math.sqrt(4000 * 0.2 * 0.8)


# --- what interpolates --------------------------------------------------------------------------


def test_the_identity_map_resamples_to_the_image():
    x = images(dtype=torch.float64)
    eye = torch.eye(2).expand(len(x), 2, 2)
    torch.testing.assert_close(resampled(x, eye, torch.zeros(len(x), 2)), x, rtol=0, atol=1e-12)
    assert torch.equal(linear(numbers(3)), torch.eye(2).expand(3, 2, 2))


def test_a_translation_by_whole_pixels_moves_right_and_down():
    x = images(1, 8, 16, dtype=torch.float64)
    found = transformed(x, numbers(right=1 / 8 * 4, down=1))  # 1 pixel right, 1 down
    torch.testing.assert_close(found[..., 1:, 1:], x[..., :-1, :-1], rtol=0, atol=1e-12)


def test_quarter_turns_are_those_of_rot90():
    x = images(2, 7, 7, dtype=torch.float64)
    quarter = transformed(x, numbers(2, cos=-1, sin=1))
    torch.testing.assert_close(quarter, x.rot90(-1, (2, 3)), rtol=0, atol=1e-6)
    half = transformed(x, numbers(2, cos=-2))
    torch.testing.assert_close(half, x.flip(2, 3), rtol=0, atol=1e-12)


def test_the_matrix_has_the_eigenvalues_of_the_table():
    both = linear(numbers(scale=1.5)).double()
    torch.testing.assert_close(both, 2 ** (0.2 * 1.5) * torch.eye(2).double()[None])
    angle, by = 0.7, 1.3
    matrix = linear(numbers(along=by * math.cos(angle), across=by * math.sin(angle)))[0].double()
    n = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    torch.testing.assert_close(matrix @ n, 2 ** (0.2 * by) * n, rtol=1e-5, atol=1e-6)
    across = torch.stack([-n[1], n[0]])
    torch.testing.assert_close(matrix @ across, 2 ** (-0.2 * by) * across, rtol=1e-5, atol=1e-6)
    assert torch.linalg.det(matrix) == pytest.approx(1, rel=1e-5)


def test_a_rotation_keeps_lengths_where_images_are_not_square():
    """A spot two pixels right of the middle goes two pixels down, not two of another scale."""
    x = torch.zeros(1, 1, 9, 21, dtype=torch.float64)
    x[0, 0, 4, 12] = 1
    found = transformed(x, numbers(cos=-1, sin=1))
    expected = torch.zeros(9, 5, dtype=torch.float64)  # further out is what the border reflects
    expected[6, 2] = 1
    torch.testing.assert_close(found[0, 0, :, 8:13], expected, rtol=0, atol=1e-6)


def test_values_stay_within_those_of_the_image():
    x = images(500)
    found, _ = EDMAugment(1.0).on_units(x, generator())
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    assert (found.flatten(1).amin(1) >= low - 1e-5).all()
    assert (found.flatten(1).amax(1) <= high + 1e-5).all()


def test_a_mirror_image_is_an_even_chance_and_the_other_five_are_as_likely_as_asked():
    """The mirror image does not depend on the probability: arXiv 2206.00364, appendix F.2."""
    n, p = 20_000, 0.12
    label = EDMAugment(p)._draw(n, generator())
    for column in range(9):
        # Of those drawn to be turned upside down half are.
        expected = (0.5, p / 2)[column] if column < 2 else p
        share = (label[:, column] != 0).double().mean()
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    for pair in ((3, 4), (5, 6), (7, 8)):
        assert torch.equal(label[:, pair[0]] != 0, label[:, pair[1]] != 0)
    never = EDMAugment(p, flip=0.0)._draw(n, generator())
    assert not never[:, 0].any()
    assert torch.equal(never[:, 1:], label[:, 1:])


def test_what_is_drawn_has_the_distributions_of_the_table():
    """Normal exponents, lengths and shifts of variance 1; angles uniform over the circle."""
    n = 20_000
    label = EDMAugment(1.0)._draw(n, generator(3)).double()
    assert torch.equal((label[:, 3] + 1) ** 2 + label[:, 4] ** 2 > 0.999, torch.ones(n) > 0)
    normal = (label[:, 2], label[:, 7], label[:, 8])
    moments = [(part**k).mean() for part in normal for k in range(1, 5)]
    expected, variances = (0, 1, 0, 3), (1, 2, 15, 96)
    for k, moment in enumerate(moments):
        assert abs(moment - expected[k % 4]) < 5 * math.sqrt(variances[k % 4] / n)
    stretch = label[:, 5:7].square().sum(1)
    assert abs(stretch.mean() - 1) < 5 * math.sqrt(2 / n)
    turn = torch.atan2(label[:, 4], label[:, 3] + 1)
    # 2 (along + pi where a5 < 0) is 2 along.
    for angle in (turn, 2 * turn, 2 * torch.atan2(label[:, 6], label[:, 5])):
        for wave in (angle.cos(), angle.sin()):
            assert abs(wave.mean()) < 5 * math.sqrt(0.5 / n)


def test_scaling_comes_first_then_the_turn_then_the_stretch():
    turn, along, by = 0.4, 1.1, 1.7
    one = {"scale": -0.8, "cos": math.cos(turn) - 1, "sin": math.sin(turn)}
    two = {"along": by * math.cos(along), "across": by * math.sin(along)}
    both, first, second = (linear(numbers(**label)) for label in (one | two, one, two))
    torch.testing.assert_close(both, second @ first, rtol=1e-5, atol=1e-6)
    assert (both - first @ second).abs().max() > 0.1


@pytest.mark.parametrize("bad", [{"flip": 1.5}, {"flip": -0.1}, {"crop": -1}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PlainAugment(**bad)
    for edm in ({"probability": 2.0}, {"flip": -0.1}):
        with pytest.raises(ValueError, match=next(iter(edm))):
            EDMAugment(**edm)


# --- in training --------------------------------------------------------------------------------

BOTH = (PlainAugment(0.5, 1), EDMAugment(0.5))


@pytest.mark.parametrize("augment", BOTH, ids=("plain", "edm"))
def test_a_batch_is_a_function_of_seed_and_step(plan, split, scaling, augment):
    plan = replace(plan, augment=augment)
    batch = draw_batch(plan, split, scaling, VP(), 7)
    again = draw_batch(plan, split, scaling, VP(), 7)
    parts = draw_batch(replace(plan, rank=Rank(1, 2)), split, scaling, VP(), 7)
    for other in (again, parts):
        for a, b in zip(batch, other, strict=True):
            assert a == b if not isinstance(a, torch.Tensor) else torch.equal(a, b)
    assert not torch.equal(batch.x0, draw_batch(plan, split, scaling, VP(), 8).x0)


def test_noise_times_and_labels_are_those_without(plan, split, scaling):
    bare = draw_batch(plan, split, scaling, VP(), 3)
    assert bare.augment is None
    for augment in (*BOTH, EDMAugment(0.0, flip=0.0)):
        batch = draw_batch(replace(plan, augment=augment), split, scaling, VP(), 3)
        for name in ("t", "eps", "label"):
            assert torch.equal(getattr(batch, name), getattr(bare, name))
        changes = augment in BOTH
        assert torch.equal(batch.x0, bare.x0) is not changes
        if augment.labels is not None:
            assert batch.augment.shape == (plan.batch, augment.labels)


def test_plain_batches_hold_levels_of_the_images(plan, split, scaling):
    plan = replace(plan, augment=PlainAugment(1.0), dither=False)
    bare = draw_batch(replace(plan, augment=None), split, scaling, VP(), 0)
    mirrored = draw_batch(plan, split, scaling, VP(), 0)
    assert torch.equal(mirrored.x0, bare.x0.flip(3))


def fresh():
    torch.manual_seed(0)
    net = UNet(
        1, width=8, embedding=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0, augments=9
    )
    model = ScoreModel(net, VP(), parameterization.v)
    return TrainState.of(model, Plan())


def test_two_processes_add_up_to_one_and_the_label_is_learned(unconditional, split, scaling):
    plan, state = replace(unconditional, augment=EDMAugment(0.5)), fresh()
    for _ in range(2):  # the head of a fresh network is zero
        update(state, plan, split, scaling)

    def gradient(plan):
        state.optimizer.zero_grad()
        _backward(state, plan, draw_batch(plan, split, scaling, VP(), 0))
        return [p.grad.clone() for p in state.model.parameters()]

    whole = gradient(plan)
    shares = [gradient(replace(plan, rank=Rank(rank, 2))) for rank in range(2)]
    for expected, *found in zip(whole, *shares, strict=True):
        torch.testing.assert_close(sum(found), expected, rtol=1e-4, atol=1e-6)
    assert state.model.net.condition.augments.weight.grad.abs().max() > 0
    batch = draw_batch(plan, split, scaling, VP(), 5)
    with torch.no_grad():
        told = state.model.eval()(batch.x0, batch.t, augment=batch.augment)
        clean = state.model(batch.x0, batch.t)
    touched = (batch.augment != 0).any(1)
    differs = (told != clean).flatten(1).any(1)
    assert torch.equal(differs, touched)
    zeros = torch.zeros_like(batch.augment)
    with torch.no_grad():
        assert torch.equal(state.model(batch.x0, batch.t, augment=zeros), clean)


SECTIONS = {
    "network": {"width": 8, "heads": 1, "embedding": 8, "multipliers": 1, "blocks": 1},
    "train": {"batch": 16, "log_every": 2, "validate_every": 4, "checkpoint_every": 2},
}
TINY = [f"--{s}.{key}={v}" for s, keys in SECTIONS.items() for key, v in keys.items()]
TINY += ["--network.attention=0", "--train.sample_every=100"]


def trained(out, steps, *flags, resume=False):
    command = ["train", "--out", str(out), "--device", "cpu", f"--train.steps={steps}"]
    assert main([*command, *TINY, *flags, *["--resume"] * resume]) == 0
    return ck.newest(out / "checkpoints")[1]


@pytest.mark.parametrize("kind", ["plain", "edm"])
def test_the_command_trains_resumes_exactly_and_samples(tmp_path, kind):
    flags = ["--train.augment", kind, *["--train.augment.crop", "1"] * (kind == "plain")]
    whole = trained(tmp_path / "whole", 4, *flags)
    taken_back(tmp_path / "whole", tmp_path / "part", 2)
    parts = trained(tmp_path / "part", 4, *flags, resume=True)
    bare = trained(tmp_path / "bare", 4)
    assert whole.model.keys() == parts.model.keys()
    for name, value in whole.model.items():
        assert torch.equal(value, parts.model[name]), name
    assert (whole.model.keys() != bare.model.keys()) == (kind == "edm")
    shared = [name for name in bare.model if name.startswith("net.") and name in whole.model]
    assert any(not torch.equal(whole.model[name], bare.model[name]) for name in shared)
    drawn = ["sample", "--checkpoint", str(tmp_path / "whole"), "--out", str(tmp_path / "drawn")]
    assert main([*drawn, "--num", "2", "--sample.steps", "3", "--device", "cpu"]) == 0


def test_the_dry_run_counts_the_weights_of_the_label(capsys):
    def count(*flags):
        assert main(["train", "--dry-run", *TINY, *flags]) == 0
        text = capsys.readouterr().out
        return int(text.partition("# ")[2].split()[0].replace(",", ""))

    assert count("--train.augment=edm") - count() == 9 * 8
    assert count("--train.augment=plain") == count()
