"""What a user may ask: settings of drawing, editing and comparing, with their checks.

The page makes a field of each argument here, and the API takes them by the same names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from scoresde.arguments import (
    Argument,
    Count,
    NonNegative,
    Positive,
    Probability,
    Range,
    arguments,
    check_fields,
    nearest,
)
from scoresde.config import Config, Section, override
from scoresde.config.values import read_value
from scoresde.runs.draw import checked_seeds
from scoresde.runs.load import LoadedRun
from scoresde.runs.said import sentence_condition
from scoresde.runs.written import chosen_seeds, labels

MOST_SEEDS, MOST_CELLS = 256, 64
"""The most samples of a job, and cells of a comparison."""
FOREIGN_GRID = "file"
"""The grid that would read a file which nobody named at the start."""

Asked = TypeVar("Asked", bound="Said")


@dataclass(frozen=True, kw_only=True)
class Said:
    """A model, and what is said of the samples.

    Args:
        model: run folder, exported weights or folder of diffusers, one of those listed.
        seeds: seeds of the samples, such as 0-3 or 1,5,9, each with a stream of noise of its own.
        label: class by name or number; several separated by commas, or all.
        prompt: sentence that says what to draw.
        negative: sentence that says what not to draw, or an object of conditions by name.
        conditions: object of the values of further conditions, by name.
        guidance: scale of guidance; 1 is the plain conditional, 3 follows what is said closely.
        guidance_interval: lowest and highest sigma / alpha of guidance, such as 0.2,5.
    """

    model: str
    seeds: str = "0-3"
    label: str | None = None
    prompt: str | None = None
    negative: Any = None
    conditions: Any = None
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.guidance_interval) not in (0, 2):
            raise ValueError("guidance_interval: need two numbers, such as 0.2,5")
        seeds = chosen_seeds(None, self.seeds)
        if len(seeds) > MOST_SEEDS:
            raise ValueError(
                f"seeds: at most {MOST_SEEDS} at once, got {len(seeds):,}; draw them in parts, or "
                "with scoresde sample"
            )

    def each(self) -> list[int]:
        """The seeds."""
        return list(checked_seeds(chosen_seeds(None, self.seeds), None, 1))

    def told(self, loaded: LoadedRun) -> dict[str, Any]:
        """What is said, as arguments of ``draw`` and ``edit``."""
        negative = _object("negative", self.negative, text=True)
        if isinstance(negative, str):
            negative = {sentence_condition(loaded.model, "negative"): negative}
        label = self.label
        return {
            "label": None if label is None else labels(label, loaded.data.classes or ()),
            "prompt": self.prompt,
            "cond": _object("conditions", self.conditions) or {},
            "negative": negative,
            "guidance": self.guidance,
            "guidance_interval": self.guidance_interval or None,
        }


@dataclass(frozen=True, kw_only=True)
class Sampling(Said):
    """How samples are drawn; what is left out is as the configuration of the model says.

    Args:
        sampler: method of each step.
        grid: times of the steps.
        steps: number of steps.
        denoise: denoise the final state, with one more network call.
        options: settings of the sampler and the grid, such as sampler.eta=0.5 grid.rho=5.
    """

    sampler: str | None = None
    grid: str | None = None
    steps: Annotated[int, Range(ge=1, le=10_000)] | None = None
    denoise: bool | None = None
    options: str = ""

    def section(self, config: Config) -> Section:
        """The section ``sample`` of a configuration with these settings. Raises ValueError."""
        kinds = {"sampler.kind": self.sampler, "grid.kind": self.grid}
        given = kinds | {"steps": self.steps, "denoise": self.denoise} | pairs(self.options)
        changes = {f"sample.{k}": v for k, v in given.items() if v is not None}
        if FOREIGN_GRID in (self.grid, given["grid.kind"]) or "grid.path" in given:
            raise ValueError("grid: one of a file is for the command line; choose another")
        found: Section = override(config, changes).sample
        return found


@dataclass(frozen=True, kw_only=True)
class Editing(Sampling):
    """An edit of pictures; what belongs to other operations is to be left out.

    Args:
        operation: inpaint paints the mask anew and outpaint the margins, colourise colours,
            superres enlarges, deblur sharpens, img2img varies, interpolate goes from one picture
            to the other, invert draws a picture again under what is said.
        fit: crop and resize the pictures to the size of the model, with the nearest shades.
        margins: pixels that outpaint paints at the left, top, right and bottom, such as 4,0,4,0.
        factor: ratio of the sizes of superres.
        blur: standard deviation of the blur of deblur in pixels.
        degrade: blur the picture first.
        strength: share of noise that img2img starts from; 0 returns the picture, 1 forgets it.
        columns: pictures on the way of interpolate, both ends included.
        method: method of the posterior.
        noise: standard deviation of the error of what is known, in levels of a pixel.
        nfe: most network calls of a method.
    """

    operation: str = "inpaint"
    fit: bool = False
    margins: tuple[int, ...] | None = None
    factor: Count | None = None
    blur: Positive | None = None
    degrade: bool | None = None
    strength: Probability | None = None
    columns: Annotated[int, Range(ge=1, le=MOST_SEEDS)] | None = None
    method: str | None = None
    noise: NonNegative | None = None
    nfe: Count | None = None


OWN = ("margins", "factor", "blur", "degrade", "strength", "columns", "method", "noise", "nfe")
"""The settings of ``Editing`` that go to ``edit`` as they are."""


@dataclass(frozen=True, kw_only=True)
class Comparing(Sampling):
    """A table of drawings from the same noise: two settings change, the others stay.

    Args:
        across: setting that changes from column to column.
        columns: its values, separated by commas, or by | where they hold commas.
        down: setting that changes from row to row.
        rows: its values, in the same way.
        reference: measure the error against the exact path of the probability flow.
    """

    across: str = "steps"
    columns: str = "5,10,20"
    down: str = "sampler"
    rows: str = "ddim,heun,dpmpp_2m"
    reference: bool = True

    def cells(self) -> list[list[Sampling]]:
        """The settings of every cell, row by row. Raises ValueError for too many cells."""
        if self.across == self.down:
            raise ValueError(f"down: {self.down} changes from column to column; choose another")
        size = len(values(self.columns)) * len(values(self.rows))
        if size > MOST_CELLS:
            raise ValueError(f"rows: {size} cells; at most {MOST_CELLS}")
        found = [
            [changed(changed(self, self.down, y), self.across, x) for x in values(self.columns)]
            for y in values(self.rows)
        ]
        if len({repr(cell) for row in found for cell in row}) < size:
            raise ValueError("columns and rows: two values are the same; leave one of them out")
        if (samples := sum(len(cell.each()) for row in found for cell in row)) > MOST_SEEDS:
            raise ValueError(f"rows: {size} cells of {samples} samples; at most {MOST_SEEDS}")
        return found


def changed(settings: Sampling, name: str, value: str) -> Sampling:
    """Settings with one changed, which may also be one of the options, such as sampler.eta."""
    found = {field.name: getattr(settings, field.name) for field in fields(Sampling)}
    if "." in name:
        name, value = "options", f"{settings.options} {name}={value}"
    return read(Sampling, {**found, name: value})


def values(text: str) -> list[str]:
    """The values of a list, separated by commas, or by | where they hold commas."""
    found = [part.strip() for part in text.split("|" if "|" in text else ",")]
    if not all(found):
        raise ValueError(f"columns and rows: a value is missing in {text!r}")
    return list(dict.fromkeys(found))


def read(kind: type[Asked], given: Mapping[str, Any]) -> Asked:
    """Settings from JSON values or words; None and "" are left out. Raises ValueError."""
    known, found = arguments_of(kind), dict[str, Any]()
    require_known(given, known)
    for name, value in given.items():
        if value is None or value == "":
            continue
        try:
            of_any = known[name].type is Any
            found[name] = value if of_any else read_value(known[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if "model" not in found:
        raise ValueError("model is missing; choose one of those listed")
    return kind(**found)


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not among the known, with the nearest of them."""
    for name in given:
        if name not in (names := list(known)):
            remedy = nearest(name, names) if names else "leave it out"
            raise ValueError(f"{name}: unknown setting; {remedy}")


