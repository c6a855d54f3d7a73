"""Lists on the command line, such as ``--samplers heun,dpmpp_2m``."""

from __future__ import annotations

from collections.abc import Iterable

from scoresde.arguments import nearest


def names(flag: str, text: str, known: Iterable[str]) -> list[str]:
    """Split at commas and drop duplicates. Raises ValueError for an unknown name."""
    choices = list(known)
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ValueError(f"{flag}: names nothing; choose from {', '.join(choices)}")
    for name in found:
        if name not in choices:
            raise ValueError(f"{flag}: unknown name {name!r}; {nearest(name, choices)}")
    return found


def counts(flag: str, text: str) -> list[int]:
    """Split at commas, drop duplicates and sort. Raises ValueError unless all are at least 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ValueError(
            f"{flag}: cannot read {text!r}; write numbers separated by commas, such as 5,10,20"
        )
    return sorted({int(part) for part in parts})
