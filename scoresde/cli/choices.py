"""Lists on the command line, such as ``--samplers heun,dpmpp_2m``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scoresde.arguments import nearest


def names(flag: str, text: str, known: Iterable[str]) -> list[str]:
    """The names between the commas, each once. Raises ValueError with the nearest known one."""
    choices = list(known)
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ValueError(f"{flag}: names nothing; choose from {', '.join(choices)}")
    for name in found:
        if name not in choices:
            raise ValueError(f"{flag}: unknown name {name!r}; {nearest(name, choices)}")
    return found


def counts(flag: str, text: str) -> list[int]:
    """The whole numbers between the commas, each once, in order. Raises ValueError below 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ValueError(f"{flag}: cannot read {text!r}; write such as 5,10,20")
    return sorted({int(part) for part in parts})


def labels(text: str, classes: Sequence[str]) -> str | list[str] | list[int]:
    """Labels as ``draw`` takes them: a class name or "all", else the words between the commas.

    They are numbers if all of them are, else names.
    """
    if text in classes or text == "all":
        return text
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and word.isascii() for word in words):
        return words
    return [int(word) for word in words]
