"""The arguments of constructors: their types, ranges, defaults and descriptions, in one home.

A constructor declares a range in its signature, with ``Range`` or one of the types below, and
describes its arguments in its docstring:

    def karras(rho: Annotated[float, Range(ge=0.1)] = 7.0) -> Grid:
        \"""Equal steps of (sigma / alpha)^(1 / rho).

        Args:
            rho: exponent; a larger one puts more steps at low noise.
        \"""
        check(karras, locals())

``check`` enforces the ranges; configurations, ``--help`` and ``scoresde info`` read them with
``arguments``.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    final,
    get_args,
    get_origin,
    get_type_hints,
)

EMPTY = inspect.Parameter.empty
CUTOFF = 0.65  # of likeness: "depth" is no misspelling of "width"


@final
@dataclass(frozen=True)
class Range:
    """The values a number may have; of a tuple it bounds every element, ``length`` the count."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    multiple_of: int | None = None
    length: int = 0

    def holds(self, value: Any) -> bool:
        """Whether a number is in the range; NaN never is."""
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )

    def words(self, name: str) -> str:
        """The range in words, such as "0 < snr < 1"."""
        low = "" if self.gt is None else f"{self.gt:g} < "
        high = "" if self.lt is None else f" < {self.lt:g}"
        low = low if self.ge is None else f"{self.ge:g} <= "
        high = high if self.le is None else f" <= {self.le:g}"
        if low and not high:
            bound, sign = low.split()
            low, high = "", f" {sign.replace('<', '>')} {bound}"
        found = f"{low}{name}{high}" if low or high else ""
        match self.multiple_of:
            case None:
                return found
            case 2:
                return f"{found} and even"
            case n:
                return f"{found} and a multiple of {n}"


Count = Annotated[int, Range(ge=1)]
Natural = Annotated[int, Range(ge=0)]
Even = Annotated[int, Range(ge=2, multiple_of=2)]
Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Fraction = Annotated[float, Range(ge=0, lt=1)]
Open = Annotated[float, Range(gt=0, lt=1)]
Probability = Annotated[float, Range(ge=0, le=1)]


class Argument(NamedTuple):
    """One argument of a constructor; ``default`` is ``EMPTY`` where it has none."""

    name: str
    type: Any
    default: Any
    about: str


@cache
def arguments(constructor: Callable[..., Any]) -> Mapping[str, Argument]:
    """The named arguments of a function, a dataclass or another class, in order.

    Types keep their ``Annotated`` ranges; descriptions come from the "Args:" of the docstring, and
    of those of the base classes.
    """
    source: Any = constructor
    described: dict[str, str] = {}
    if not inspect.isclass(constructor):
        described = _described(inspect.getdoc(constructor) or "")
        source = constructor if inspect.isroutine(constructor) else type(constructor).__call__
    else:
        for base in reversed(constructor.__mro__):
            described |= _described(inspect.cleandoc(base.__doc__ or ""))
        if not hasattr(constructor, "__dataclass_fields__"):
            source = vars(constructor).get("__init__", constructor.__init__)
    hints = get_type_hints(source, include_extras=True)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: Argument(name, hints.get(name, Any), p.default, described.get(name, ""))
        for name, p in inspect.signature(constructor).parameters.items()
        if p.kind in named
    }


def check(constructor: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, for a value of another kind or out of its range.

    ``values`` may hold other names too, as ``locals()`` does; None passes where it is allowed.
    """
    for argument in arguments(constructor).values():
        value = values.get(argument.name)
        if value is None:
            continue
        plain, limits = unwrapped(argument.type)
        if get_origin(plain) is Literal and value not in get_args(plain):
            choices = ", ".join(map(str, get_args(plain)))
            raise ValueError(f"need {argument.name} one of {choices}, got {value!r}")
        if plain in (int, float) and not _is_number(value, plain):
            kind = "a whole number" if plain is int else "a number"
            raise ValueError(f"need {kind}, got {argument.name}={value!r}")
        for limit in limits:
            _check_one(argument.name, value, limit)


def check_fields(owner: Any) -> None:
    """``check`` of a dataclass, for its ``__post_init__``."""
    check(type(owner), {name: getattr(owner, name) for name in owner.__dataclass_fields__})


def unwrapped(annotation: Any) -> tuple[Any, tuple[Range, ...]]:
    """A type without ``Annotated`` and ``| None``, and the ranges it had, outermost first."""
    limits: list[Range] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *notes = get_args(annotation)
            limits += [note for note in notes if isinstance(note, Range)]
        elif get_origin(annotation) in (Union, types.UnionType):
            others = [a for a in get_args(annotation) if a is not type(None)]
            if len(others) != 1:
                return annotation, tuple(limits)
            annotation = others[0]
        elif get_origin(annotation) is tuple and get_args(annotation)[1:] == (...,):
            element, inner = unwrapped(get_args(annotation)[0])
            return types.GenericAlias(tuple, (element, ...)), (*limits, *inner)
        else:
            return annotation, tuple(limits)


def nearest(name: str, names: Iterable[str]) -> str:
    """\"did you mean 'x'?\" for a likely misspelling, or else the names to choose from."""
    choices = list(names)
    if close := difflib.get_close_matches(name, choices, 1, CUTOFF):
        return f"did you mean {close[0]!r}?"
    return f"choose one of {', '.join(choices)}"


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value may stand for an int or a float: one of numpy or torch may too."""
    if isinstance(value, bool):
        return False
    if kind is int:
        return hasattr(value, "__index__") and not getattr(value, "ndim", 0)
    return hasattr(value, "__float__")


def _check_one(name: str, value: Any, limit: Range) -> None:
    several = isinstance(value, Collection) and not isinstance(value, str)
    if several and len(value) < limit.length:
        raise ValueError(f"need at least {limit.length} of {name}, got {name}={value}")
    if not all(limit.holds(v) for v in (value if several else (value,))):
        shown = f"{value:g}" if isinstance(value, float) else f"{value}"
        raise ValueError(f"need {limit.words(name)}, got {name}={shown}")


def _described(docstring: str) -> dict[str, str]:
    """The entries of the "Args:" section: lines ``name: text``, and deeper ones that go on."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n(?=[ \t]))*)", docstring, re.MULTILINE)
    if section is None:
        return found
    lines = inspect.cleandoc(section[1]).splitlines()
    name = ""
    for line in lines:
        if entry := re.match(r"(\w+): (.*)", line):
            name = entry[1]
            found[name] = entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return {name: text.replace("`", "").rstrip(".") for name, text in found.items()}
