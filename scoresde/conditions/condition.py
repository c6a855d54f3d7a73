"""What a user says, and what a network is told: the abstract condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Joined(NamedTuple):
    """What a network is told (``scoresde.nn.told``), each optional.

    ``embed`` (B, n) is added to the features of the noise level, ``context`` (B, L, d) is attended
    to where ``mask`` (B, L) is true, and ``concat`` (B, c, H, W) stands beside the channels of x.
    """

    embed: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None


class Condition(nn.Module, ABC):
    """One condition of a model: a class, a sentence, a picture.

    ``read`` turns what a user or a data set has into a tensor y, once. ``forward`` encodes y into
    what the network is told. ``null`` is the y of "nothing said", which ``dropout`` trains and
    free guidance uses.
    """

    embed: int = 0
    """Length of the embedding."""
    context: int | None = None
    """Width of the context; None without one."""
    concat: int = 0
    """Channels of the pictures."""
    dropout: float = 0.0
    """Fraction of the training examples for which nothing is said."""
    derives: bool = False
    """Whether y is made of the example itself, by ``derive``, and not of a column of the data."""
    sentences: ClassVar[bool] = False
    """Whether it reads sentences, so that a prompt is meant for it."""
    classed: ClassVar[bool] = False
    """Whether it reads classes, which a column of the data may number in another way."""

    @staticmethod
    @abstractmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        """The arguments of the constructor that the training data decide, as JSON values.

        ``values`` are those of all training examples, ``settings`` the other arguments. Raises
        ValueError for values of another kind.
        """

    @abstractmethod
    def read(self, values: Any) -> Tensor:
        """One value, for all samples, as y (1, ...), or several as y (n, ...), on the host.

        Raises ValueError for values that this condition cannot take.
        """

    @abstractmethod
    def takes(self) -> str:
        """What a user may say, in words."""

    def written(self, text: str) -> Any:
        """The value, as for ``read``, that a word of the command line stands for."""
        return text

    @abstractmethod
    def null(self, n: int) -> Tensor:
        """y (n, ...) of nothing said, on the host."""

    @abstractmethod
    def forward(self, y: Tensor) -> Joined:
        """What the network is told for y (B, ...)."""

    def rows(self, column: Tensor) -> Tensor:
        """y (n, ...) of rows of a column of the data."""
        return self.read(column)

    def derive(self, x0: Tensor) -> Tensor:
        """y (B, ...) of examples (B, C, H, W) in model units, where ``derives``."""
        raise TypeError(f"{type(self).__name__} is not made of the example")


def joined(parts: Sequence[Joined], n: int) -> Joined:
    """All that is said at once, of n samples: embeddings, contexts and pictures side by side.

    A part of one sample holds for all. Contexts follow each other; they have one width.
    """

    def of(name: str) -> list[Tensor]:
        found = (getattr(part, name) for part in parts)
        return [each.expand(n, *each.shape[1:]) for each in found if each is not None]

    embeds, contexts, pictures = of("embed"), of("context"), of("concat")
    masks = [
        torch.ones(p.context.shape[:2], dtype=torch.bool, device=p.context.device)
        if p.mask is None
        else p.mask
        for p in parts
        if p.context is not None
    ]
    return Joined(
        torch.cat(embeds, 1) if embeds else None,
        torch.cat(contexts, 1) if contexts else None,
        torch.cat([mask.expand(n, -1) for mask in masks], 1) if masks else None,
        torch.cat(pictures, 1) if pictures else None,
    )


def sizes(conditions: Mapping[str, Condition]) -> dict[str, int | None]:
    """The arguments embed, context and concat of a network for these conditions.

    Raises ValueError for contexts of different widths.
    """
    widths = {name: c.context for name, c in conditions.items() if c.context is not None}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(f"the contexts have different widths ({listed}); give all one width")
    return {
        "embed": sum(c.embed for c in conditions.values()) or None,
        "context": next(iter(widths.values()), None),
        "concat": sum(c.concat for c in conditions.values()),
    }
