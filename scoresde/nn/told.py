"""What a network is told beside the noisy state, in the three ways that it knows.

    embed    (B, n)       a vector, added to the features of the noise level
    context  (B, L, d)    a sequence to attend to, where ``mask`` (B, L) is true
    concat   (B, c, H, W) pictures beside the channels of the state

``scoresde.conditions`` makes them of labels, sentences and pictures. A class ``label`` (B,) may
enter by a table of the network's own, as in the published networks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Told(NamedTuple):
    """What each block receives: the vector of noise and embedding, and the context."""

    condition: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None


def attending(
    h: Tensor, cross: nn.Module | None, context: Tensor | None, mask: Tensor | None
) -> Tensor:
    """cross(h, context, mask), or h where there is no such layer or no context."""
    if cross is None or context is None:
        return h
    result: Tensor = cross(h, context, mask)
    return result


def require_context(context: Tensor | None, width: int | None) -> None:
    """Raise ValueError for a context that the network was not built for."""
    if context is not None and width is None:
        raise ValueError(
            "network built without context: pass context=None or build it with context=width"
        )


def beside(x: Tensor, concat: Tensor | None, channels: int) -> Tensor:
    """x (B, C, H, W) with the pictures beside its channels; zeros where none are given.

    Raises ValueError for pictures of another size or number of channels.
    """
    if concat is None:
        return (
            x if not channels else torch.cat([x, x.new_zeros(len(x), channels, *x.shape[2:])], 1)
        )
    if concat.shape != (len(x), channels, *x.shape[2:]):
        raise ValueError(
            f"this network takes pictures {(len(x), channels, *x.shape[2:])} beside x, got "
            f"{tuple(concat.shape)}"
        )
    return torch.cat([x, concat], 1)
