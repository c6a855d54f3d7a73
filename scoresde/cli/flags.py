"""Command-line flags: a command's own options through tyro, configuration keys as overrides."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import make_dataclass
from typing import Any, TypeVar, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scoresde.config import Config, load_config
from scoresde.config.problems import kinds, members, nearest, options

Options = TypeVar("Options")
MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)


class UsageError(ValueError):
    """A command line that cannot be used; one line that names the flag and the remedy."""


def parse(
    command: type[Options], argv: Sequence[str], prog: str, sections: Sequence[str] = ()
) -> tuple[Options, dict[str, Any]]:
    """The options of a command, and the overrides of the configuration's ``sections``.

    Prints help and raises SystemExit(0) for --help. Raises UsageError for anything unknown.
    """
    known = {p: field for p, field in options().items() if p.split(".")[0] in sections}
    own, overrides = _separate(argv, known)
    if "-h" in own or "--help" in own:
        _help(command, own, overrides, prog, sections)
    return _own_options(command, own, prog), overrides


def _separate(
    argv: Sequence[str], known: dict[str, FieldInfo]
) -> tuple[list[str], dict[str, Any]]:
    """A command's own tokens, and the configuration's as {dotted path: text}."""
    own: list[str] = []
    overrides: dict[str, Any] = {}
    for flag, values in _groups(argv):
        name = flag.removeprefix("--").replace("-", "_")
        found = _option(name, known) if flag.startswith("--") else None
        if found is not None:
            overrides[found[0]] = _value(flag, values, known[found[0]], found[1])
        elif "." in name and flag.startswith("--"):
            raise UsageError(f"{flag}: unknown option; {_similar(name, known)}")
        elif "" in values:
            raise UsageError(f"{flag}: empty; give a value, or leave it out")
        else:
            own += [flag, *values] if flag else values
    return own, overrides


def _groups(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every flag with the values that follow it; --flag=value is --flag value."""
    flag, values = "", list[str]()
    for token in argv:
        if re.match(r"--?[a-zA-Z]", token):
            if flag or values:
                yield flag, values
            flag, _, value = token.partition("=")
            values = [value] if "=" in token else []
        else:
            values.append(token)
    if flag or values:
        yield flag, values


def _option(name: str, known: dict[str, FieldInfo]) -> tuple[str, bool] | None:
    """The configuration key a flag sets, and whether it is set; --a.no_b clears a truth value."""
    if name in known:
        return name, True
    if f"{name}.kind" in known:
        return f"{name}.kind", True
    positive = re.sub(r"(^|\.)no_(\w+)$", r"\1\2", name)
    if positive in known and known[positive].annotation is bool:
        return positive, False
    return None


def _value(flag: str, values: list[str], field: FieldInfo, positive: bool) -> Any:
    if get_origin(field.annotation) is tuple:
        return [part for value in values for part in value.strip("[]()").split(",") if part]
    if field.annotation is bool and not values:
        return positive
    if values == [""]:
        raise UsageError(f"{flag}: empty; give a value, or leave it out")
    if len(values) != 1 or not positive:
        found = f"got {' '.join(values)}" if values else "got none"
        raise UsageError(f"{flag}: takes {'one' if positive else 'no'} value, {found}")
    return values[0]


def _similar(name: str, known: dict[str, FieldInfo]) -> str:
    if not known:
        return "this command has no configuration; see --help"
    words = nearest(name, known)
    return words.replace("'", "'--", 1) if words.startswith("did") else "see --help"


def _own_options(command: type[Options], argv: Sequence[str], prog: str) -> Options:
    """tyro's answer; its framed complaints are unwrapped into one line."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(command, prog=prog, args=list(argv), config=MARKERS)
    except SystemExit:
        raise UsageError(_unframed(printed.getvalue())) from None


def _unframed(box: str) -> str:
    """What tyro's box says, in one line of our own form where its form is known.

    A terminal gets the frame and colours, a pipe rules of dashes; the first line is the title.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]|^\s*-+\s*$", "", box, flags=re.MULTILINE)
    text = " ".join(" ".join(plain.strip().splitlines()[1:]).split())
    text = re.sub(r"\s*(For full helptext|Argument helptext|Got errors|Are you).*", "", text)
    if unknown := re.match(r"Unrecognized options:[,\s]*([^\s,]+)", text):
        meant = re.search(r"Perhaps you meant: ([^\s,]+)", text)
        hint = f"did you mean {meant[1]!r}?" if meant else "see --help"
        return f"{unknown[1]}: unknown option; {hint}"
    if missing := re.match(r"Missing from .*?: ([^\s,]+)", text):
        return f"{missing[1]} is missing; see --help"
    return text.replace("Error parsing ", "") or "bad options; see --help"


def _help(
    command: type,
    own: Sequence[str],
    overrides: dict[str, Any],
    prog: str,
    sections: Sequence[str],
) -> None:
    """Print the help, its defaults those of the file given with --config and the flags."""
    config = load_config(_config_file(own), overrides)
    fields: list[tuple[str, Any, Any]] = [
        (name, type(getattr(config, name)), getattr(config, name)) for name in sections
    ]
    page = make_dataclass("Page", fields, bases=(command,), kw_only=True, frozen=True)
    page.__doc__ = f"{command.__doc__}\n\n{_choices(sections)}"
    tyro.cli(page, prog=prog, args=["--help"], config=MARKERS)


def _config_file(own: Sequence[str]) -> str | None:
    return next(
        (values[0] for flag, values in _groups(own) if flag == "--config" and values), None
    )


def _choices(sections: Sequence[str]) -> str:
    """The kinds of every section, which the page cannot show beside the one that is chosen."""
    lines = [f"--{path}.kind {', '.join(names)}" for path, names in _kinds(Config, "", sections)]
    return "\n".join(["Choices, each with keys of its own:", *lines]) if lines else ""


def _kinds(
    section: type[BaseModel], prefix: str, names: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in names:
        inner = members(section.model_fields[name])
        found = tuple(kind for member in inner for kind in kinds(member))
        if found:
            yield f"{prefix}{name}", found
        elif inner:
            yield from _kinds(inner[0], f"{prefix}{name}.", list(inner[0].model_fields))
