"""A class, or one value of an attribute with a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.arguments import Fraction, check, nearest
from scoresde.conditions.condition import Condition, Joined


@final
class Label(Condition):
    """A class by its name or place: sqrt(K + 1) one_hot(y) of K classes and of "no class".

    It is of unit size, and the network's linear map of it is a table of embeddings. Raises
    ValueError for fewer than one class, or two of one name.

    Args:
        classes: names of the classes, or their number.
        dropout: fraction of the training examples without their class.
    """

    classed = True

    def __init__(self, classes: int | Sequence[str], *, dropout: Fraction = 0.1) -> None:
        super().__init__()
        check(Label, {"dropout": dropout})
        names = [str(k) for k in range(classes)] if isinstance(classes, int) else list(classes)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"need names of classes, each once, got classes={classes!r}")
        self.classes, self.dropout = tuple(names), dropout
        self.embed = len(names) + 1

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        if isinstance(values, Tensor):  # of places
            if values.ndim != 1 or values.is_floating_point():
                raise ValueError("need names or whole numbers (N,); a vector takes real numbers")
            return {"classes": [str(k) for k in range(int(values.max()) + 1)]}
        return {"classes": sorted({str(value) for value in values})}

    def read(self, values: Any) -> Tensor:
        """A name or a place from 0, or several; a number is a name where classes are numbers."""
        if isinstance(values, Tensor):
            values = values.tolist()
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            values = [values]
        return torch.tensor([self._place(value) for value in values], dtype=torch.int64)

    def takes(self) -> str:
        some = ", ".join(self.classes[:10]) + ", ..." * (len(self.classes) > 10)
        return f"one of {len(self.classes)} classes: {some}"

    def written(self, text: str) -> str | int:
        """A name, or the place of a class."""
        return int(text) if text.isdecimal() and text not in self.classes else text

    def _place(self, value: Any) -> int:
        if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__index__")):
            raise ValueError(f"need a class by name or place, got {value!r}")
        if str(value) in self.classes:
            return self.classes.index(str(value))
        numbers = any(name.removeprefix("-").isdecimal() for name in self.classes)
        if not isinstance(value, str) and not numbers and 0 <= value < len(self.classes):
            return int(value)
        raise ValueError(f"no class {value!r}; {nearest(str(value), self.classes)}")

    def rows(self, column: Tensor) -> Tensor:
        """Places among the classes of the model."""
        return column.long()

    def null(self, n: int) -> Tensor:
        return torch.full((n,), len(self.classes))

    def forward(self, y: Tensor) -> Joined:
        return Joined(embed=math.sqrt(self.embed) * F.one_hot(y, self.embed).float())