def arguments_of(kind: type) -> Mapping[str, Argument]:
    """The settings of a kind by name, with their types and descriptions."""
    return arguments(kind)  # which is cached, and takes no type[...] for the type checker


def pairs(text: str) -> dict[str, str]:
    """The options in words such as "sampler.eta=0.5 grid.rho=5". Raises ValueError."""
    found = [word.partition("=") for word in text.split()]
    for name, sign, value in found:
        if not sign or not value or name.split(".")[0] not in ("sampler", "grid"):
            raise ValueError(
                f"options: write settings such as sampler.eta=0.5 grid.rho=5, got "
                f"{name + sign + value!r:.60}"
            )
    return {name: value for name, _, value in found}


def _object(name: str, value: Any, text: bool = False) -> Any:
    """An object of JSON, which may be written as text. Raises ValueError."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: no JSON object ({error})") from None
    if not (value is None or isinstance(value, Mapping) or (text and isinstance(value, str))):
        raise ValueError(f'{name}: write an object such as {{"mood": "happy"}}, got {value!r:.40}')
    return value


def restored(
    recipe: Mapping[str, Any], model: str | None, sentence: str | None = None
) -> dict[str, Any]:
    """The settings of a picture (``runs.recipe``) as those of ``Sampling``.

    ``sentence`` is the condition of the model that reads prompts.
    """
    said, against = (dict(recipe[name] or {}) for name in ("conditions", "negative"))
    label = recipe["label"] if recipe["class"] is None else recipe["class"]
    inner = {part: dict(recipe[part] or {}) for part in ("sampler", "grid")}
    kinds = {part: values.pop("kind", None) for part, values in inner.items()}
    options = [
        f"{part}.{name}={_word(value)}"
        for part, values in inner.items()
        for name, value in values.items()
        if value is not None
    ]
    return {
        "model": model,
        "seeds": str(recipe["seed"]),
        "label": None if label is None else str(label),
        "prompt": said.pop(sentence, None),
        "negative": against[sentence] if [*against] == [sentence] else _text(against),
        "conditions": _text(said),
        "guidance": float(recipe["guidance"]),
        "guidance_interval": ",".join(f"{x:g}" for x in recipe["guidance_interval"] or ()),
        **kinds,
        "steps": str(recipe["steps"]),
        "denoise": str(recipe["denoise"]).lower(),
        "options": " ".join(options),
    }


def _text(value: Mapping[str, Any]) -> str | None:
    return json.dumps(value) if value else None


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
