"""The door for data in memory: tensors, arrays, pairs, torch data sets, paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from scoresde.data import DataError, Scaling, Split, dataset_of, digits, examples

RNG = np.random.default_rng(0)
REAL = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 5 + 100
SHADES = RNG.integers(0, 256, (40, 6, 5), np.uint8)
LABEL = torch.arange(40) % 3 + 1


class Pairs(TorchDataset):
    """A data set as torchvision has them: pictures and places, with the names of the classes."""

    classes = ("ant", "bee", "cow")

    def __len__(self):
        return len(SHADES)

    def __getitem__(self, k):
        return Image.fromarray(SHADES[k]), int(LABEL[k]) - 1


def every(data):
    """All examples and labels of a data set, sorted so that splits do not matter."""
    x = torch.cat([data.train.x, data.test.x])
    rows = x.flatten(1).sort(0).values
    label = None if data.train.label is None else torch.cat([data.train.label, data.test.label])
    return rows, None if label is None else label.bincount().tolist()


def test_one_of_ours_is_left_alone():
    data = digits()
    assert dataset_of(data) is data
    with pytest.raises(DataError, match="label, classes and conditions come with a Dataset"):
        dataset_of(data, label=LABEL)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_real_numbers_of_any_width_and_shape_are_float32_and_keep_their_shape(kind):
    for shape in ((40, 3), (40, 5, 7), (40, 2, 3, 4, 5)):
        data = dataset_of(torch.randn(shape).to(kind).requires_grad_())
        assert data.train.x.dtype == torch.float32
        assert data.shape == shape[1:]
        assert data.scaling.levels is None
        assert len(data.scaling.scale) == shape[1]


def test_a_pair_is_its_two_arguments_in_any_form():
    expected = dataset_of(REAL, LABEL)
    for found in (
        dataset_of((REAL, LABEL)),
        dataset_of(REAL.numpy(), LABEL.tolist()),
        dataset_of((REAL.tolist(), LABEL.numpy()[:, None])),
        dataset_of(TensorDataset(REAL, LABEL)),
        dataset_of(TensorDataset(REAL), LABEL),
    ):
        assert torch.equal(found.train.x, expected.train.x)
        assert torch.equal(found.test.label, expected.test.label)
        assert found.classes == ("1", "2", "3")
        assert found.scaling == expected.scaling
    assert sum(expected.counts.values()) == len(expected.train)
    with pytest.raises(DataError, match=r"label is in the pair \(x, label\) too"):
        dataset_of((REAL, LABEL), LABEL)


def test_pictures_in_any_order_of_axes_are_channels_first():
    colour = RNG.integers(0, 256, (40, 6, 5, 3), np.uint8)
    first = dataset_of(np.moveaxis(colour, -1, 1))
    assert torch.equal(dataset_of(colour).train.x, first.train.x)
    assert dataset_of(SHADES).shape == (1, 6, 5)
    assert dataset_of(SHADES > 9).scaling == Scaling(2)
    assert dataset_of(torch.from_numpy(SHADES).long(), levels=256).scaling == Scaling(256)


def test_a_torch_data_set_is_read_item_by_item():
    data = dataset_of(Pairs(), name="insects")
    assert data.name == "insects"
    assert data.classes == ("ant", "bee", "cow")
    assert every(data)[1] == LABEL.bincount()[1:].tolist()
    assert torch.equal(every(data)[0], every(dataset_of(SHADES))[0])


def test_names_of_classes_are_given_or_are_the_labels():
    named = dataset_of(REAL, LABEL - 1, classes=("a", "b", "c"))
    assert named.classes == ("a", "b", "c")
    words = np.array(["b", "a", "c"])[np.arange(40) % 3]
    assert dataset_of(REAL, words).classes == ("a", "b", "c")
    with pytest.raises(DataError, match="label: label 3 is none of the classes a, b, c"):
        dataset_of(REAL, LABEL, classes=("a", "b", "c"))
    with pytest.raises(DataError, match="there are none; give label"):
        dataset_of(REAL, classes=("a",))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(REAL)


class Odd(TorchDataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        return self.items[k]


@pytest.mark.parametrize(
    ("source", "label", "words"),
    [
        (3, None, "int is no data; give a tensor"),
        ({"x": REAL}, None, "dict is no data"),
        (Stream(), None, "Stream has no order that a run could resume"),
        (DataLoader(TensorDataset(REAL)), None, "DataLoader has no order"),
        (Odd([]), None, "the Dataset is empty"),
        (Odd([{"image": 3}]), None, "items have the keys image; give x"),
        (Odd([(1, 2, 3)]), None, "items are tuples of 3"),
        (Odd([REAL[0], REAL[:2]]), None, r"x: example 1 is \(2, 3\), the first is \(3,\)"),
        ([[1.0], [1.0, 2.0]], None, "x: lists of different lengths"),
        (torch.zeros(9, dtype=torch.uint8), None, r"x: shape \(9,\); expected examples"),
        (torch.zeros(0, 3), None, r"x: shape \(0, 3\)"),
        (torch.full((9, 2), torch.nan), None, "x: 18 values are NaN"),
        (torch.zeros(1, 2), None, "x: cannot hold out 0.1 of 1"),
        (torch.full((9, 4, 4), 300), None, "x: values are int64, whose number of levels is unkn"),
        (torch.full((9, 4, 4), -3), None, "int64 from -3 to -3, which are no pixel levels"),
        (torch.zeros(9, 784, dtype=torch.uint8), None, r"784 = 28 x 28\); give images as NHW"),
        (REAL, LABEL[:7], r"label: 40 examples but labels of shape \(7,\)"),
        (REAL, REAL[:, 0], "label: labels are float32 such as"),
    ],
    ids=range(18),
)
def test_what_cannot_be_read_is_said_about_the_right_argument(source, label, words):
    with pytest.raises(DataError, match=words) as error:
        dataset_of(source, label)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"levels": 1}, "need levels >= 2, got levels=1"),
        ({"layout": "NCWH"}, "need layout one of NHW, NHWC, NCHW, got 'NCWH'"),
        ({"holdout": -1}, "need holdout >= 0"),
        ({"seed": "a"}, "need a whole number, got seed='a'"),
    ],
)
def test_other_arguments_are_named_too(named, words):
    with pytest.raises(ValueError, match=words):
        dataset_of(SHADES, **named)


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(DataError, match="the path is empty"):
        dataset_of("")


def test_a_row_of_numbers_is_examples_of_one_number(tmp_path):
    np.save(tmp_path / "x.npy", REAL[:, 0])
    for source in (REAL[:, 0], REAL[:, 0].tolist(), tmp_path / "x.npy"):
        data = dataset_of(source, holdout=5, standardise=False)
        assert data.shape == (1,)
        assert torch.cat([data.train.x, data.test.x]).sort(0)[0].equal(REAL[:, :1].sort(0)[0])


def test_a_feature_that_never_changes_is_said():
    notes = dataset_of(torch.cat([REAL, torch.ones(len(REAL), 2)], 1)).notes
    assert any("the same in all examples" in note for note in notes)
    assert not any("the same in all" in note for note in dataset_of(REAL).notes)


def test_levels_of_floats_are_refused():
    with pytest.raises(DataError, match="x: values are float32 but levels is 17"):
        dataset_of(REAL, levels=17)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (SHADES / 255, "256 shades over [0, 1]"),
        (SHADES / 127.5 - 1, "256 shades over [-1, 1]"),
        (SHADES.astype(float), "whole numbers of 0 to 255"),
    ],
)
def test_shades_saved_as_floats_are_recognised_and_said(x, words):
    notes = dataset_of(x[:, None]).notes
    assert any(words in note and "give them as uint8" in note for note in notes)
    noisy = dataset_of(x[:, None] + RNG.normal(size=(40, 1, 6, 5)))
    assert not any("shades" in note or "whole" in note for note in noisy.notes)


def test_a_path_is_read_by_what_lies_there(tmp_path):
    np.savez(tmp_path / "a.npz", x=REAL, y=LABEL)
    np.savetxt(tmp_path / "a.csv", REAL, delimiter=",")
    for k in range(4):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(SHADES[k]).save(tmp_path / "pictures" / f"{k}.png")
    assert dataset_of(tmp_path / "a.npz").classes == ("1", "2", "3")
    assert dataset_of(str(tmp_path / "a.csv")).shape == (3,)
    assert dataset_of(tmp_path / "pictures").shape == (1, 6, 5)
    with pytest.raises(DataError, match="levels and layout are of arrays"):
        dataset_of(tmp_path / "pictures", levels=3)
    with pytest.raises(DataError, match="read from the path"):
        dataset_of(tmp_path / "a.npz", LABEL)


def test_a_relative_path_says_what_it_is_relative_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"set.npz: no such .* current folder, {tmp_path};"):
        dataset_of("set.npz")


# --- examples of a data set that is known --------------------------------------------------------


def test_all_examples_in_memory_are_kept_in_their_order():
    data = dataset_of(REAL, LABEL)
    found = examples((REAL, LABEL), data.shape, data.scaling, classes=data.classes)
    assert torch.equal(found.x, REAL)  # in units of the data
    assert found.label.tolist() == (LABEL - 1).tolist()


def test_integers_in_memory_are_levels_and_a_split_is_itself():
    data = digits()
    for source in (data.test.x, data.test.x.int(), data.test):
        found = examples(source, data.shape, data.scaling, classes=data.classes)
        assert torch.equal(found.x, data.test.x)
        assert found.x.dtype == torch.uint8
    assert torch.equal(found.label, data.test.label)
    own = Split(REAL, LABEL - 1)
    assert torch.equal(examples(own, (3,), Scaling(), classes=("1", "2", "3")).label, LABEL - 1)
    with pytest.raises(DataError, match=r"levels run over 0\.\.17, expected 0\.\.16"):
        examples(torch.arange(18).repeat(64, 1).T.reshape(18, 1, 8, 8), (1, 8, 8), Scaling(17))


def test_pictures_of_another_size_are_fitted_where_that_is_asked_for(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: \(C, H, W\) is \(3, 20, 30\)"):
        examples(tmp_path, (1, 8, 8), Scaling(256))
    assert examples(tmp_path, (1, 8, 8), Scaling(256), size=8, channels=1).x.shape == (1, 1, 8, 8)


def test_constant_features_are_said_and_have_no_deviation():
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0]] * 10)
    notes = dataset_of(x, holdout=0).notes
    assert notes == (
        "real numbers of mean 2 to 7 and deviation 0 to 1, standardised",
        "feature 1 is the same in all examples: its density has no bound; leave it out",
    )
