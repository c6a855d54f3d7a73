"""Columns of conditions: rows stay beside their examples, whatever is done to them."""

from __future__ import annotations

import pytest
import torch

from scoresde.data import Captions, DataError, Dataset, Scaling, Split, holdout, views
from scoresde.data.digest import digest

N = 40
ROWS = [[f"picture {k}", f"die Nummer {k} ö"][: 1 + k % 2] for k in range(N)]


def numbered(rows=ROWS):
    """Examples whose level, label, vector, map and captions are all their number."""
    k = torch.arange(N)
    x = k.to(torch.uint8).reshape(N, 1, 1, 1).expand(N, 1, 2, 2)
    vector = torch.stack([k, -k], 1).float()
    return Split(x, k % 5, columns={"text": Captions.of(rows), "vector": vector, "map": x})


def assert_aligned(split):
    k = split.x[:, 0, 0, 0].long()
    assert torch.equal(split.label, k % 5)
    assert torch.equal(split.columns["vector"], torch.stack([k, -k], 1).float())
    assert torch.equal(split.columns["map"], split.x)
    assert split.columns["text"].pick() == [ROWS[i][0] for i in k.tolist()]


def test_rows_follow_their_examples():
    split = numbered()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert_aligned(split.take(order))
    for part in holdout(split.take(order), 0.3):
        assert_aligned(part)
    for view in views(split, 7, seed=3):
        assert_aligned(view.take(torch.arange(len(view)).flip(0)))
    assert_aligned(split.take(order[:3].repeat(4)))


def test_the_label_is_a_condition_like_the_others():
    split = numbered()
    data = Dataset("d", split, split, Scaling(N), tuple("abcde"))
    assert list(data.conditions) == ["label", "text", "vector", "map"]
    assert data.conditions["label"] is split.label


def test_captions_are_a_sequence():
    several = Captions.of(ROWS)
    assert list(several) == ROWS
    assert several[-1] == ROWS[-1]
    assert list(several[3:9:2]) == ROWS[3:9:2]
    assert list(several[::2]) == [row[0] for row in ROWS[::2]]  # a string each where one is all
    one = Captions.of(["a", "", "日本"])
    assert list(one) == ["a", "", "日本"]
    assert one.sentences == ["a", "", "日本"]
    assert list(Captions.of(["", ""])) == ["", ""]
    with pytest.raises(IndexError):
        one[3]
    for row in ([], 7, ["a", None]):
        with pytest.raises(ValueError, match="row 1 is"):
            Captions.of(["a", row])


def test_one_of_several_captions_at_random_and_the_first_without():
    rows = [["a", "b", "c"], ["d"]] * 600
    captions = Captions.of(rows)
    assert captions.pick() == ["a", "d"] * 600
    generator = torch.Generator().manual_seed(0)
    drawn = captions.pick(generator)
    assert set(drawn[1::2]) == {"d"}
    for sentence in "abc":  # 5 deviations of a binomial count
        assert abs(drawn[::2].count(sentence) - 200) < 5 * (600 * 2 / 9) ** 0.5
    sentences = captions.sentences
    assert [sentences[k] for k in captions.chosen().tolist()] == captions.pick()


def test_the_digest_covers_every_column():
    split = numbered()
    same = digest(numbered())
    assert digest(split) == same
    assert digest(Split(split.x, split.label)) != same
    other = [[*ROWS[0][:-1], "another"], *ROWS[1:]]
    assert digest(numbered(other)) != same
    moved = Captions.of([[row[0]] for row in ROWS]), Captions.of(ROWS[::-1])
    for text in moved:
        assert digest(Split(split.x, split.label, columns={**split.columns, "text": text})) != same
    vector = split.columns["vector"].clone()
    vector[3, 1] += 1
    assert digest(Split(split.x, split.label, columns={**split.columns, "vector": vector})) != same


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": Captions.of(["a"])}, "40 examples but 1 rows of 'text'"),
        ({"v": torch.full((N, 2), float("nan"))}, "'v': row 0 is not finite"),
        ({"v": torch.tensor([0.0] * 9 + [float("inf")] + [0.0] * 30)}, "row 9 is not finite"),
        ({"label": torch.zeros(N)}, "another name"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        Split(numbered().x, columns=columns)


def test_parts_with_other_columns_are_refused():
    split = numbered()
    bare = Split(split.x, split.label)
    with pytest.raises(DataError, match="training examples have the columns"):
        Dataset("d", split, bare, Scaling(N), tuple("abcde"))
    with pytest.raises(DataError, match="extra examples"):
        Dataset("d", split, split, Scaling(N), tuple("abcde"), parts={"extra": bare})
    with pytest.raises(DataError, match="map and class names must both be given"):
        Dataset("d", bare, bare, Scaling(N), tuple("abcde"), words={"map": ("a",)})
