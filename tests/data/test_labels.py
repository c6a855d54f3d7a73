"""Labels of any kind become classes that are named by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde.data import DataError
from scoresde.data.labels import in_order, label_values, listing, numbered, placed

VALUES = np.array([3, 1, 2, 1, 3, 3])


@pytest.mark.parametrize(
    "given",
    [
        VALUES,
        VALUES[:, None],
        VALUES.tolist(),
        torch.from_numpy(VALUES),
        torch.from_numpy(VALUES).float()[:, None],
        *(VALUES.astype(kind) for kind in ("u1", "i2", ">i4", "u8", "f2", "f8", "U1", "S1")),
        VALUES.astype("U1").astype(object),
    ],
)
def test_the_same_labels_in_any_form_are_the_same_classes(given):
    (codes,), classes, _ = numbered(label_values(given))
    assert classes == ("1", "2", "3")
    assert codes.dtype == torch.int64
    assert codes.tolist() == [2, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_one_hot_rows_are_their_places(kind):
    rows = np.eye(4)[[2, 0, 3]].astype(kind)
    assert label_values(rows).tolist() == [2, 0, 3]


def test_only_values_that_occur_are_classes_and_a_note_says_so():
    (first, second), classes, notes = numbered(np.array([1000, 0]), np.array([5, -1]))
    assert classes == ("-1", "0", "5", "1000")
    assert (first.tolist(), second.tolist()) == ([3, 1], [2, 0])
    assert notes[0].startswith("the labels are -1, 0, 5, 1000: a class is named by its label")
    assert numbered(np.array([1, 0, 2])).notes == ()
    assert numbered(np.array([True, False]).astype(int)).classes == ("0", "1")
    assert numbered(np.array(["dog", "cat"])).notes == ()


def test_names_of_numbers_are_in_the_order_of_the_numbers():
    assert in_order(["10", "9", "-2", "9"]) == ("-2", "9", "10")
    assert in_order(["10", "9", "b", "a"]) == ("10", "9", "a", "b")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.array([0.0, 1.5]), "float64 such as 1.5, not whole numbers"),
        (np.array([0.0, np.nan]), "such as nan"),
        (np.array([1e300]), "not whole numbers"),
        (np.ones((3, 2)), r"labels have shape \(3, 2\)"),
        (np.int64(3), r"labels have shape \(\)"),
        ([[1], [1, 2]], "labels are lists of different lengths"),
        (np.array([1j]), "labels are complex128"),
        (np.array(["2020"], "M8[Y]"), "labels are datetime64"),
        (np.array([{}, 1], object), "labels are object"),
        (np.array([2**63], np.uint64), "labels run up to 9223372036854775808"),
        (np.array([b"\xff"]), "not UTF-8"),
    ],
)
def test_what_is_no_label_is_said(given, words):
    with pytest.raises(DataError, match=words):
        label_values(given)


def test_numbers_and_names_are_not_mixed_nor_examples_taken_for_classes():
    with pytest.raises(DataError, match="some labels are numbers and some are names"):
        numbered(np.array([1]), np.array(["a"]))
    with pytest.raises(DataError, match="100001 different values"):
        numbered(np.arange(100_001))


def test_a_number_is_a_place_only_where_no_class_is_called_by_a_number():
    assert placed(["dog", "cat"], ("cat", "dog")).tolist() == [1, 0]
    assert placed([1, 0], ("cat", "dog")).tolist() == [1, 0]
    assert placed([1, 12], tuple(map(str, range(1, 13)))).tolist() == [0, 11]
    for wrong, classes in (([0], ("1", "2")), ([2], ("cat", "dog")), (["cow"], ("cat", "dog"))):
        with pytest.raises(DataError, match=f"label {wrong[0]} is none of the classes"):
            placed(wrong, classes)
    with pytest.raises(DataError, match="label 0 is none of the classes 1, cat"):
        placed([0], ("1", "cat"))


def test_a_long_listing_is_cut():
    assert listing(map(str, range(100))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, ..., 99"
