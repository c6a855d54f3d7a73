"""Our docstrings are plain text; Sphinx reads reStructuredText."""

from __future__ import annotations

import re

LITERAL = re.compile(r"``.+?``|`.+?`")
ARGUMENT = re.compile(r"(\w+(?:, \w+)*): (.*)")


def as_rst(lines: list[str]) -> list[str]:
    """The same text: indented blocks as they stand, `Args:` as a list, no character special."""
    out: list[str] = []
    rest = iter([*lines, ""])
    arguments = literal = False
    for line in rest:
        indent = len(line) - len(line.lstrip())
        if line == "Args:":
            arguments, literal = True, False
            out += ["", ""]
        elif arguments and indent == 4 and (found := ARGUMENT.fullmatch(line.strip())):
            out.append(f":param {found[1].replace(', ', ' ')}: {plain(found[2])}")
        elif arguments and indent > 4:
            out.append(f"    {plain(line.strip())}")
        elif line and not indent:
            arguments = literal = False
            out.append(plain(line))
        elif indent >= 4 and not literal and out and not out[-1]:
            literal = True
            out += ["::", "", line]
        else:
            out.append(line if literal else plain(line))
    return out


def plain(line: str) -> str:
    """A line of prose, with what is quoted as code."""
    done, parts = 0, []
    for found in LITERAL.finditer(line):
        parts += [escaped(line[done : found.start()]), f"``{found[0].strip('`')}``"]
        done = found.end()
    return "".join([*parts, escaped(line[done:])])


def escaped(text: str) -> str:
    """Nothing in it marks anything."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)
