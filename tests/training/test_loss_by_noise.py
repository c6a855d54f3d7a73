"""The loss by noise level, against a mask for each part."""

from __future__ import annotations

import pytest
import torch

from scoresde import VE, VP
from scoresde.training import fit
from scoresde.training.loss_by_noise import PARTS, LossByNoise


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["vp", "ve"])
def test_means_are_those_of_the_examples_in_each_part(sde):
    generator = torch.Generator().manual_seed(0)
    ends = sde.lam(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    levels, seen = LossByNoise(sde), []
    for _ in range(3):
        t = sde.t_min + torch.rand(40, generator=generator).double() * (sde.t_max - sde.t_min)
        losses = torch.rand(40, generator=generator)
        levels.add(t, losses)
        seen.append((sde.lam(t), losses))
    lam, losses = (torch.cat(part) for part in zip(*seen, strict=True))
    width = (ends[1] - ends[0]) / PARTS
    found = levels.take()
    assert [middle for middle, _ in found] == sorted(middle for middle, _ in found)
    counted = 0
    for middle, mean in found:
        part = ((middle - ends[0]) / width - 0.5).round()
        inside = ((lam - ends[0]) / width).floor().clamp(0, PARTS - 1) == part
        assert mean == pytest.approx(losses[inside].mean().item(), rel=1e-5)
        counted += int(inside.sum())
    assert counted == 120
    assert levels.take() == []


def test_the_ends_of_time_belong_to_the_outer_parts():
    sde, levels = VP(), LossByNoise(VP())
    levels.add(torch.tensor([sde.t_min, sde.t_max]), torch.tensor([1.0, 2.0]))
    assert [loss for _, loss in levels.take()] == [2.0, 1.0]


def test_updates_give_the_losses_of_their_examples(plan, split, scaling, fresh):
    for metrics in fit(fresh(), plan, split, scaling):
        assert metrics.t.shape == metrics.losses.shape == (plan.batch,)
        assert torch.equal(metrics.losses.mean(), metrics.loss)
