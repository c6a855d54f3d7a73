"""One line for every problem pydantic finds: where, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from scoresde.config.schema import Config

CUTOFF = 0.65  # of likeness: "depth" is no misspelling of "width"


def describe(
    details: ErrorDetails, tree: Any, overrides: Mapping[str, Any], file: str | Path | None
) -> str:
    """'file.yaml: train.lr: must be greater than 0, got -1', or '--train.lr: ...' for a flag."""
    place = _without_tags(details["loc"], tree)
    name = ".".join(_printable(str(part))[:60] for part in place)
    if details["type"] == "union_tag_invalid":
        name = f"{name}.kind"
    if name in overrides:
        source = f"--{name}"
    else:
        source = ": ".join(str(part) for part in (file, name) if part) or "configuration"
    return f"{source}: {_problem(details, place, tree)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """\"did you mean 'x'?\" for a likely misspelling, or else the names to choose from."""
    choices = list(names)
    close = difflib.get_close_matches(name, choices, 1, CUTOFF)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"


@cache
def options() -> dict[str, FieldInfo]:
    """Every dotted path of a value, over all kinds of all sections."""
    return dict(_options(Config, ""))


def members(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections a field may hold; none for a plain value."""
    found = get_args(field.annotation) or (field.annotation,)
    return [m for m in found if isinstance(m, type) and issubclass(m, BaseModel)]


def kinds(section: type[BaseModel]) -> tuple[str, ...]:
    """The names a section is chosen by; none for a section without alternatives."""
    field = section.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


def _options(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if inner := members(field):
            for member in inner:
                yield from _options(member, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _without_tags(location: Sequence[int | str], tree: Any) -> tuple[int | str, ...]:
    """The location as it is written in the file: pydantic adds the kind of every section."""
    place: list[int | str] = []
    for step in location:
        if isinstance(tree, dict) and tree.get("kind") == step and step not in tree:
            continue
        place.append(step)
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tuple(place)


def _problem(details: ErrorDetails, place: Sequence[int | str], tree: Any) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return f"unknown key; {_known(place, tree)}"
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "").split(", ")
            return f"unknown kind {context['tag']!r}; {nearest(context['tag'], tags)}"
        case "union_tag_not_found" | "model_type" | "model_attributes_type":
            return f"must be a section of keys, got {_shown(details['input'])}"
        case "value_error":
            return _printable(str(context["error"]))
        case _:
            wanted = details["msg"].replace("Input should be", "must be")
            return f"{wanted}, got {_shown(details['input'])}"


def _known(place: Sequence[int | str], tree: Any) -> str:
    """A suggestion for an unknown key: a neighbour, or the same name in another section."""
    *parents, name = map(str, place)
    keys = [key for key in _keys(parents, tree) if key != "kind"]
    elsewhere = [path for path in options() if path.split(".")[-1] == name]
    elsewhere = [path for path in elsewhere if path != ".".join([*parents, name])]
    if elsewhere and not difflib.get_close_matches(name, keys, 1, CUTOFF):
        return f"did you mean {elsewhere[0]!r}?"
    return nearest(name, keys) if keys else "this section has no other key than kind"


def _keys(parents: Sequence[str], tree: Any) -> list[str]:
    """The keys of the section at a place of the tree."""
    section: type[BaseModel] = Config
    for name in parents:
        tree = tree[name]
        choices = members(section.model_fields[name])
        kind = tree.get("kind")
        section = next((m for m in choices if kind in kinds(m)), choices[0])
    return list(section.model_fields)


def _printable(text: str) -> str:
    """In one line, whatever a key is made of."""
    return text if text.isprintable() else ascii(text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
