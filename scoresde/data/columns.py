"""Columns of conditions: for each example a row of captions or of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final, overload

import torch
from torch import Tensor


class Rows(Protocol):
    """A column that is no tensor."""

    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Rows: ...
    def tensors(self) -> Mapping[str, Tensor]: ...


Column = Tensor | Rows
"""Labels int64 (N,), vectors float32 (N, d), maps (N, C, H, W), ``Captions``, or other rows."""


@final
@dataclass(frozen=True, eq=False)
class Captions(Sequence["str | list[str]"]):
    """Sentences for each of N examples: a string each, or a list each if some have several.

    The sentences are stored one after another, so that they can be mapped into memory, and the
    tensors of two parts are concatenated to join them.

    Args:
        text: bytes of all sentences in UTF-8, uint8.
        lengths: number of bytes of each sentence, int64 (M,).
        counts: number of sentences of each example, int64 (N,), at least 1.
    """

    text: Tensor
    lengths: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Iterable[str | Sequence[str]]) -> Captions:
        """The captions of some rows. Raises ValueError for a row without a sentence."""
        lists = []
        for k, row in enumerate(rows):
            found = [row] if isinstance(row, str) else row
            if not isinstance(found, Sequence) or not found or not all(
                isinstance(sentence, str) for sentence in found
            ):  # fmt: skip
                raise ValueError(f"row {k} is {row!r}; give a sentence, or a list of them")
            lists.append(found)
        pieces = [sentence.encode() for row in lists for sentence in row]
        text = torch.frombuffer(bytearray(b"".join(pieces) or b" "), dtype=torch.uint8)
        lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
        counts = torch.tensor([len(row) for row in lists], dtype=torch.int64)
        return cls(text[: int(lengths.sum())], lengths, counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, k: int) -> str | list[str]: ...
    @overload
    def __getitem__(self, k: slice) -> Captions: ...
    def __getitem__(self, k: int | slice) -> str | list[str] | Captions:
        if isinstance(k, slice):
            return self.take(torch.arange(len(self))[k])
        row = range(len(self))[k]
        start = int(self._starts[row])
        found = self._decoded(torch.arange(start, start + int(self.counts[row])))
        return found if self.several else found[0]

    @cached_property
    def several(self) -> bool:
        """Whether an example has more than one sentence."""
        return bool((self.counts > 1).any())

    @property
    def sentences(self) -> list[str]:
        """All M sentences in order."""
        return self._decoded(torch.arange(len(self.lengths)))

    def chosen(self, generator: torch.Generator | None = None) -> Tensor:
        """The place among ``sentences`` of one sentence of each example, int64 (N,).

        It is the first; with a ``generator`` one at random.
        """
        if generator is None or not self.several:
            return self._starts
        u = torch.rand(len(self), generator=generator, dtype=torch.float64)
        return self._starts + (u * self.counts).long()

    def pick(self, generator: torch.Generator | None = None) -> list[str]:
        """The ``chosen`` sentence of each example."""
        return self._decoded(self.chosen(generator))

    def take(self, index: Tensor) -> Captions:
        """The captions of the examples at ``index``, in that order."""
        counts = self.counts[index]
        first = counts.cumsum(0) - counts
        places = (self._starts[index] - first).repeat_interleave(counts)
        places += torch.arange(len(places))
        pieces = bytearray(b"".join(self._bytes(places)) or b" ")
        lengths = self.lengths[places]
        text = torch.frombuffer(pieces, dtype=torch.uint8)[: int(lengths.sum())]
        return Captions(text, lengths, counts)

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by name."""
        return {"text": self.text, "lengths": self.lengths, "counts": self.counts}

    @cached_property
    def _starts(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def _ends(self) -> Tensor:
        return self.lengths.cumsum(0)

    def _bytes(self, places: Tensor) -> list[memoryview]:
        ends = self._ends[places]
        starts, text = ends - self.lengths[places], self.text.numpy().data
        return [text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _decoded(self, places: Tensor) -> list[str]:
        return [str(piece, "utf-8") for piece in self._bytes(places)]


def flat(columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """The tensors of columns by name; those of ``Captions`` are "name.text" and so on."""
    found: dict[str, Tensor] = {}
    for name, column in columns.items():
        if isinstance(column, Tensor):
            found[name] = column
        else:
            found |= {f"{name}.{part}": tensor for part, tensor in column.tensors().items()}
    return found


def from_flat(tensors: Mapping[str, Tensor]) -> dict[str, Column]:
    """The inverse of ``flat`` for tensors and ``Captions``."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        parts.setdefault(name, {})[part] = tensor
    return {name: found[""] if "" in found else Captions(**found) for name, found in parts.items()}


def joined(pieces: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """The columns of examples that follow each other."""
    flats = [flat(columns) for columns in pieces]
    return from_flat({key: torch.cat([part[key] for part in flats]) for key in flats[0]})
