"""Conditions: what a user says (a class, a sentence, a picture), and what a network is told."""

from scoresde.conditions.condition import Condition, Joined, joined, sizes
from scoresde.conditions.frozen_text import FrozenText
from scoresde.conditions.label import Label
from scoresde.conditions.picture import Picture, SegmentationMap
from scoresde.conditions.tokens import Tokens
from scoresde.conditions.vector import Vector

__all__ = [
    "Condition",
    "FrozenText",
    "Joined",
    "Label",
    "Picture",
    "SegmentationMap",
    "Tokens",
    "Vector",
    "joined",
    "sizes",
]
