"""What is said of the training examples: columns of the data, read for a model's conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from scoresde.conditions import Condition
from scoresde.data import Captions, Split


@final
@dataclass(frozen=True, eq=False)
class Read:
    """Captions of N examples as ``Condition.read`` gives them, each different sentence once.

    Args:
        table: y of the different sentences.
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


def columns_read(split: Split, conditions: Mapping[str, Condition]) -> Split:
    """The split with the captions that conditions read, and without columns that none reads.

    Raises ValueError, naming the condition, if the data lack a column or it cannot be read.
    """
    found = {}
    for name, condition in conditions.items():
        if condition.derives:
            continue
        if name not in split.conditions:
            raise ValueError(f"{name}: the data have no column of this name")
        column = split.conditions[name]
        try:
            found[name] = Read.of(column, condition) if isinstance(column, Captions) else column
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    found.pop("label", None)  # which a split holds apart
    return replace(split, columns=found)


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
