"""The digest of a split: the same for the same examples, another for any others."""

import numpy as np
import pytest
import torch

from scoresde.data import Split, digest

X = torch.arange(60, dtype=torch.float32).reshape(10, 2, 3)
Y = torch.arange(10)


def test_the_same_examples_have_the_same_digest(monkeypatch):
    whole = digest.digest(Split(X, Y))
    assert digest.digest(Split(X.clone(), Y.clone())) == whole
    transposed = X.transpose(1, 2).contiguous().transpose(1, 2)
    assert digest.digest(Split(transposed, Y)) == whole
    monkeypatch.setattr(digest, "CHUNK", 50)
    assert digest.digest(Split(X, Y)) == whole


@pytest.mark.parametrize(
    "other",
    [
        Split(X.flip(0), Y),
        Split(X, Y.flip(0)),
        Split(X),
        Split(X[:-1], Y[:-1]),
        Split(X.reshape(10, 3, 2), Y),
        Split(X.view(torch.int32), Y),
    ],
)
def test_others_have_another(other):
    assert digest.digest(other) != digest.digest(Split(X, Y))


@pytest.mark.parametrize("place", [(0, 0, 0), (9, 1, 2), (4, 1, 0)])
def test_one_value_makes_another(place):
    x = X.clone()
    x[place] = -1
    assert digest.digest(Split(x, Y)) != digest.digest(Split(X, Y))


def test_a_large_set_is_told_by_a_sample_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "WHOLE", 100)
    monkeypatch.setattr(digest, "SAMPLED", 4)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(1000, 1, 4, 4))
    mapped[:] = 7
    x = torch.from_numpy(mapped)
    before = digest.digest(Split(x))
    for example, seen in ((0, True), (999, True), (333, True), (1, False)):
        mapped[example, 0, 0, 0] = 8
        assert (digest.digest(Split(x)) != before) == seen
        mapped[example, 0, 0, 0] = 7
    # Labels are few bytes: every one counts.
    y = torch.zeros(1000, dtype=torch.int64)
    monkeypatch.setattr(digest, "WHOLE", 8000)
    before = digest.digest(Split(x, y))
    y[1] = 1
    assert digest.digest(Split(x, y)) != before
