"""Judges of attributes: right on unseen pictures, and honest about their number."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.data import avatars
from scoresde.evaluation import Accuracy, attribute_judge, fit_classifier, halves_judge


def squares(n, seed=0):
    """Noise with a bright square of one of two shades in one of three columns."""
    generator = torch.Generator().manual_seed(seed)
    column, shade = (torch.randint(k, (n,), generator=generator) for k in (3, 2))
    x = torch.randn(n, 1, 16, 16, generator=generator)
    for image, c, s in zip(x, column.tolist(), shade.tolist(), strict=True):
        image[:, 6:10, 5 * c : 5 * c + 4] += 4 + 4 * s
    return x, {"column": column, "shade": shade}


def test_each_head_reads_its_attribute():
    x, truth = squares(300)
    judge = attribute_judge(x, truth, steps=60)
    fresh, answers = squares(200, seed=1)
    found = judge.accuracy(fresh, answers)
    assert list(found) == ["column", "shade", "all"]
    assert min(found["column"].value, found["shade"].value) > 0.9
    right = judge.right(fresh, answers)
    assert found["all"] == (int((right["column"] & right["shade"]).sum()), 200)
    wrong = judge.accuracy(fresh, {"column": answers["column"].roll(1)})
    assert wrong["column"].value < 0.55  # 1/3, and 6 standard errors


def test_the_seed_decides_everything():
    x, truth = squares(50)
    one, same, other = (attribute_judge(x, truth, seed, steps=3) for seed in (4, 4, 5))
    noise = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.predict(noise), same.predict(noise))
    assert not torch.equal(one.predict(noise), other.predict(noise))


def test_the_halves_are_read_one_by_one():
    x, truth = squares(400)
    both = torch.cat([x[:200], x[200:]], -1)
    left, right = truth["column"][:200], truth["column"][200:]
    judge = halves_judge(both, left, right, steps=40)
    found = judge.accuracy(both, {"left": left, "right": right})
    assert found["all"].value > 0.9
    swapped = judge.read(torch.cat(both.chunk(2, -1)[::-1], -1))
    assert torch.equal(swapped["left"], judge.read(both)["right"])


def test_an_accuracy_has_an_error():
    assert Accuracy(75, 100).value == 0.75
    assert Accuracy(7500, 10_000).error == pytest.approx(math.sqrt(0.75 * 0.25 / 10_000), rel=1e-3)
    assert 0 < Accuracy(100, 100).error < 0.01


def test_what_does_not_fit_is_refused():
    x, truth = squares(20)
    judge = attribute_judge(x, truth, steps=1)
    with pytest.raises(ValueError, match="attributes size; give some of column, shade"):
        judge.right(x, {"size": truth["shade"]})
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\) and \(N, 2\)"):
        fit_classifier(x, truth["column"], (3, 2))
    with pytest.raises(ValueError, match=r"labels run over 0\.\.2, expected 0\.\.1"):
        fit_classifier(x, torch.stack(list(truth.values()), 1), (2, 2))
    with pytest.raises(ValueError, match="even width"):
        halves_judge(x[..., 1:], truth["column"], truth["column"])


@pytest.mark.slow
def test_the_judge_of_the_avatars():
    data = avatars()
    train, test = (
        {name: split.columns[name] for name in data.words} for split in (data.train, data.test)
    )
    found = attribute_judge(data.train.x, train).accuracy(data.test.x, test)
    assert sum(found[name].value for name in data.words) / len(data.words) >= 0.97
    assert min(found[name].value for name in data.words) > 0.87
    assert found["mood"].value > 0.97  # two or three pixels
