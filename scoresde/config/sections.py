"""Sections of a configuration: the arguments of a constructor as plain values.

The constructor is the schema: its signature and docstring define the keys, with their types,
ranges, defaults and descriptions (``scoresde.arguments``). A key holds one of

- a plain value: a number, a word, a path, or a list of these;
- a name in a table of objects (``draw: stratified``);
- a section, with a ``kind`` if it is a choice from a table of constructors;
- sections by any names (``conditions``), each a choice from one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final

import torch

from scoresde import registry
from scoresde.arguments import EMPTY, Argument, arguments, nearest, unwrapped
from scoresde.config.values import Unreadable, accepts_none, is_path, is_plain, read_value
from scoresde.registry import Table

Maker = Callable[..., Any]
Place = tuple[str | int, ...]


@final
class Section:
    """Checked arguments of a constructor, available as attributes.

    ``kind`` is the name of the constructor if the section is a choice from a table, else None.
    """

    __slots__ = ("kind", "makers", "values")
    kind: str | None
    values: Mapping[str, Any]
    makers: tuple[Maker, ...]

    def __init__(
        self, values: Mapping[str, Any], makers: tuple[Maker, ...], kind: str | None = None
    ) -> None:
        for name, value in (("values", dict(values)), ("makers", makers), ("kind", kind)):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a section cannot be changed; see scoresde.config.override")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Section.__slots__ or name not in self.values:
            raise AttributeError(f"no key {name!r} in the section {self!r}")
        return self.values[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Section, (self.values, self.makers, self.kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Section) and (self.kind, self.values) == (
            other.kind,
            other.values,
        )

    def __hash__(self) -> int:
        return hash((self.kind, *self.values.items()))

    def __repr__(self) -> str:
        return (
            f"{self.kind or 'Section'}({', '.join(f'{k}={v!r}' for k, v in self.values.items())})"
        )


class Group(NamedTuple):
    """A section without a kind: arguments of constructors, except the ``supplied`` ones."""

    makers: tuple[Maker, ...]
    supplied: frozenset[str] = frozenset()


class Named(NamedTuple):
    """A section of sections by any names, each of which is a choice from the table."""

    table: Table[Any]


class Problem(NamedTuple):
    """A problem and the key it concerns; ``unknown`` if there is no such key."""

    place: Place
    text: str
    unknown: bool = False


# What a key may hold ----------------------------------------------------------------------------


def contents(argument: Argument) -> Table[Any] | Group | Named | None:
    """The table, group or names of an argument's section; None for a plain value.

    It comes from the annotation, or is the table with the name of the argument.
    """
    notes = getattr(argument.type, "__metadata__", ())
    found = next((note for note in notes if isinstance(note, Table | Group | Named)), None)
    if found is None and not is_plain(argument.type):
        found = registry.table_of(argument.name)
    return found


def keys(source: Group | Table[Any], kind: str | None = None) -> dict[str, Argument]:
    """The keys of a section, in order."""
    if isinstance(source, Table):
        assert kind is not None
        return {**source.arguments(kind), **_beside(source, kind)}
    merged = {k: a for maker in source.makers for k, a in arguments(maker).items()}
    return {key: argument for key, argument in merged.items() if key not in source.supplied}


def default(argument: Argument) -> Any:
    """Default of a key, in the form that ``read`` takes."""
    source, value = contents(argument), argument.default
    if isinstance(source, Group | Named):
        return {}
    if value is EMPTY or source is None or (isinstance(value, str) and value in source):
        return None if value is EMPTY or value in (float("inf"),) else value
    return source.name_of(value)


def options(group: Group, prefix: str = "") -> Iterator[tuple[str, Argument]]:
    """Yield the dotted path of every key, for all kinds of all sections."""
    for key, argument in keys(group).items():
        yield from _below(argument, f"{prefix}{key}")


def _below(argument: Argument, path: str) -> Iterator[tuple[str, Argument]]:
    source = contents(argument)
    if isinstance(source, Named):  # whose keys only a file gives
        return
    if isinstance(source, Group):
        yield from options(source, f"{path}.")
    elif source is None or not source.constructs:
        yield path, argument
    else:
        yield f"{path}.kind", argument
        for kind in source:
            for key, inner in keys(source, kind).items():
                yield from _below(inner, f"{path}.{key}")


# Reading ----------------------------------------------------------------------------------------


def read(argument: Argument, plain: Any, place: Place, problems: list[Problem]) -> Any:
    """Read a key as a ``Section``, a name or a plain value; appends to ``problems``."""
    source = contents(argument)
    if isinstance(plain, Section):
        return plain
    if isinstance(source, Named):
        return _named(source, plain, place, problems)
    if source is None or not (isinstance(source, Group) or source.constructs):
        try:
            if source is None:
                return read_value(argument, plain)
            return _name(plain, source)
        except Unreadable as error:
            problems.append(Problem((*place, *error.place), str(error)))
            return None
    plain = {"kind": plain} if isinstance(source, Table) and isinstance(plain, str) else plain
    if not isinstance(plain, Mapping):
        problems.append(Problem(place, str(Unreadable("must be a section of keys", plain))))
        return None
    kind = None
    if isinstance(source, Table):
        kind = plain.get("kind", default(argument))
        if not isinstance(kind, str) or kind not in source:
            problem = f"unknown kind {kind!r}; {nearest(str(kind), source)}"
            problems.append(Problem((*place, "kind"), problem))
            return None
        plain = {key: value for key, value in plain.items() if key != "kind"}
    return _section(source, kind, plain, place, problems)


def _named(source: Named, plain: Any, place: Place, problems: list[Problem]) -> Section | None:
    """Read sections by name. A name is a word, because it becomes an argument."""
    if not isinstance(plain, Mapping):
        problems.append(Problem(place, str(Unreadable("must be a section of names", plain))))
        return None
    for name in plain:
        if not (isinstance(name, str) and name.isidentifier()):
            problems.append(Problem((*place, name), "must be a word of letters, digits and _"))
            return None
    found = {
        name: read(
            Argument(name, Annotated[Any, source.table], EMPTY, ""),
            inner,
            (*place, name),
            problems,
        )
        for name, inner in plain.items()
    }
    return Section(found, ())


def read_keys(
    source: Group | Table[Any], kind: str | None, plain: Mapping[Any, Any], place: Place,
    problems: list[Problem],
) -> dict[str, Any]:  # fmt: skip
    """Read all keys of a section; missing keys take their defaults."""
    known = keys(source, kind)
    for key in (key for key in plain if key not in known):
        problems.append(Problem((*place, key), _unknown(str(key), source, kind, place), True))
    found = {key: plain[key] if key in plain else default(a) for key, a in known.items()}
    return {key: read(a, found[key], (*place, key), problems) for key, a in known.items()}


def _section(
    source: Group | Table[Any], kind: str | None, plain: Mapping[Any, Any], place: Place,
    problems: list[Problem],
) -> Section | None:  # fmt: skip
    before = len(problems)
    values = read_keys(source, kind, plain, place, problems)
    if len(problems) > before:
        return None
    makers = source.makers if isinstance(source, Group) else (source[str(kind)],)
    found = Section(values, makers, kind)
    try:
        _tried(found, source)
    except ValueError as error:
        problems.append(Problem(place, str(error)))
    return found


def _name(plain: Any, source: Table[Any]) -> str:
    if not isinstance(plain, str) or plain not in source:
        raise Unreadable(f"must be {' or '.join(map(repr, source))}", plain)
    return plain


def _unknown(key: str, source: Group | Table[Any], kind: str | None, place: Place) -> str:
    """Message for an unknown key: other kinds that have it, or the nearest key."""
    if isinstance(source, Table) and (having := [k for k in source if key in keys(source, k)]):
        path = ".".join(map(str, place))
        kinds = ", ".join(having)
        return f"unknown key for {path}.kind={kind}; the {path}.kind that has it: {kinds}"
    known = list(keys(source, kind))
    return f"unknown key; {nearest(key, known) if known else 'kind is the only key here'}"


# Building ---------------------------------------------------------------------------------------


def build(section: Section, maker: Maker | None = None, **supplied: Any) -> Any:
    """Call the constructor of a section, or ``maker``, with the values converted to objects.

    ``supplied`` arguments are not in the configuration, or replace those that are. Raises
    ValueError for a missing value.
    """
    make = section.makers[0] if maker is None else maker
    found: dict[str, Any] = {}
    for name, argument in arguments(make).items():
        if name in section.values and name not in supplied:
            value = section.values[name]
            if value is not None or accepts_none(argument):
                found[name] = _object(argument, value)
            elif argument.default is EMPTY:
                raise ValueError(f"{name} is not given for kind={section.kind}")
    return make(**found, **supplied)


def plain(value: Any) -> Any:
    """Convert a section to JSON values, which ``read`` reads back."""
    if isinstance(value, Section):
        head = {} if value.kind is None else {"kind": value.kind}
        return head | {key: plain(inner) for key, inner in value.values.items()}
    return list(value) if isinstance(value, tuple) else value


def _object(argument: Argument, value: Any) -> Any:
    source = contents(argument)
    if isinstance(value, Section):
        return build(value)
    if isinstance(source, Table):
        return source[value]
    kind, _ = unwrapped(argument.type)
    return Path(value).expanduser() if is_path(kind) and value is not None else value


def _tried(section: Section, source: Group | Table[Any]) -> None:
    """Construct the object of a section, to raise ValueError for inconsistent values.

    Skips constructors that read files. Networks are built on the meta device, without memory.
    """
    if isinstance(source, Group):
        reading = {
            key: value
            for key, value in section.values.items()
            if isinstance(value, Section) and _reads_files(value)
        }
        for maker in source.makers:
            some = {key: value for key, value in reading.items() if key in arguments(maker)}
            build(section, maker, **some)
    elif source in (registry.NETWORKS, registry.AUTOENCODERS):
        _tried_network(section)
    elif not _reads_files(section) and source not in (registry.DATASETS, registry.CONDITIONS):
        build(section)  # the others need data


def _reads_files(section: Section) -> bool:
    return any(is_path(unwrapped(a.type)[0]) for a in arguments(section.makers[0]).values())


@cache
def _tried_network(section: Section) -> None:
    make = section.makers[0]
    given = {key: value for key, value in section.values.items() if key != "head"}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        make(3, **given)


def head_of(head: Literal["value", "levels", "variance"] = "value") -> None:
    """Output of a network.

    Args:
        head: value for numbers; levels for the logits of the pixel levels, whose mean given the
            noisy pixels is x0; variance for numbers and a learned variance of the reverse steps,
            which train.objective hybrid or vlb trains.
    """


def _beside(source: Table[Any], kind: str) -> Mapping[str, Argument]:
    """Keys besides the constructor's arguments: ``head``, for networks that take ``outputs``."""
    if source is registry.NETWORKS and "outputs" in arguments(source[kind]):
        return arguments(head_of)
    return {}
