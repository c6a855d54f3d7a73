"""Seeds and classes as a user writes them, on the command line or on a page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scoresde.runs.draw import DEFAULT_NUM, LARGEST_SEED, MOST


def chosen_seeds(num: int | None, text: str | None) -> Sequence[int]:
    """Parse seeds such as "0-63" or "1,5,9"; by default 0 to num - 1. Raises ValueError."""
    if num is not None and not 1 <= num <= MOST:
        raise ValueError(f"num: need 1 to {MOST:,}, got {num}")
    if text is None:
        return range(num or DEFAULT_NUM)
    seeds = [seed for part in text.split(",") for seed in _range(part.strip())]
    if len(seeds) > MOST:
        raise ValueError(f"seeds: need at most {MOST:,}, got {len(seeds):,}")
    if num is not None and num != len(seeds):
        raise ValueError(f"num: {num} samples but {len(seeds)} seeds; leave one of them out")
    return seeds


def _range(part: str) -> range:
    found = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part)
    if found is None:
        raise ValueError(f"seeds: cannot read {part!r}; write seeds such as 0-63 or 1,5,9")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"seeds: {part} runs backwards; write {last}-{first}")
    if last > LARGEST_SEED:
        raise ValueError(f"seeds: {last} has more than 64 bits; give less than {2**64}")
    if last - first >= MOST:
        raise ValueError(f"seeds: {part} holds more than {MOST:,}; give fewer")
    return range(first, last + 1)


def labels(text: str, classes: Sequence[str]) -> str | list[str] | list[int]:
    """Parse labels for ``draw``: a class name, "all", or a list separated by commas.

    The list holds numbers if every item is a number, otherwise names.
    """
    if text in classes or text == "all":
        return text
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and word.isascii() for word in words):
        return words
    return [int(word) for word in words]
