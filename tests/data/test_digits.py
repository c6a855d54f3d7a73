"""The embedded digits: their split is fixed, disjoint and complete."""

from __future__ import annotations

import sys

import pytest
import torch

from scoresde.data import DataError, digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_shape_levels_and_counts():
    data = digits()
    assert (len(data.train), len(data.test), data.shape) == (1437, 360, (1, 8, 8))
    assert data.scaling.levels == 17
    assert data.train.x.dtype == torch.uint8
    assert int(data.train.x.min()) == 0
    assert int(data.train.x.max()) == 16
    assert data.classes == tuple("0123456789")
    assert all(len(split.label.unique()) == 10 for split in (data.train, data.test))


def test_the_parts_are_disjoint_and_are_the_whole():
    data, source = digits(), sklearn_datasets.load_digits()
    rows = [{bytes(image.flatten().tolist()) for image in s.x} for s in (data.train, data.test)]
    assert len(rows[0]) == 1437
    assert len(rows[1]) == 360
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == {bytes(row.astype("uint8")) for row in source.data}


def test_the_split_is_the_written_rule():
    from sklearn.model_selection import train_test_split

    source = sklearn_datasets.load_digits()
    train, test = train_test_split(range(1797), test_size=360, random_state=0)
    data = digits()
    for part, index in ((data.train, train), (data.test, test)):
        assert torch.equal(part.x[:, 0].double(), torch.from_numpy(source.images[index]))
        assert part.label.tolist() == source.target[index].tolist()


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'scoresde\[digits\]'"):
        digits()
