"""``scoresde sample``: draws samples from a trained model, one per seed."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import scoresde
from scoresde.cli.choices import labels
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import SampleOptions
from scoresde.cli.weights import chosen_flags, described_choice, load_chosen
from scoresde.config import ConfigError, override
from scoresde.data.foreign import RECORD
from scoresde.parameterization import ScoreModel
from scoresde.progress import silent
from scoresde.runs.draw import DEFAULT_NUM, LARGEST_SEED, MOST, Drawn, draw, places_of
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import configured_search
from scoresde.runs.pictures import Recorder, is_image, pixels, sample_folder, write_samples
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.recipe import as_json, differences, recipe
from scoresde.runs.results import require_writable
from scoresde.runs.said import sentence_condition
from scoresde.runs.samples import configured_sampler, sampling_settings
from scoresde.runs.stopping import Stopping
from scoresde.training.checkpoint import fingerprint

LIKE = ("sampler", "grid", "steps", "denoise")
"""The settings of a picture that are those of the section ``sample`` of a configuration."""


def run(options: SampleOptions, overrides: Mapping[str, Any]) -> int:
    """Draw samples, write them and print a summary.

    With several processes, the first one writes the samples of all. On SIGINT or SIGTERM, writes
    the samples so far and raises SystemExit with code 130 or 143.
    """
    world = World.found()
    before = None if options.like is None else recipe(options.like)
    exactly = before is not None and not overrides and not _changes(options)
    options = options if before is None else _like(options, before)
    if options.checkpoint is None:
        raise ValueError("checkpoint is missing; see scoresde sample --help")
    prompts = chosen_prompts(options)
    num = options.num
    if num is None and options.seeds is None and isinstance(prompts, list):
        num = len(prompts)
    seeds = chosen_seeds(num, options.seeds)
    sample_folder(options.out).require_free(options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    say = partial(print, file=sys.stderr) if world.rank == 0 else lambda line: None
    for note in loaded.notes:
        say(note)
    config = loaded.config
    if before is not None:
        given = {k: before[k] for k in LIKE if before[k] is not None}
        try:
            config = override(config, {"sample": given})
        except ConfigError as error:
            raise ValueError(f"{options.like}: {error}") from None
    sample = override(config, _with_grid(options.grid, overrides)).sample
    label, places = chosen_labels(options, loaded, len(seeds))
    said = chosen_conditions(options, loaded.model, prompts, before or {})
    digest = fingerprint({}, {k: v.cpu() for k, v in loaded.model.state_dict().items()})
    if before is not None and before["model_hash"] not in ("", digest):
        say(f"{options.like}: drawn by other weights, which make other pictures")
    configured_search(sample)  # raises early if the sampler has no grid to optimise
    loaded.model.to(own_device(pick_device(options.device), world))
    require_writable(options.out)
    every, keep = options.preview_every, options.trajectory
    recorder = Recorder(loaded.data, places, options.out, every, keep)
    shown = progress if world.rank == 0 else silent
    with together(world):
        sampler, note = configured_sampler(loaded, sample, world, shown)
        if note:
            say(note)
        started = time.perf_counter()
        with Stopping() as stop:
            drawing: Callable[..., Drawn] = partial(
                draw,
                loaded.model,
                sampler=sampler,
                name=sample.sampler.kind,
                label=label,
                **said,
                compile=options.compile,
                progress=shown,
                stopping=lambda: stop.signal is not None,
            )
            drawn = drawing(seeds=seeds, batch=options.batch, world=world, look=recorder)
            place = (0, 1)
            if before is not None and exactly and len(drawn) and world.rank == 0:
                drawn, place = _to_the_bit(drawn, drawing, options, loaded, before)
    stopped, seconds = stop.signal, time.perf_counter() - started
    if world.rank == 0:
        if stopped is None and len(drawn) - drawn.unfinished < len(seeds):
            stopped = signal.SIGTERM  # another process was stopped
        if len(drawn):
            settings = sampling_settings(loaded, sample) | described_choice(options)
            against = said["negative"]
            settings |= {
                "negative": against and {k: as_json(v) for k, v in against.items()},
                "guidance": said["guidance"],
                "guidance_interval": said["guidance_interval"],
                "model_hash": digest,
                "version": scoresde.__version__,
                "device": loaded.model.device.type,
                "batch": options.batch,
                "compile": options.compile,
                "nfe": drawn.nfe,
                "seconds": seconds,
            }
            settings["images_per_second"] = len(drawn) / seconds
            if exactly:
                settings |= dict(zip(("row", "rows"), place, strict=True))
            if stopped is not None:
                settings |= {"stopped": stopped.name, "unfinished": drawn.unfinished}
            calls = (1 + loaded.model.self_conditioning) * drawn.nfe
            title = f"{loaded.data.name}: {sample.sampler.kind}, {calls:g} network calls"
            npz, extra = options.npz, recorder.files()
            write_samples(
                options.out, drawn, loaded.data, settings, title=title, npz=npz, extra=extra
            )
        if before is not None and list(seeds) == [before["seed"]]:
            say(_compared(drawn, loaded, options) or "the same picture")
        if stopped is None:
            rate = f"{len(drawn) / seconds:.3g} per second"
            line = f"{len(drawn)} samples in {seconds:.1f} s ({rate}), NFE {drawn.nfe:g}"
            line += " of two network calls each" * loaded.model.self_conditioning
            print(f"{line}: {options.out}")
        else:
            say(_kept(stopped, drawn, len(seeds)))
    if stopped is not None:
        raise SystemExit(128 + stopped)
    return 0


def _changes(options: SampleOptions) -> bool:
    """Whether options change what is drawn from the settings of a picture."""
    texts = (options.seeds, options.label, options.classes, options.prompt, options.prompts)
    others = (options.num, options.guidance, options.grid)
    lists = (options.condition, options.negative, options.guidance_interval)
    given = any(value is not None for value in (*texts, *others)) or any(lists)
    return given or bool(chosen_flags(options))


def _compared(drawn: Drawn, loaded: LoadedRun, options: SampleOptions) -> str:
    """How the first sample differs from the picture of --like, in words; "" if it does not."""
    if not len(drawn) or not is_image(drawn.x):
        return f"{options.like}: not compared"
    first = pixels(drawn.x[:1], loaded.data.scaling)[0].permute(1, 2, 0).squeeze(2)
    return differences(Path(str(options.like)), first.numpy())


def _to_the_bit(
    drawn: Drawn,
    drawing: Callable[..., Drawn],
    options: SampleOptions,
    loaded: LoadedRun,
    before: Mapping[str, Any],
) -> tuple[Drawn, tuple[int, int]]:
    """The sample, and its row among how many, drawn anew at its row of a batch where that matters.

    Sums are rounded in another order in a batch of another size.
    """
    row, rows = before["row"] or 0, before["rows"] or 1
    if rows == 1 or not _compared(drawn, loaded, options):
        return drawn, (0, 1)
    many = drawing(seeds=[before["seed"]] * rows, batch=rows)
    if len(many) < rows or many.unfinished:
        return drawn, (0, 1)
    label = None if many.label is None else many.label[row : row + 1]
    some = replace(
        many,
        x=many.x[row : row + 1],
        seeds=many.seeds[:1],
        label=label,
        said=many.said[row : row + 1],
    )
    return some, (row, rows)


def _kept(stopped: signal.Signals, drawn: Drawn, n: int) -> str:
    """One line that says which samples an interrupted call wrote."""
    if not len(drawn):
        return f"{stopped.name} before the first network call: nothing written"
    finished = len(drawn) - drawn.unfinished
    if finished == n:
        return f"{stopped.name} after the last network call: all {n} samples written"
    return (
        f"{stopped.name}: {finished} of {n} samples finished; the last {drawn.unfinished} written "
        f"are unfinished denoised estimates, as {RECORD} records"
    )


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


def chosen_labels(options: SampleOptions, loaded: LoadedRun, n: int) -> tuple[Any, Tensor | None]:
    """Labels of --class or --classes for ``draw``, and the class index of every sample.

    Raises ValueError as ``places_of`` does.
    """
    if options.label is not None and options.classes is not None:
        raise ValueError("--class and --classes: give one of them")
    text = options.label if options.classes is None else options.classes
    label = None if text is None else labels(text, loaded.data.classes or ())
    try:
        return label, places_of(label, loaded.model, n)
    except ValueError as error:
        if options.classes is None:
            raise
        raise ValueError(re.sub("^label", "classes", str(error))) from None


def chosen_prompts(options: SampleOptions) -> str | list[str] | None:
    """The sentence of --prompt or those of --prompts. Raises ValueError for a file without any."""
    if options.prompts is None:
        return options.prompt
    if options.prompt is not None:
        raise ValueError("--prompt and --prompts: give one of them")
    try:
        lines = options.prompts.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {options.prompts} is not UTF-8 text ({error})") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"prompts: {options.prompts} holds no sentence; write one in a line")
    return found


def chosen_conditions(
    options: SampleOptions,
    model: ScoreModel,
    prompts: str | list[str] | None,
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """What the options say, as arguments of ``draw``; what they leave out is as ``before``.

    Raises ValueError for a condition that the model does not have.
    """
    pairs = [text.partition("=") for text in options.condition]
    if stray := ["".join(pair) for pair in pairs if not pair[0] or not pair[1]]:
        raise ValueError(f"condition: write NAME=VALUE, got {stray[0]!r}")
    given = _written(model, "condition", pairs)
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


def _like(options: SampleOptions, before: Mapping[str, Any]) -> SampleOptions:
    """The options, where they say nothing filled with the settings of a picture."""
    seed, found = before["seed"], dict[str, Any]()
    if options.seeds is None:
        found["seeds"] = f"{seed}-{seed + (options.num or 1) - 1}"
    if options.checkpoint is None:
        found["checkpoint"] = Path(before["checkpoint"])
    if not chosen_flags(options):
        found["no_ema"] = before["weights"] == "raw"
        found |= {name: before[name] for name in ("ema_decay", "ema_width")}
    if options.label is None and options.classes is None:
        name = before["label"] if before["class"] is None else before["class"]
        found["label"] = None if name is None else str(name)
    return replace(options, compile=options.compile or before["compile"], **found)


def _with_grid(grid: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``--grid`` to the overrides."""
    if grid is None:
        return dict(overrides)
    if given := [key for key in overrides if key in ("sample.grid", "sample.grid.kind")]:
        raise ValueError(f"--grid and --{given[0]}: give one of them")
    return {"sample.grid.kind": grid, **overrides}
