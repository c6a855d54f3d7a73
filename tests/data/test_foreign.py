"""Examples judged as those of a known data set."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, Scaling, digits, examples

SEVENTEEN = Scaling(17)


def write_pictures(folder, images):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:06d}.png")


def test_shown_levels_come_back(tmp_path):
    data = digits()
    k = data.test.x[:5]
    write_pictures(tmp_path / "a", data.scaling.to_uint8(data.scaling.encode(k)))
    found = examples(tmp_path / "a", data.shape, data.scaling)
    assert torch.equal(found.x, k)
    assert found.label is None


def test_a_record_of_samples_names_its_pictures_and_labels(tmp_path):
    pictures = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    write_pictures(tmp_path / "a", pictures)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a" / "grid.png")
    record = {"files": ["000000.png", "000001.png", "grid.png"], "labels": [3, 4]}
    (tmp_path / "a" / "sample.json").write_text(json.dumps(record))
    found = examples(tmp_path / "a", (1, 8, 8), SEVENTEEN)
    assert len(found) == 2
    assert found.label.tolist() == [3, 4]


def test_arrays_of_256_levels_and_of_numbers(tmp_path):
    k = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "k.npz", arr_0=k, arr_1=np.arange(4))
    found = examples(tmp_path / "k.npz", (3, 8, 8), Scaling(256))
    assert torch.equal(found.x, torch.from_numpy(np.moveaxis(k, -1, 1)))
    assert found.label.tolist() == [0, 1, 2, 3]
    np.save(tmp_path / "x.npy", np.ones((5, 2)))
    assert examples(tmp_path / "x.npy", (2,), Scaling(None)).x.dtype == torch.float32


def test_samples_in_the_plane_are_found_in_their_folder(tmp_path):
    np.savez(tmp_path / "samples.npz", np.zeros((3, 2), np.float32))
    assert examples(tmp_path, (2,), Scaling(None)).x.shape == (3, 2)


@pytest.mark.parametrize(
    ("name", "array", "shape", "scaling", "words"),
    [
        (
            "a.npy",
            np.zeros((2, 3)),
            (2,),
            Scaling(None),
            r"shape \(2, 3\), but the data needs \(N, 2\)",
        ),
        ("a.npy", np.full((2, 2), np.nan), (2,), Scaling(None), "NaN"),
        ("a.npy", np.zeros((2, 1, 8, 8)), (1, 8, 8), Scaling(256), "values are torch.float64"),
        (
            "a.npy",
            np.full((2, 8, 8), 7, np.uint8),
            (1, 8, 8),
            SEVENTEEN,
            "holds the shade 7, none of the 17",
        ),
        ("a.npy", np.full((2, 8, 8), 300), (1, 8, 8), Scaling(256), "300..300, expected 0..255"),
        # As int32 it would be level 5.
        ("a.npy", np.full((2, 8, 8), 2**32 + 5), (1, 8, 8), SEVENTEEN, "4294967301"),
        ("a.dat", np.zeros(3), (2,), Scaling(None), r"is a numpy array \(\.npy\); give"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, array, shape, scaling, words):
    with (tmp_path / name).open("wb") as file:
        np.save(file, array)
    with pytest.raises(DataError, match=words):
        examples(tmp_path / name, shape, scaling)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        examples(tmp_path / "missing", (1, 8, 8), SEVENTEEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        examples(tmp_path / "empty", (1, 8, 8), SEVENTEEN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unfinished": "two"},
        {"unfinished": [1]},
        {"unfinished": -3},
        {"labels": ["cat", "dog", "bird"]},
        {"labels": [0, 0.5, 1]},
        {"labels": [0, 1, 2**70]},
    ],
    ids=str,
)
def test_a_record_that_was_tampered_with_is_named(tmp_path, wrong):
    write_pictures(tmp_path / "a", torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    record = {"files": [f"{k:06d}.png" for k in range(3)]} | wrong
    (tmp_path / "a" / "sample.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"a: sample\.json: {next(iter(wrong))} .*; draw"):
        examples(tmp_path / "a", (1, 8, 8), SEVENTEEN)
