"""Judges of conditional samples: whether a picture shows what was asked for.

A judge is a classifier fitted on real pictures. What it gets right on real held-out pictures is
the ceiling of any model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.evaluation.classifier import fit_classifier, strided

FIT_STEPS, BATCH = 800, 64
HALVES_STEPS = 400


class Accuracy(NamedTuple):
    """The number of right answers among ``of``."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """The fraction of right answers."""
        return self.right / self.of

    @property
    def error(self) -> float:
        """Standard error of ``value``, sqrt(p (1 - p) / n), where p adds a half to both counts.

        Zero right answers of n still have an error.
        """
        p = (self.right + 0.5) / (self.of + 1)
        return math.sqrt(p * (1 - p) / self.of)


@dataclass(frozen=True)
class Judge:
    """Reads named attributes of pictures; ``predict`` returns them as columns, int64 (N, K)."""

    names: tuple[str, ...]
    predict: Callable[[Tensor], Tensor]

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """The attributes of pictures (N, C, H, W), in the units of the training pictures."""
        return dict(zip(self.names, self.predict(x).unbind(1), strict=True))

    def right(self, x: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whether each of ``attributes``, int64 (N,), is read off each picture, bool (N,).

        Raises ValueError for an attribute that the judge does not know.
        """
        strange = [name for name in attributes if name not in self.names]
        if strange or not attributes:
            known = ", ".join(self.names)
            raise ValueError(f"attributes {', '.join(strange) or '(none)'}; give some of {known}")
        found = self.read(x)
        return {name: found[name] == truth for name, truth in attributes.items()}

    def accuracy(self, x: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Accuracy]:
        """The accuracy of every attribute, and of "all" of them at once."""
        right = self.right(x, attributes)
        right["all"] = torch.stack(list(right.values())).all(0)
        return {name: Accuracy(int(each.sum()), len(each)) for name, each in right.items()}


def attribute_judge(
    x: Tensor,
    attributes: Mapping[str, Tensor],
    seed: int = 0,
    steps: int = FIT_STEPS,
    advance: Callable[[int], object] = lambda n: None,
) -> Judge:
    """A judge of several attributes, fitted on real pictures (N, C, H, W) by a head for each.

    ``attributes`` are int64 (N,), in 0 .. n-1 each. Raises ValueError as ``fit_classifier`` does.
    """
    label = torch.stack(list(attributes.values()), 1)
    classes = [int(column.max()) + 1 for column in label.unbind(1)]
    # Not shifted: the place of a pixel is part of what it shows.
    fitted = fit_classifier(
        x, label, classes, seed, steps, BATCH, shift=0, network=strided, advance=advance
    )
    return Judge(tuple(attributes), fitted.predict)


def halves_judge(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    seed: int = 0,
    steps: int = HALVES_STEPS,
    advance: Callable[[int], object] = lambda n: None,
) -> Judge:
    """A judge of the classes "left" and "right", each read off its half of the picture.

    One classifier is fitted on both halves of real pictures (N, C, H, W), of an even width, with
    classes int64 (N,) each. Raises ValueError as ``fit_classifier`` does.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"pictures are {tuple(x.shape)}; give an even width")
    label = torch.cat([left, right])
    halves, classes = torch.cat(x.chunk(2, -1)), int(label.max()) + 1
    classifier = fit_classifier(halves, label, classes, seed, steps, advance=advance)

    def predict(x: Tensor) -> Tensor:
        return torch.stack([classifier.predict(half) for half in x.chunk(2, -1)], 1)

    return Judge(("left", "right"), predict)
