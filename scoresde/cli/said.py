"""What the flags say of samples: conditions and guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scoresde.cli.options import SaidOptions
from scoresde.parameterization import ScoreModel
from scoresde.runs.draw import places_of
from scoresde.runs.said import sentence_condition
from scoresde.runs.written import labels


def chosen_conditions(
    options: SaidOptions,
    model: ScoreModel,
    prompts: str | list[str] | None,
    before: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """What the options say, as arguments of ``draw``; what they leave out is as ``before``.

    Raises ValueError for a condition that the model does not have.
    """
    given = named_values(model, "condition", options.condition)
    if "label" in given and "label" not in model.conditions:
        raise ValueError("condition: give the class of this model by --class")
    against = [
        pair
        if pair[1] and pair[0].isidentifier()
        else (sentence_condition(model, "negative"), "=", "".join(pair))
        for pair in (text.partition("=") for text in options.negative)
    ]
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
        "negative": _written(model, "negative", against) or guided.get("negative"),
        "guidance": float(scale),
        "guidance_interval": None if interval is None else tuple(interval),
    }


def named_values(model: ScoreModel, option: str, texts: Sequence[str]) -> dict[str, Any]:
    """The values, by name, of NAME=VALUE. Raises ValueError, naming the option."""
    pairs = [text.partition("=") for text in texts]
    if stray := ["".join(pair) for pair in pairs if not pair[0] or not pair[1]]:
        raise ValueError(f"{option}: write NAME=VALUE, got {stray[0]!r}")
    return _written(model, option, pairs)


def _written(
    model: ScoreModel, option: str, pairs: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """The values, by name, of NAME=VALUE. Raises ValueError, naming the option."""
    given: dict[str, Any] = {}
    for name, _, text in pairs:
        if name in given:
            raise ValueError(f"{option}: {name} is given twice; give it once")
        try:
            if name in model.conditions:
                given[name] = model.conditions[name].written(text)
            elif name == "label" and model.data.classes:
                place = places_of(labels(text, model.data.classes), model, 1)
                given[name] = None if place is None else int(place)
            else:
                model.read(**{name: text})  # says so
        except ValueError as error:
            where = f"{option}: {name}" if name in model.conditions else option
            raise ValueError(f"{where}: {error}") from None
    return given


def with_grid(grid: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``--grid`` to the overrides."""
    if grid is None:
        return dict(overrides)
    if given := [key for key in overrides if key in ("sample.grid", "sample.grid.kind")]:
        raise ValueError(f"--grid and --{given[0]}: give one of them")
    return {"sample.grid.kind": grid, **overrides}
