"""What is said of the training examples: columns of the data, read for a model's conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from scoresde.conditions import Condition
from scoresde.data import Captions, Dataset, Split
from scoresde.data.columns import Column


@final
@dataclass(frozen=True, eq=False)
class Read:
    """Values of N examples as ``Condition.read`` gives them, each different sentence once.

    Args:
        table: y of the different sentences or classes.
        places: place in the table of every sentence.
        starts: place of the first sentence of each example (N,).
        counts: number of sentences of each example (N,).
    """

    table: Tensor
    places: Tensor
    starts: Tensor
    counts: Tensor

    @staticmethod
    def of(captions: Captions, condition: Condition) -> Read:
        """Read captions. Raises ValueError for a sentence that the condition cannot take."""
        sentences = captions.sentences
        different = {sentence: k for k, sentence in enumerate(dict.fromkeys(sentences))}
        places = torch.tensor([different[sentence] for sentence in sentences])
        table = condition.read(list(different))
        return Read(table, places, captions.chosen(), captions.counts)

    @staticmethod
    def of_classes(column: Tensor, words: Sequence[str] | None, condition: Condition) -> Read:
        """Read classes (N,), named by ``words``. Raises ValueError as ``of`` does."""
        if column.ndim != 1 or column.is_floating_point():
            raise ValueError("need names or whole numbers (N,); a vector takes real numbers")
        different, places = column.unique(return_inverse=True)
        found = different.tolist()
        named = found if words is None else [condition.written(words[value]) for value in found]
        each = torch.arange(len(column))
        return Read(condition.read(named), places, each, torch.ones_like(each))

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: Tensor) -> Read:
        """The captions of the examples at ``index``, in that order."""
        return replace(self, starts=self.starts[index], counts=self.counts[index])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def pick(self, generator: torch.Generator | None = None) -> Tensor:
        """y of one sentence of each example: the first; with a ``generator`` one at random."""
        chosen = self.starts
        if generator is not None:
            u = torch.rand(len(self), generator=generator, dtype=torch.float64)
            chosen = chosen + (u * self.counts).long()
        return self.table[self.places[chosen]]


def words_of(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The names of the values 0, 1, ... of the columns of labels of a data set."""
    return {**dataset.words, **({} if dataset.classes is None else {"label": dataset.classes})}


def columns_read(
    split: Split,
    conditions: Mapping[str, Condition],
    words: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Split:
    """The split with the captions and classes that conditions read, and no other columns.

    ``words`` name the values 0, 1, ... of columns of labels, so that a class is found by its name
    where data and model number them in another way. Labels without names are places among the
    classes of the model. Raises ValueError, naming the condition, if the data lack a column or it
    cannot be read.
    """
    found: dict[str, Column] = {}
    for name, condition in conditions.items():
        if condition.derives:
            continue
        if name not in split.conditions:
            raise ValueError(f"{name}: the data have no column of this name")
        column = split.conditions[name]
        try:
            if isinstance(column, Captions):
                found[name] = Read.of(column, condition)
            elif not isinstance(column, Tensor) or (name == "label" and name not in words):
                found[name] = column
            elif condition.classed:
                found[name] = Read.of_classes(column, words.get(name), condition)
            else:
                condition.rows(column[:1])  # says what does not fit
                found[name] = column
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    label: Any = found.pop("label", split.label)  # which a split holds apart
    return replace(split, columns=found, label=label.pick() if isinstance(label, Read) else label)


def said(
    split: Split,
    x0: Tensor,
    conditions: Mapping[str, Condition],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """y of each condition for the examples, whose augmented values in model units are ``x0``.

    With a ``generator``, one caption of each at random, and nothing for a fraction ``dropout``.
    """
    found = {}
    for name, condition in conditions.items():
        column = None if condition.derives else split.conditions[name]
        if column is None:
            y = condition.derive(x0)
        elif isinstance(column, Tensor):
            y = condition.rows(column)
        else:
            assert isinstance(column, Read)
            y = column.pick(generator)
        if generator is not None and condition.dropout:
            dropped = torch.rand(len(y), generator=generator) < condition.dropout
            nothing = condition.null(1).expand_as(y)
            y = torch.where(dropped.view(-1, *[1] * (y.ndim - 1)), nothing, y)
        found[name] = y
    return found
