"""Conditions of arrays, tables and data in memory: vectors, maps and sentences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde.data import Captions, DataError, arrays, dataset_of

N = 12
K = np.arange(N)
X = np.repeat(K.astype(np.uint8), 4).reshape(N, 2, 2)
AGE, POSE = K / 2, np.stack([K, -K], 1).astype(np.float64)


def assert_aligned(data, number=lambda x: x.flatten(1)[:, 0].float()):
    assert len(data.train) + len(data.test) >= N
    for split in (data.train, data.test):
        k = number(split.x)
        assert torch.equal(split.columns["vector"], torch.stack([k, -k, k / 2], 1))


def test_arrays_of_an_npz(tmp_path):
    np.savez(tmp_path / "set.npz", x=X, age=AGE, pose=POSE)
    data = arrays(tmp_path / "set.npz", vector=["pose", "age"])
    assert_aligned(data)
    assert not data.notes  # every array is read
    for _ in range(2):
        kept = arrays(tmp_path / "set.npz", vector=["pose", "age"], cache=tmp_path / "cache")
        assert_aligned(kept)
    assert "arrays that are not read: age, pose" in arrays(tmp_path / "set.npz").notes


def test_arrays_of_a_test_part(tmp_path):
    parts = {"x": X[:8], "age": AGE[:8], "pose": POSE[:8]}
    parts |= {"x_test": X[8:], "age_test": AGE[8:], "pose_test": POSE[8:]}
    np.savez(tmp_path / "set.npz", **parts)
    assert_aligned(arrays(tmp_path / "set.npz", vector=["pose", "age"]))
    del parts["age_test"]
    np.savez(tmp_path / "set.npz", **parts)
    with pytest.raises(DataError, match="no array 'age_test', but age, pose"):
        arrays(tmp_path / "set.npz", vector=["pose", "age"])


def test_shards_and_a_folder_of_npy(tmp_path):
    for k in range(3):
        part = slice(4 * k, 4 * k + 4)
        np.savez(tmp_path / f"{k}.npz", x=X[part], age=AGE[part], pose=POSE[part])
    assert_aligned(arrays(tmp_path, vector=["pose", "age"]))
    folder = tmp_path / "npy"
    folder.mkdir()
    for name, array in {"x": X, "age": AGE, "pose": POSE}.items():
        np.save(folder / f"{name}.npy", array)
    assert_aligned(arrays(folder, vector=["pose", "age"]))


def test_columns_of_a_table(tmp_path):
    rows = [f"{k},{k / 2},{k % 3},{-k},{10 * k}" for k in K]
    (tmp_path / "t.csv").write_text("\n".join(["a,age,label,minus,b", *rows]))
    data = arrays(tmp_path / "t.csv", vector=["minus", "age"], standardise=False)
    assert data.shape == (2,)
    for split in (data.train, data.test):
        k = split.x[:, 0]
        assert torch.equal(split.x[:, 1], 10 * k)
        assert torch.equal(split.columns["vector"], torch.stack([-k, k / 2], 1))
        assert torch.equal(split.label, k.long() % 3)
    with pytest.raises(DataError, match="no column 'weight', but a, age, label, minus, b"):
        arrays(tmp_path / "t.csv", vector=["weight"])
    (tmp_path / "t.csv").write_text("a,age\n1,2\n3,nan\n5,6")
    with pytest.raises(DataError, match="array 'age': row 1 is not finite"):
        arrays(tmp_path / "t.csv", vector=["age"])


@pytest.mark.parametrize(
    ("age", "message"),
    [
        (np.where(K == 7, np.inf, AGE), "array 'age': row 7 is not finite"),
        (np.array(["old"] * N), "give numbers"),
        (AGE[:-1], "differ in length|but 11 rows"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, age, message):
    np.savez(tmp_path / "set.npz", x=X, age=age, pose=POSE)
    with pytest.raises(DataError, match=message):
        arrays(tmp_path / "set.npz", vector=["pose", "age"])


def test_conditions_in_memory():
    told = [f"number {k}" for k in K]
    several = [[text, f"{k}"][: 1 + k % 2] for k, text in enumerate(told)]
    vector = torch.from_numpy(np.concatenate([POSE, AGE[:, None]], 1))
    given = {"text": told, "more": several, "vector": vector, "map": X[:, None], "kind": list(K)}
    data = dataset_of(X, K % 3, conditions=given, holdout=0.25)
    assert_aligned(data)
    assert list(data.conditions) == ["label", *given]
    for split in (data.train, data.test):
        k = split.x[:, 0, 0, 0].tolist()
        assert list(split.columns["text"]) == [told[i] for i in k]
        assert split.columns["more"].pick() == [told[i] for i in k]
        assert torch.equal(split.columns["map"], split.x)
        assert split.columns["kind"].tolist() == k
    assert list(dataset_of(X, conditions={"t": np.array(told)}, holdout=0).conditions["t"]) == told
    same = Captions.of(told)
    assert list(dataset_of(X, conditions={"t": same}, holdout=0).conditions["t"]) == told


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 3, "12 examples but 3 rows of 'c'"),
        (["a"] * (N - 1) + [7], "conditions, 'c': row 11 is 7"),
        (np.full(N, np.nan), "'c': row 0 is not finite"),
        ([None] * N, "no array of numbers"),
        (np.zeros(N, complex), "give sentences or numbers"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        dataset_of(X, conditions={"c": values})


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_pictures_of_wide_levels_are_whole_numbers(dtype):
    values = np.arange(4 * len(X)).reshape(-1, 1, 2, 2) + 40_000
    data = dataset_of(X, conditions={"c": values.astype(dtype)}, holdout=0)
    assert data.conditions["c"].flatten().tolist() == values.flatten().tolist()
    assert int(data.conditions["c"].max()) == values.max()


def test_conditions_come_with_a_data_set_and_a_path(tmp_path):
    with pytest.raises(DataError, match="come with a Dataset"):
        dataset_of(dataset_of(X), conditions={"c": K})
    with pytest.raises(DataError, match="read from the path"):
        dataset_of(tmp_path, conditions={"c": K})
