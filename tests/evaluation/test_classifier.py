"""The judge: accurate on unseen digits, repeatable, and out of the way of other randomness."""

from __future__ import annotations

import pytest
import torch

from scoresde.data import digits
from scoresde.evaluation import fit_classifier


def blobs(n, classes=3, channels=2, shape=(13, 10), seed=0):
    """Images of noise with one bright square whose column is the class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(n, channels, *shape, generator=generator)
    for image, y in zip(x, label.tolist(), strict=True):
        image[:, 4:8, 3 * y : 3 * y + 3] += 4
    return x, label


def test_it_reads_unseen_digits():
    pytest.importorskip("sklearn")
    data = digits()
    judge = fit_classifier(data.train.x, data.train.label, 10, seed=0)
    assert judge.accuracy(data.test.x, data.test.label) >= 0.98
    # Shuffled labels show that the accuracy is earned.
    assert judge.accuracy(data.test.x, data.test.label.roll(1)) < 0.2


def test_any_shape_and_any_units():
    x, label = blobs(200)
    judge = fit_classifier(50 * x + 20, label, 3, steps=40, batch=32)
    fresh, truth = blobs(100, seed=1)
    assert judge.accuracy(50 * fresh + 20, truth) > 0.9
    assert judge.predict(fresh).shape == (100,)


def test_the_seed_decides_everything_and_global_randomness_is_left_alone():
    x, label = blobs(60, shape=(8, 9))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fit_classifier(x, label, 3, seed=5, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = fit_classifier(x, label, 3, seed=5, steps=3)
    other = fit_classifier(x, label, 3, seed=6, steps=3)
    logits = [judge.net(x).sum().item() for judge in (one, two, other)]
    assert logits[0] == logits[1] != logits[2]


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (torch.zeros(4, 8, 8), torch.zeros(4).long(), "expected"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3).long(), "expected"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "expected"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), 3), r"labels run over 3\.\.3"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), -1), r"labels run over -1"),
    ],
)
def test_impossible_input_is_refused(x, label, message):
    with pytest.raises(ValueError, match=message):
        fit_classifier(x, label, 3)
