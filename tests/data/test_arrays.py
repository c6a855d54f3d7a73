"""`.npz` and `.npy`: names, layouts, types, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from scoresde.data import DataError, arrays
from scoresde.data.convert import channels_first

RNG = np.random.default_rng(0)
CHW = RNG.integers(0, 256, (20, 3, 6, 5), np.uint8)
LABEL = np.arange(20) % 3


def save(path, **content):
    np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("x", "y", "x_test", "y_test"),
    [
        ("x", "y", "x_test", "y_test"),
        ("images", "labels", "test_images", "test_labels"),
        ("x", "label", "x_test", "y_test"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("arr_0", "arr_1", "x_test", "y_test"),
    ],
)
def test_names(tmp_path, x, y, x_test, y_test):
    content = {x: CHW[:15], y: LABEL[:15, None], x_test: CHW[15:], y_test: LABEL[15:]}
    data = arrays(save(tmp_path / "set.npz", **content))
    assert data.name == "set"
    assert data.classes == ("0", "1", "2")
    assert data.scaling.levels == 256
    assert np.array_equal(data.train.x, CHW[:15])
    assert np.array_equal(data.test.x, CHW[15:])
    assert np.array_equal(data.train.label, LABEL[:15])
    assert np.array_equal(data.test.label, LABEL[15:])


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("explicit", [False, True])
def test_layouts_hold_the_same_images(layout, explicit):
    images = CHW[:, :1] if layout == "NHW" else CHW
    stored = {"NHW": images[:, 0], "NHWC": np.moveaxis(images, 1, -1), "NCHW": images}[layout]
    assert np.array_equal(channels_first(stored, layout if explicit else None), images)


def test_ambiguous_layouts_are_asked_about():
    for shape in ((5, 3, 7, 3), (5, 4, 7, 8), (5, 1, 7, 3)):
        with pytest.raises(DataError, match="may be NHWC or NCHW; give layout"):
            channels_first(np.zeros(shape), None)
    assert channels_first(np.zeros((5, 3, 7, 3)), "NHWC").shape == (5, 3, 3, 7)
    with pytest.raises(DataError, match="expected NHW, found shape"):
        channels_first(np.zeros((5, 3, 7, 3)), "NHW")


def test_held_out_part_is_disjoint_and_fixed(tmp_path):
    path = save(tmp_path / "a.npz", x=CHW, y=LABEL)
    data, again = arrays(path, holdout=6), arrays(path, holdout=6)
    assert len(data.train) == 14
    assert torch.equal(data.test.x, again.test.x)
    rows = [{image.numpy().tobytes() for image in s.x} for s in (data.train, data.test)]
    assert not rows[0] & rows[1]
    assert len(rows[0] | rows[1]) == 20


def test_rows_of_cifar(tmp_path):
    rows = RNG.integers(0, 256, (5, 3072), np.uint8)
    data = arrays(save(tmp_path / "c.npz", x=rows, x_test=rows))
    assert data.shape == (3, 32, 32)
    # Red first, row by row.
    assert data.train.x[2, 1, 4, 7] == rows[2, 1024 + 4 * 32 + 7]


def test_types(tmp_path):
    np.save(tmp_path / "real.npy", RNG.normal(size=(30, 4)))
    real = arrays(tmp_path / "real.npy")
    assert real.scaling.levels is None
    assert real.train.x.dtype == torch.float32
    assert real.shape == (4,)
    assert real.classes is None

    binary = arrays(save(tmp_path / "b.npz", x=RNG.random((30, 4, 4)) > 0.5))
    assert binary.scaling.levels == 2
    assert binary.train.x.dtype == torch.uint8

    few = RNG.integers(0, 17, (30, 4, 4))
    small = arrays(save(tmp_path / "s.npz", x=few, x_test=few), levels=17)
    assert small.train.x.dtype == torch.uint8
    assert np.array_equal(small.train.x[:, 0], few)

    deep = RNG.integers(0, 2**16, (30, 4, 4)).astype(np.uint16)
    large = arrays(save(tmp_path / "d.npz", x=deep, x_test=deep), levels=2**16)
    assert large.train.x.dtype == torch.int32
    assert np.array_equal(large.train.x[:, 0], deep)
    decoded = large.scaling.decode(large.scaling.encode(large.train.x))
    assert torch.equal(decoded, large.train.x)


WIDE = np.full((9, 2, 2), 300)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"z": CHW}, {}, "holds the keys z; call the examples 'x'"),
        ({"x": CHW, "y": LABEL[:7]}, {}, r"array 'x': 20 examples but labels of shape \(7,\)"),
        ({"x": CHW, "y": LABEL, "x_test": CHW}, {}, "no labels for x_test; call them 'y_test'"),
        ({"x": CHW, "x_test": CHW[:0]}, {}, r"array 'x_test': shape \(0, 3, 6, 5\); expected"),
        ({"x": CHW, "y": LABEL * 0.5}, {}, "array 'y': labels are float64 such as 0.5, not whole"),
        ({"x": CHW, "y": np.eye(20) * 2}, {}, r"array 'y': labels have shape \(20, 20\)"),
        ({"x": CHW, "y": np.full(20, {})}, {}, "pickled .*allow_pickle"),
        ({"x": CHW[:0]}, {}, r"shape \(0, 3, 6, 5\); expected"),
        ({"x": CHW[0, 0, 0]}, {}, r"shape \(5,\); expected"),
        ({"x": CHW[None]}, {}, "expected examples as"),
        ({"x": CHW.reshape(20, -1)}, {}, "give images as NHW, vectors as floats"),
        ({"x": WIDE}, {}, "values are int64, whose number of levels is unknown; give levels"),
        ({"x": WIDE}, {"levels": 256}, r"levels run over 300\.\.300, expected 0\.\.255"),
        ({"x": WIDE - 301}, {"levels": 256}, r"levels run over -1\.\.-1"),
        ({"x": WIDE + 2**32}, {"levels": 512}, r"levels run over 4294967596"),
        ({"x": np.full((9, 2), np.nan)}, {}, "18 values are NaN"),
        ({"x": np.full((9, 2), 1e300)}, {}, "too large"),
        ({"x": np.full((9, 2), 1.0)}, {"levels": 17}, "levels need integers"),
        ({"x": np.full((9, 2), 1j)}, {}, "values are complex128"),
        ({"x": np.full((9, 2), "a")}, {}, "values are <U1"),
        ({"x": np.full((9, 2), "a")}, {"levels": 17}, "values are <U1; expected numbers"),
        ({"x": np.full((9, 2), {})}, {}, "pickled .*allow_pickle"),
        ({"x": CHW}, {"holdout": 20}, "cannot hold out 20 of 20"),
        ({"x": CHW, "x_test": CHW[..., :4]}, {"layout": "NCHW"}, "make them alike"),
    ],
)
def test_what_is_refused(tmp_path, content, options, message):
    path = save(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=message) as error:
        arrays(path, **options)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_damaged_files_are_refused_and_nothing_is_unpickled(tmp_path):
    whole = save(tmp_path / "w.npz", x=CHW).read_bytes()
    np.save(tmp_path / "w.npy", CHW)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    files = {
        "cut.npz": whole[: len(whole) // 2],
        "flipped.npz": bytes(flipped),
        "cut.npy": (tmp_path / "w.npy").read_bytes()[:-9],
        "empty.npz": b"",
        "page.npz": b"<html>404</html>",
        "pickle.npz": pickle.dumps(Trap()),
        "pickle.npy": pickle.dumps(Trap()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: damaged or pickled"):
            arrays(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.npz: no such file"):
        arrays(tmp_path / "nothing.npz")


def test_a_folder_of_shards_is_their_rows_in_order(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    y = np.arange(12) % 3
    for k, rows in enumerate((slice(0, 5), slice(5, 6), slice(6, 12))):
        np.savez(tmp_path / f"part-{k}.npz", x=x[rows], y=y[rows])
    np.savez(tmp_path.parent / "whole.npz", x=x, y=y)
    ours, theirs = arrays(tmp_path, holdout=3), arrays(tmp_path.parent / "whole.npz", holdout=3)
    assert torch.equal(ours.train.x, theirs.train.x)
    assert torch.equal(ours.test.label, theirs.test.label)


def test_labels_of_shards_belong_to_their_examples(tmp_path):
    """Counts that match only in total would shift labels to other examples."""
    for k, (examples, labels) in enumerate(((10, 9), (9, 10))):
        x = np.zeros((examples, 2), np.float32)
        np.savez(tmp_path / f"{k}.npz", x=x, y=np.zeros(labels, int))
    with pytest.raises(DataError, match=r"0\.npz: array 'x': 10 examples but labels of shape \(9"):
        arrays(tmp_path)


@pytest.mark.parametrize("content", [{"x": np.float32(3)}, {"x": CHW, "y": np.int64(3)}])
def test_shards_of_single_numbers_are_refused(tmp_path, content):
    for k in range(2):
        np.savez(tmp_path / f"{k}.npz", **content)
    with pytest.raises(DataError, match=r"0\.npz: array '[xy]'"):
        arrays(tmp_path)


def test_hidden_files_are_no_shards(tmp_path):
    np.savez(tmp_path / "a.npz", x=CHW)
    (tmp_path / "._a.npz").write_bytes(b"of another system")
    assert len(arrays(tmp_path).train) == 18


def test_levels_that_no_tensor_holds_are_refused(tmp_path):
    """As int32 they would come out as other levels."""
    with pytest.raises(ValueError, match="levels is 1099511627776; give at most 2147483648"):
        arrays(save(tmp_path / "w.npz", x=np.full((9, 2, 2), 2**32 + 5)), levels=2**40)


def test_shards_that_differ_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no \.npz or \.npy files"):
        arrays(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2), np.uint8))
    np.savez(tmp_path / "b.npz", x=np.zeros((4, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.npz: holds .* but a\.npz holds"):
        arrays(tmp_path)


# --- what the arrays are, in words ---------------------------------------------------------------

FAR = (5000 + 1000 * RNG.normal(size=(200, 2))).astype(np.float32)


def test_real_numbers_are_standardised_unless_told_otherwise(tmp_path):
    path = save(tmp_path / "far.npz", x=FAR)
    data = arrays(path)
    x = data.scaling.encode(data.train.x)
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-5
    assert data.train.x.mean() > 4000  # kept in their own units
    assert "real numbers of mean" in data.notes[0]
    assert data.notes[0].endswith(", standardised")
    plain = arrays(path, standardise=False)
    assert torch.equal(plain.scaling.encode(plain.train.x), plain.train.x)
    assert plain.notes[0].endswith(", left as they are")


def test_the_scale_is_that_of_the_training_split_and_not_of_the_test_split(tmp_path):
    found = arrays(save(tmp_path / "a.npz", x=FAR, x_test=1e6 * FAR))
    assert found.scaling == arrays(save(tmp_path / "b.npz", x=FAR, x_test=FAR)).scaling


def test_numbers_finer_than_float32_resolves_are_said(tmp_path):
    time = 1.7e9 + np.arange(50.0)
    notes = arrays(save(tmp_path / "t.npz", x=np.stack([np.sin(time), time], 1))).notes
    assert any(note.startswith("feature 1 has a deviation near the resolution") for note in notes)


def test_labels_with_gaps_are_classes_by_name_in_files_too(tmp_path):
    label = np.array([0, 5, 1000, 5] * 5)
    data = arrays(save(tmp_path / "a.npz", x=CHW, y=label))
    assert data.classes == ("0", "5", "1000")
    assert sum(data.counts.values()) == len(data.train)
    assert any("the labels are 0, 5, 1000" in note for note in data.notes)
    (tmp_path / "s").mkdir()
    for k, rows in enumerate((slice(0, 3), slice(3, 20))):  # a shard without class 5
        names = np.array(["a", "longer", "b"])[label.clip(max=6) % 4 % 3]
        save(tmp_path / "s" / f"{k}.npz", x=CHW[rows], y=names[rows])
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = arrays(tmp_path / "s", holdout=2, cache=cache)
        x = torch.cat([found.train.x, found.test.x])
        codes = torch.cat([found.train.label, found.test.label])
        for image, code in zip(x, codes, strict=True):
            (row,) = [k for k in range(20) if np.array_equal(CHW[k], image)]
            assert found.classes[code] == names[row]


def test_validation_examples_are_held_out_or_said_to_be_left(tmp_path):
    parts = {"train_images": CHW[:9], "val_images": CHW[9:12], "test_images": CHW[12:]}
    data = arrays(save(tmp_path / "all.npz", **parts))
    assert len(data.test) == 8
    assert data.notes == ("arrays that are not read: val_images",)
    del parts["test_images"]
    data = arrays(save(tmp_path / "two.npz", **parts))
    assert len(data.test) == 3
    assert data.notes == ("no test part: val_images is held out for testing",)


def test_a_folder_of_named_arrays_is_one_set(tmp_path):
    (tmp_path / "s").mkdir()
    for name, array in {"X": CHW, "y": LABEL + 1, "extra": CHW}.items():
        np.save(tmp_path / "s" / f"{name}.npy", array)
    data = arrays(tmp_path / "s")
    assert data.classes == ("1", "2", "3")
    assert len(data.train) + len(data.test) == 20
    assert "arrays that are not read: extra" in data.notes
    for name in "Xy":
        (tmp_path / "s" / f"{name}.npy").unlink()
    with pytest.raises(DataError, match="holds the keys extra; call the examples 'x'"):
        arrays(tmp_path / "s")
