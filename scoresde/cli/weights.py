"""Choice of weights: the raw ones, or the average of a decay or a width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoresde.cli.options import WeightOptions
from scoresde.runs.load import LoadedRun, load_run, load_width

AVERAGES = {"no_ema": "--no-ema", "ema_decay": "--ema-decay", "ema_width": "--ema-width"}
READING = {"variant": "--variant", "dtype": "--dtype", "nearest": "--nearest"}
"""Flags of folders of diffusers."""


def load_chosen(source: Path, options: WeightOptions) -> LoadedRun:
    """Load a model from a run folder or file, with the weights that the options select.

    Raises ValueError for more than one choice, and the errors of ``load_run`` and ``load_width``.
    """
    given = [flag for flag in chosen_flags(options) if flag in AVERAGES.values()]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; give one of them")
    if options.ema_width is not None:
        return load_width(source, options.ema_width)
    how: dict[str, Any] = {name: getattr(options, name) for name in READING}
    return load_run(source, ema=not options.no_ema, decay=options.ema_decay, **how)


def chosen_flags(options: WeightOptions) -> list[str]:
    """The flags given that choose weights."""
    flags = {**AVERAGES, **READING}
    return [flag for name, flag in flags.items() if getattr(options, name) not in (None, False)]


def described_choice(options: WeightOptions) -> dict[str, Any]:
    """Entries of a report that describe the chosen weights."""
    found: dict[str, Any] = {"weights": "raw" if options.no_ema else "ema"}
    for name in ("ema_decay", "ema_width", *READING):
        if (value := getattr(options, name)) not in (None, False):
            found[name] = value
    return found
