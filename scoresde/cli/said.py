"""What the flags say of samples: seeds, conditions and guidance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scoresde.cli.options import SaidOptions
from scoresde.parameterization import ScoreModel
from scoresde.runs.draw import DEFAULT_NUM, LARGEST_SEED, MOST
from scoresde.runs.recipe import as_json
from scoresde.runs.said import sentence_condition


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


def chosen_conditions(
    options: SaidOptions,
    model: ScoreModel,
    prompts: str | list[str] | None,
    before: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """What the options say, as arguments of ``draw``; what they leave out is as ``before``.

    Raises ValueError for a condition that the model does not have.
    """
    given = named_values(options.condition, model)
    cond = {**(before.get("conditions") or {}), **given}
    if prompts is not None:
        name = sentence_condition(model, "prompt")
        if name in given:
            raise ValueError(f"prompt: {name} is given by --condition too; give it once")
        cond.pop(name, None)
    scale = before.get("guidance", 1.0) if options.guidance is None else options.guidance
    guided = before if scale != 1 else {}
    interval = options.guidance_interval or guided.get("guidance_interval")
    if interval is not None and len(interval) != 2:
        raise ValueError("guidance_interval: need two numbers, such as 0.2,5")
    return {
        "prompt": prompts,
        "cond": cond,
        "negative": guided.get("negative") if options.negative is None else options.negative,
        "guidance": float(scale),
        "guidance_interval": None if interval is None else tuple(interval),
    }


def named_values(
    texts: Sequence[str], model: ScoreModel, flag: str = "condition"
) -> dict[str, Any]:
    """The values of NAME=VALUE, by name. Raises ValueError, naming the flag."""
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{flag}: write NAME=VALUE, got {text!r}")
        if name in given:
            raise ValueError(f"{flag}: {name} is given twice; give it once")
        if name == "label" and name not in model.conditions:
            raise ValueError(f"{flag}: give the class of this model by --class")
        if name not in model.conditions:
            model.read(**{name: value})  # says so
        try:
            given[name] = model.conditions[name].written(value)
        except ValueError as error:
            raise ValueError(f"{flag}: {name}: {error}") from None
    return given


def as_json_values(model: ScoreModel, negative: Any) -> dict[str, Any] | None:
    """What is said against, by name, as JSON."""
    if isinstance(negative, str):
        return {sentence_condition(model, "negative"): negative}
    return None if negative is None else {k: as_json(v) for k, v in negative.items()}


def with_grid(grid: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``--grid`` to the overrides."""
    if grid is None:
        return dict(overrides)
    if given := [key for key in overrides if key in ("sample.grid", "sample.grid.kind")]:
        raise ValueError(f"--grid and --{given[0]}: give one of them")
    return {"sample.grid.kind": grid, **overrides}
