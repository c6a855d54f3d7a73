"""Command-line flags: options of a command, and overrides of configuration keys.

Both are arguments of constructors (``scoresde.arguments``), so one parser checks their values and
one help page describes them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from scoresde.arguments import EMPTY, Argument, arguments, nearest, unwrapped
from scoresde.config import Config, Schema, Section, load_config
from scoresde.config.sections import Group, contents, default, keys, options
from scoresde.config.values import NO, YES, is_path, is_sequence, read_value
from scoresde.registry import Table, summary

Options = TypeVar("Options")
WIDTH, COLUMN = 80, 30
KINDS = ("positional", "repeated")


class UsageError(ValueError):
    """Invalid command line; the message is one line with the flag and the remedy."""


class Flag(NamedTuple):
    """Target of a flag: an option of the command, or a key of the configuration."""

    argument: Argument
    key: str
    configures: bool = False


def parse(
    command: type[Options],
    argv: Sequence[str],
    prog: str,
    sections: Sequence[str] = (),
    schema: type[Schema] = Config,
) -> tuple[Options, dict[str, Any]]:
    """Parse the options of a command and the overrides of ``sections`` of a configuration.

    Prints help and raises SystemExit(0) for --help. Raises UsageError for bad flags.
    """
    flags = _flags(command, sections, schema)
    found: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    words: list[str] = []
    asks_help = False
    for name, values in _groups(argv):
        if name in ("-h", "--help"):
            asks_help = True
        elif not name:
            words += values
        else:
            flag, positive = _find(name, flags, prog)
            value, rest = _value(name, values, flag, positive)
            target = overrides if flag.configures else found
            if _repeated(flag.argument):
                value = [*target.get(flag.key, ()), value]
            target[flag.key] = value
            words += rest
    if asks_help:
        config = load_config(found.get("config"), overrides, schema)
        print(_page(command, prog, config, sections))
        raise SystemExit(0)
    return _made(command, found, words, prog), overrides


def spelling(
    command: type, sections: Sequence[str], name: str, schema: type[Schema] = Config
) -> str | None:
    """The flag that sets this option or configuration key; None if the command has none."""
    for plain, flag in _flags(command, sections, schema).items():
        if flag.key == name:
            return f"--{_dashes(plain)}"
    return None


def _flags(command: type, sections: Sequence[str], schema: type[Schema]) -> dict[str, Flag]:
    own = _own(command).values()
    found = {_spelling(a): Flag(a, a.name) for a in own}
    for path, argument in options(Group((schema,))):
        if path.split(".")[0] in sections:
            found.setdefault(path, Flag(argument, path, True))
            if path.endswith(".kind"):  # --sde vp is --sde.kind vp
                found.setdefault(path.removesuffix(".kind"), Flag(argument, path, True))
    return found


def _groups(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the values that follow it; --flag=value means --flag value."""
    flag, values = "", list[str]()
    for token in argv:
        if re.match(r"--?[a-zA-Z]", token):
            yield flag, values
            flag, _, value = token.partition("=")
            values = [value] if "=" in token else []
        else:
            values.append(token)
    yield flag, values


def _find(name: str, flags: Mapping[str, Flag], prog: str) -> tuple[Flag, bool]:
    """Look up a flag; the second result is False for --a.no-b, which sets a boolean to false."""
    plain = name.removeprefix("--").replace("-", "_")
    if name.startswith("--") and plain in flags:
        return flags[plain], True
    positive = re.sub(r"(^|\.)no_(\w+)$", r"\1\2", plain)
    if positive in flags and _kind(flags[positive].argument) is bool:
        return flags[positive], False
    ends = [flag for flag in flags if flag.endswith(f".{plain}")]
    hint = nearest(plain, flags) if len(ends) != 1 else f"did you mean '{ends[0]}'?"
    if not hint.startswith("did"):
        raise UsageError(f"{name}: unknown option; see {prog} --help")
    close = hint.removeprefix("did you mean '").removesuffix("'?")
    raise UsageError(f"{name}: unknown option; did you mean '--{_dashes(close)}'?")


