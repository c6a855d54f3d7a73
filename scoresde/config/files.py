"""Reads configurations from YAML files and command-line values.

Precedence: defaults < file < overrides. A section that changes the ``kind`` of the source with
lower precedence starts from the defaults of the new kind.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import TypeVar

from scoresde.config.schema import Config, ConfigError, Schema
from scoresde.config.sections import Group, Problem, options, plain, read_keys

# A type variable has a default here, and mypy knows none of an argument of its type.
Kind = TypeVar("Kind", bound=Schema, default=Config)
Overrides = Mapping[str, Any]
"""Dotted path to value, such as ``{"train.lr": "1e-4"}``; text is read as the type of the key."""


# No real configuration comes near these limits, and files within them are read fast.
MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
MOST_PROBLEMS = 50


def load_config(
    path: str | Path | None = None,
    overrides: Overrides | None = None,
    schema: type[Kind] = Config,  # type: ignore[assignment]
) -> Kind:
    """Apply a YAML file and then overrides to the defaults.

    Raises ConfigError, listing every problem at once, for a file that is missing or not a
    mapping in YAML, unknown keys, and values of the wrong type or out of range.
    """
    found = {} if path is None else read_yaml(Path(path))
    others = [kind for kind in Schema.__subclasses__() if _has(kind, found)]
    if others and schema not in others:
        raise ConfigError(
            f"{path}: configures a run of kind {others[0].TRAINS}, not of kind {schema.TRAINS}; "
            "give another file"
        )
    return _validated(_merge(to_plain(schema()), renamed(found)), overrides or {}, path, schema)


def _has(schema: type[Schema], found: Mapping[str, Any]) -> bool:
    """Whether a schema has all keys of a file."""
    return found.keys() <= {field.name for field in fields(schema)}


def config_from(
    found: Mapping[str, Any],
    source: str | Path,
    schema: type[Kind] = Config,  # type: ignore[assignment]
) -> Kind:
    """Read the configuration stored in a checkpoint. Raises ConfigError, naming the source."""
    return _validated(_merge(to_plain(schema()), renamed(found)), {}, source, schema)


def to_plain(config: Schema) -> dict[str, Any]:
    """Convert to JSON values, which ``config_from`` reads back."""
    return {field.name: plain(getattr(config, field.name)) for field in fields(config)}


def override(config: Kind, overrides: Overrides) -> Kind:
    """Return the configuration with some values changed. Raises ConfigError."""
    return _validated(to_plain(config), overrides, None, type(config))


def to_yaml(config: Schema) -> str:
    """Format as YAML; reading it back gives an equal configuration."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, default_flow_style=None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file gives {}. Raises ConfigError."""
    try:
        found = yaml.load(_text(path), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; give a YAML configuration") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_where(error)}; correct the YAML") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; see configs/") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: expected 'key: value' lines, found a {type(found).__name__}; see configs/"
        )
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes; give a YAML configuration")
    return found.decode()


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 2e-4 as a number.

    It also refuses aliases that are recursive or expand to very many values. Values that do not
    fit their tag raise a YAML error with their line, instead of SafeLoader's Python errors.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise _refused(f"its aliases make more than {MOST_VALUES:,} values", node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            raise _refused(f"{str(node.value)[:40]!r} is no {node.tag[-20:]}", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key that is no word", key)
            if key.value in seen:
                raise _refused(f"duplicate key {key.value!r}", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values below a node; an alias counts each time it is used."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # so that recursive aliases exceed the limit
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        parts = [] if isinstance(node, yaml.ScalarNode) else inner
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


# PyYAML implements YAML 1.1: a float needs a point and a signed exponent, 016 is octal, and 1:30
# is in base 60. This loader reads 2e-4 as a float, and leaves 016 and 1:30 as text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:int"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _where(error: yaml.YAMLError) -> str:
    """Format a YAML error as ', line 3: problem'."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = "" if mark is None else f", line {mark.line + 1}"
    return f"{line}: {' '.join((problem or str(error)).split())}"


def _validated(
    base: Any, overrides: Overrides, path: str | Path | None, schema: type[Kind]
) -> Kind:
    problems: list[Problem] = []
    tree = _merge(base, _nested(overrides))
    root = Group((schema,))
    found = read_keys(root, None, tree, (), problems)
    if not problems:
        try:
            return schema(**found)
        except ConfigError as error:
            problems.append(Problem((), str(error)))
    lines = [_line(problem, overrides, path, root) for problem in problems[:MOST_PROBLEMS]]
    more = len(problems) - len(lines)
    raise ConfigError("; ".join(lines + [f"and {more} more"] * (more > 0)))


def _line(problem: Problem, overrides: Overrides, file: str | Path | None, root: Group) -> str:
    """Format 'file.yaml: train.lr: must be ...'; the line of an override names no file."""
    name, text = ".".join(_printable(str(part))[:60] for part in problem.place), problem.text
    if problem.unknown and "did you mean" not in text:
        # Suggest the same name in another section.
        elsewhere = [
            path for path, _ in options(root) if path.split(".")[-1] == name.split(".")[-1]
        ]
        if elsewhere and "that has it" not in text:
            text = f"unknown key; did you mean {elsewhere[0]!r}?"
    file = None if name in overrides else file
    source = ": ".join(str(part) for part in (file, name) if part) or "configuration"
    return f"{source}: {_printable(text)}"


def _printable(text: str) -> str:
    """Escape text that contains unprintable characters, such as line breaks."""
    return text if text.isprintable() else ascii(text)


# Older versions ------------------------------------------------------------------------------


_BETAS = {"beta_start": "start", "beta_end": "end"}


def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the keys that older versions wrote under their names of today.

    sde.beta_start and beta_end of discrete_vp are those of its table, linear; sample.sampler.large
    of ddpm and ddim is its variance.
    """
    found = dict(found)
    sde, sample = found.get("sde"), found.get("sample")
    sampler = sample.get("sampler") if isinstance(sample, dict) else None
    sampler = sampler if isinstance(sampler, dict) else {}
    if isinstance(sde, dict) and sde.get("kind") == "discrete_vp" and "table" not in sde:
        ends = {new: sde[old] for old, new in _BETAS.items() if old in sde}
        kept = {key: value for key, value in sde.items() if key not in _BETAS}
        found["sde"] = kept | ({"table": {"kind": "linear", **ends}} if ends else {})
    chain = sampler.get("kind") in ("ddpm", "ddim") and "variance" not in sampler
    if chain and isinstance(sampler.get("large"), bool):
        kept = {key: value for key, value in sampler.items() if key != "large"}
        noisy = sampler["kind"] == "ddpm" or sampler.get("eta", 0) != 0
        variance = "large" if sampler["large"] and noisy else "small"  # without noise no matter
        found["sample"] = {**found["sample"], "sampler": {**kept, "variance": variance}}
    return found


# Merging ------------------------------------------------------------------------------------


def _merge(base: Any, change: Any) -> Any:
    """Merge ``change`` into ``base`` section by section; a plain name means {kind: name}."""
    if not isinstance(base, dict):
        return change
    if change is None:  # a section whose lines are all commented out
        return base
    if isinstance(change, str) and "kind" in base:
        change = {"kind": change}
    if not isinstance(change, dict):
        return change
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    return base | {key: _merge(base.get(key), value) for key, value in change.items()}


def _nested(overrides: Overrides) -> dict[str, Any]:
    """Nest {"a.b": 1, "a.c": 2} as {"a": {"b": 1, "c": 2}}; a name means {kind: name}."""
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, name = path.split(".")
        place = tree
        for key in parents:
            node = place.get(key, {})
            place[key] = dict(node) if isinstance(node, Mapping) else {"kind": node}
            place = place[key]
        value = None if value in ("null", "None") else value
        if isinstance(below := place.get(name), dict):
            value = below | (dict(value) if isinstance(value, Mapping) else {"kind": value})
        place[name] = value
    return tree
