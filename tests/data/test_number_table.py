"""Tables of numbers as text, and files that are something else."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, arrays
from scoresde.data.file_kinds import kind_of
from scoresde.data.table import read_table

NUMBERS = np.random.default_rng(0).normal(size=(12, 3)).round(6)


def text(separator=",", head="", labels=None):
    rows = [
        separator.join([*map(repr, map(float, row)), *([str(labels[k])] if labels else [])])
        for k, row in enumerate(NUMBERS)
    ]
    return "\n".join([head] * bool(head) + rows) + "\n"


@pytest.mark.parametrize("separator", [",", ", ", ";", "\t", " ", "   "])
@pytest.mark.parametrize("head", ["", "a{0}b{0}c"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_numbers_come_back(tmp_path, separator, head, ends):
    content = text(separator, head.format(separator)).replace("\n", ends)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    table = read_table(tmp_path / "t.csv")
    assert np.array_equal(table.x, NUMBERS)
    assert table.y is None


def test_what_numpy_saves_is_read(tmp_path):
    np.savetxt(tmp_path / "t.txt", NUMBERS, header="a b c")
    assert np.allclose(read_table(tmp_path / "t.txt").x, NUMBERS, rtol=1e-15)


@pytest.mark.parametrize("name", ["label", "class", "y", "Target"])
@pytest.mark.parametrize("labels", [["cat", "dog"] * 6, [1, 3] * 6])
def test_a_column_of_labels(tmp_path, name, labels):
    (tmp_path / "t.csv").write_text(text(head=f"a,b,c,{name}", labels=labels))
    data = arrays(tmp_path / "t.csv", holdout=4)
    assert data.shape == (3,)
    assert data.classes == tuple(map(str, sorted(set(labels))))
    assert sorted(data.counts.values(), reverse=True) == sorted(data.counts.values())[::-1]
    assert f"labels from column {name!r}" in data.notes
    x = torch.cat([data.train.x, data.test.x]).double()
    for row, label in zip(x, torch.cat([data.train.label, data.test.label]), strict=True):
        k = int((torch.from_numpy(NUMBERS) - row).abs().sum(1).argmin())
        assert data.classes[label] == str(labels[k])


def test_an_index_as_pandas_writes_it_is_left_out_and_said(tmp_path):
    lines = text(head="a,b,c").splitlines()
    lines = [f"{'' if k == 0 else k - 1},{line}" for k, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = read_table(tmp_path / "t.csv")
    assert np.array_equal(table.x, NUMBERS)
    assert table.notes == ("column 1 has no name: an index, left out",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no rows"),
        ("a,b\n", "names of columns but no rows"),
        ("1,2\n3\n", "line 2 has 1 columns, line 1 has 2"),
        ("1,2\n3,x\n", "line 2, column '2': 'x' is no number"),
        ("a,b\n1,2\n3,\n", "line 3, column 'b': empty; give a number"),
        ("a,label\n1,cat\n3,\n", "line 3, column 'label': no label"),
        ("label\n1\n2\n", "no column of numbers"),
        ("1,nan\n2,3\n4,5\n", "1 values are NaN"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=words) as error:
        arrays(tmp_path / "t.csv")
    assert str(error.value).startswith(f"{tmp_path / 't.csv'}: ")


def test_a_table_of_another_encoding_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes("é,1".encode("latin-1"))
    with pytest.raises(DataError, match="not readable as UTF-8 text"):
        arrays(tmp_path / "t.csv")


def test_files_are_called_what_they_are(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", x=NUMBERS)
    contents = {
        "a.yaml": b"data: moons\n",
        "a.json": json.dumps({"a": 1}).encode(),
        "a.html": b"<html>404</html>",
        "a.pkl": pickle.dumps([1]),
        "a.weights": (70).to_bytes(8, "little") + b'{"x":1}',
        "a.h5": b"\x89HDF\r\n",
        "a.bin": bytes(range(200, 256)) * 40,
        "a.doc": b"hello",
        "a.none": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    kinds = {
        "a.png": "a picture",
        "a.pt": "a PyTorch file (.pt)",
        "a.npz": "numpy arrays (.npz)",
        "a.yaml": "a YAML file",
        "a.json": "a JSON file",
        "a.html": "a web page",
        "a.pkl": "a Python pickle, which is never opened",
        "a.weights": "a safetensors file",
        "a.h5": "an HDF5 file",
        "a.bin": "a binary file of no known kind",
        "a.doc": "a text file",
        "a.none": "an empty file",
        ".": "a folder",
    }
    assert {name: kind_of(tmp_path / name) for name in kinds} == kinds
    with pytest.raises(DataError, match=r"a\.yaml: is a YAML file; give arrays as \.npz"):
        arrays(tmp_path / "a.yaml")