def _value(name: str, values: list[str], flag: Flag, positive: bool) -> tuple[Any, list[str]]:
    """The value of a flag, and the remaining words, which do not belong to it."""
    kind = _kind(flag.argument)
    several = is_sequence(kind) and not _repeated(flag.argument)
    if "" in values and not several:
        raise UsageError(f"{name}: empty; give a value, or leave it out")
    if several and _paths(kind):
        if not values:
            raise UsageError(f"{name}: takes one path or more, got none")
        return values, []
    if several and values == ["null"]:
        return "null", []
    if several:
        return [part for v in values for part in v.strip("[]() ").split(",") if part.strip()], []
    if kind is bool:
        says = bool(values) and positive and values[0].lower() in (*YES, *NO)
        rest = values[1:] if says else values
        if rest and flag.configures:
            takes = "true or false" if positive else "no value"
            raise UsageError(f"{name}: takes {takes}, got {' '.join(values)}")
        return values[0] if says else positive, rest
    if not values or (len(values) > 1 and flag.configures):
        got = " ".join(values) or f"none; one that begins with a dash is written {name}=-x"
        raise UsageError(f"{name}: takes one value, got {got}")
    return values[0], values[1:]


def _made(
    command: type[Options], found: Mapping[str, Any], words: list[str], prog: str
) -> Options:
    """Build the options. Raises UsageError for bad values, missing options and stray words."""
    values: dict[str, Any] = {}
    for name, argument in _own(command).items():
        if _positional(argument) and words:
            several = is_sequence(_kind(argument))
            values[name], words = (words, []) if several else (words[0], words[1:])
        elif name in found:
            values[name] = found[name]
        elif argument.default is EMPTY:
            raise UsageError(f"--{_dashes(name)} is missing; see {prog} --help")
        else:
            continue
        try:
            values[name] = read_value(argument, values[name])
        except ValueError as error:
            raise UsageError(f"--{_dashes(_spelling(argument))}: {error}") from None
        if is_path(_kind(argument)):
            values[name] = Path(values[name])
        elif _paths(_kind(argument)):
            values[name] = tuple(map(Path, values[name]))
    if words:
        raise UsageError(f"{words[0]}: unexpected argument; see {prog} --help")
    return command(**values)


# Help -------------------------------------------------------------------------------------------


def _page(command: type, prog: str, config: Schema, sections: Sequence[str]) -> str:
    """Help page of a command; its values come from the --config file and the other flags."""
    own = _own(command).values()
    about = " ".join((command.__doc__ or "").split("Args:")[0].split())
    place = "".join(
        f" [{a.name.upper()}{'...' * is_sequence(_kind(a))}]" for a in own if _positional(a)
    )
    lines = [f"usage: {prog}{place} [OPTIONS]", "", *textwrap.wrap(about, WIDTH), "", "options:"]
    for argument in own:
        value = None if argument.default is EMPTY else argument.default
        name = argument.name.upper() if _positional(argument) else f"--{_spelling(argument)}"
        lines += _entry(name, argument, value, required=argument.default is EMPTY)
    lines += _entry("--help", Argument("help", bool, False, "show this page"), False)
    if sections:
        of_file = "config" in _own(command)
        values = ", here with the values of --config and the flags:"
        values = values if of_file else "; the values of the run replace these defaults:"
        lines += ["", f"keys of the configuration{values}"]
        for name, argument in keys(Group((type(config),))).items():
            if name in sections:
                lines += _section_lines(f"--{name}", argument, getattr(config, name))
    return "\n".join(lines)


