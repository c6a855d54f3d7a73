"""Reads a single value from YAML or a flag as the type of an argument."""

from __future__ import annotations

import collections.abc
import math
import re
import types
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from scoresde.arguments import EMPTY, Argument, Range, unwrapped

MOST = 2**53  # the limit of JSON; larger values overflow later, in errors without the key
YES, NO = ("true", "yes", "on"), ("false", "no", "off")


class Unreadable(ValueError):
    """Invalid value; ``place`` is the index of a bad item, such as (1,) for the second."""

    def __init__(self, problem: str, value: object, place: tuple[int, ...] = ()) -> None:
        shown = repr(value)
        super().__init__(f"{problem}, got {shown if len(shown) <= 60 else f'{shown[:57]}...'}")
        self.place = place


def read_value(argument: Argument, value: Any) -> Any:
    """Convert a value to the argument's type and check its ranges. Raises Unreadable.

    Text is parsed as the type requires. None means that the argument keeps its own default.
    """
    kind, limits = unwrapped(argument.type)
    if value is None:
        if optional(argument):
            return None
        raise Unreadable(f"must be {_words(kind)}", value)
    if not is_sequence(kind):
        return _one(kind, limits, value)
    items = _items(value)
    length = max((limit.length for limit in limits), default=0)
    if len(items) < length:
        raise Unreadable(f"must have {length} items or more", value)
    element = get_args(kind)[0] if get_args(kind) else str
    element, inner = unwrapped(element)
    found = []
    for i, item in enumerate(items):
        try:
            found.append(_one(element, (*limits, *inner), item))
        except Unreadable as error:
            error.place = (i,)
            raise
    return tuple(found)


def optional(argument: Argument) -> bool:
    """True if null is allowed: for None, for a value still missing, or for no bound."""
    infinite = isinstance(argument.default, float) and math.isinf(argument.default)
    return argument.default is EMPTY or infinite or accepts_none(argument)


def accepts_none(argument: Argument) -> bool:
    """True if the constructor accepts None."""
    kind = argument.type
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def is_plain(annotation: Any) -> bool:
    """True if the type is a number, a word, a path, or a list of these."""
    kind, _ = unwrapped(annotation)
    if is_sequence(kind):
        return all(is_plain(inner) for inner in get_args(kind) if inner is not ...)
    return kind in (bool, int, float, str) or get_origin(kind) is Literal or is_path(kind)


def is_sequence(kind: Any) -> bool:
    """True if a type, without its ranges, is a list of values."""
    return get_origin(kind) in (tuple, list, collections.abc.Sequence)


def is_path(kind: Any) -> bool:
    """True if a type, without its ranges, is a file system path."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    members = tuple(m for m in members if m is not type(None))
    paths = [m for m in members if (get_origin(m) or m) in (Path, PathLike)]
    return bool(paths) and all(m is str or m in paths for m in members)


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


def _one(kind: Any, limits: Sequence[Range], value: Any) -> Any:
    reader: Callable[[Any], Any] | None = _READERS.get(kind)
    if get_origin(kind) is Literal:
        found = next(
            (c for c in get_args(kind) if value in (c, str(c)) and value is not True), None
        )
    elif kind == int | float:
        found = _real(value)
    elif is_path(kind):
        found = _text(value)
    else:
        found = value if reader is None else reader(value)
    if found is None:
        raise Unreadable(f"must be {_words(kind)}", value)
    for limit in limits:
        if not limit.holds(found):
            raise Unreadable(f"must be {_bound(limit, found)}", value)
    return found


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    return word in YES if word in (*YES, *NO) else None


def _whole(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > MOST:
            side = "less" if value > 0 else "greater"
            raise Unreadable(
                f"must be {side} than or equal to {MOST * (1 if value > 0 else -1)}", value
            )
        return value
    number = _real(value)
    if number is None or number != int(number):
        return None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return _whole(int(value))  # a float would round it
    return _whole(int(number))


def _real(value: Any) -> float | None:
    """Read a number; refuses what YAML reads as a boolean (yes, off) or as octal (016)."""
    if isinstance(value, bool):
        raise Unreadable(
            "must be a number (YAML reads yes, no, on and off as true or false)", value
        )
    if isinstance(value, str) and re.fullmatch(r"[+-]?0\d+", value):
        raise Unreadable(
            "must be a number without a 0 before it, which YAML reads as octal", value
        )
    if not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(found):
        raise Unreadable("must be a finite number", value)
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[Any, Callable[[Any], Any]] = {
    bool: _truth, int: _whole, float: _real, str: _text
}  # fmt: skip
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _words(kind: Any) -> str:
    """Describe a type in words, such as "a whole number"."""
    if get_origin(kind) is Literal:
        *others, last = (f"{choice!r}" for choice in get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if is_sequence(kind):
        return "a list"
    return _NAMES.get(kind, "a number" if kind == int | float else "a path")


def _bound(limit: Range, value: float) -> str:
    """Describe the bound that a value violates."""
    if limit.gt is not None and not value > limit.gt:
        return f"greater than {limit.gt}"
    if limit.ge is not None and not value >= limit.ge:
        return f"greater than or equal to {limit.ge}"
    if limit.lt is not None and not value < limit.lt:
        return f"less than {limit.lt}"
    if limit.le is not None and not value <= limit.le:
        return f"less than or equal to {limit.le}"
    return f"a multiple of {limit.multiple_of}"
