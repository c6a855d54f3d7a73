"""The building blocks of the configuration: checked numbers and closed sections."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


def _not_a_truth_value(value: object) -> object:
    """YAML reads yes, no, on and off as truth values, which would pass for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value} (as YAML reads yes, no, on and off)")
    return value


def _number_of(text: object) -> object:
    """The number a command line gives as text, which Literal does not read."""
    return int(text) if isinstance(text, str) and text.isdecimal() else text


# Bounded as JSON is: what lies beyond overflows somewhere, with words that name no key.
Whole = Annotated[int, BeforeValidator(_not_a_truth_value), Field(ge=-(2**53), le=2**53)]
Real = Annotated[float, BeforeValidator(_not_a_truth_value)]
Count = Annotated[Whole, Field(ge=1)]
Even = Annotated[Whole, Field(ge=2, multiple_of=2)]
Positive = Annotated[Real, Field(gt=0)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_number_of)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Choice = Field(discriminator="kind")


def _several(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


def _one_or_more(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


Fractions = Annotated[
    tuple[Fraction, ...],
    BeforeValidator(_several),
    PlainSerializer(_one_or_more),
]
"""One number or a list of them, and written as such."""


class Section(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def increasing(section: Section, *names: str, strict: bool = True) -> None:
    """Raise ValueError unless the named values increase (or, not strict, do not decrease)."""
    values = [getattr(section, name) for name in names]
    if not all(a < b or (a == b and not strict) for a, b in pairwise(values)):
        found = ", ".join(f"{name}={value:g}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"need {(' < ' if strict else ' <= ').join(names)}, got {found}")