def _section_lines(name: str, argument: Argument, value: Any) -> Iterator[str]:
    source = contents(argument)
    if not isinstance(value, Section):
        yield from _entry(name, argument, value)
        return
    if isinstance(source, Table):
        yield ""
        now = _now(argument, str(value.kind))
        text = f"{argument.about}: {', '.join(source)} ({now})"
        about = summary(source[str(value.kind)])
        yield from _columns(f"{name} KIND", f"{text}; {value.kind}: {about}")
        known = keys(source, value.kind)
    else:
        yield f"\n{name.removeprefix('--')}: {argument.about}"
        known = keys(source) if isinstance(source, Group) else {}
    for key, inner in known.items():
        yield from _section_lines(f"{name}.{key}", inner, value.values[key])


def _entry(name: str, argument: Argument, value: Any, *, required: bool = False) -> Iterator[str]:
    """Lines of one option: flag, description, range or choices, and current value."""
    kind, limits = unwrapped(argument.type)
    source = contents(argument)
    if kind is bool:
        if value:
            before, dot, last = name.removeprefix("--").rpartition(".")
            name = f"--{before}{dot}no-{last}"
        about = f"do not {argument.about.split(';')[0]}" if value else argument.about
        yield from _columns(name, about)
        return
    facts = [limit.words(argument.name) for limit in limits]
    if is_sequence(kind) and get_args(kind):
        facts += [limit.words("each") for limit in unwrapped(get_args(kind)[0])[1]]
    choices: Sequence[Any] = list(source) if isinstance(source, Table) else ()
    if get_origin(kind) is Literal:
        choices = get_args(kind)
    facts += ["one of " + ", ".join(map(str, choices))] if choices else []
    if required or value is not None:
        facts.append("required" if required else _now(argument, value))
    text = f"{argument.about} ({'; '.join(filter(None, facts))})" if any(facts) else argument.about
    placed = not name.startswith("--")
    metavar = "NAME=VALUE" if _repeated(argument) else _metavar(kind, choices)
    yield from _columns(name if placed else f"{name} {metavar}", text)


def _columns(left: str, text: str) -> Iterator[str]:
    left = f"  {_dashes(left)}"
    text = re.sub(r"\bNone\b", "null", text)
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False)
    if len(left) > COLUMN - 2:
        yield left
        left = ""
    yield f"{left:<{COLUMN}}{lines[0] if lines else ''}".rstrip()
    yield from (" " * COLUMN + line for line in lines[1:])


def _metavar(kind: Any, choices: Sequence[Any]) -> str:
    if choices:
        return "NAME"
    if is_sequence(kind):
        return "PATH..." if _paths(kind) else "LIST"
    return "PATH" if is_path(kind) else {int: "N", float: "NUMBER"}.get(kind, "TEXT")


def _now(argument: Argument, value: Any) -> str:
    """Current value of an option, marked "default", or "now" if a file or flag changed it."""
    return f"{'default' if value == default(argument) else 'now'}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# What an option is ------------------------------------------------------------------------------


def _own(command: type) -> Mapping[str, Argument]:
    """Options of a command: required ones first, then its own, then the shared ones."""
    shared = {
        name for base in command.__mro__[1:] for name in vars(base).get("__annotations__", ())
    }
    found = arguments(command)
    return dict(
        sorted(found.items(), key=lambda item: (item[1].default is not EMPTY, item[0] in shared))
    )


def _kind(argument: Argument) -> Any:
    return unwrapped(argument.type)[0]


def _paths(kind: Any) -> bool:
    """Whether the values of a flag are paths, which may hold commas."""
    return is_sequence(kind) and is_path(get_args(kind)[0])


def _notes(argument: Argument) -> tuple[Any, ...]:
    return getattr(argument.type, "__metadata__", ())


def _positional(argument: Argument) -> bool:
    return "positional" in _notes(argument)


def _repeated(argument: Argument) -> bool:
    return "repeated" in _notes(argument)


def _spelling(argument: Argument) -> str:
    """Name of the flag: the argument's name, or its note where that is a Python keyword."""
    words = (n for n in _notes(argument) if isinstance(n, str) and n not in KINDS)
    return next(words, argument.name)


def _dashes(name: str) -> str:
    flag, space, value = name.partition(" ")
    return f"{flag.replace('_', '-')}{space}{value}"
