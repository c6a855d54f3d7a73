"""``scoresde sample``: draws samples from a trained model, one per seed."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import SampleOptions
from scoresde.cli.said import chosen_conditions, with_grid
from scoresde.cli.weights import READING, chosen_flags, described_choice, load_chosen
from scoresde.config import ConfigError, override
from scoresde.data.foreign import RECORD
from scoresde.progress import silent
from scoresde.runs.draw import Drawn, draw, places_of
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import configured_search
from scoresde.runs.pictures import Recorder, is_image, pixels, sample_folder, write_samples
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.recipe import differences, recipe
from scoresde.runs.results import require_writable
from scoresde.runs.samples import configured_sampler, drawn_settings
from scoresde.runs.stopping import Stopping
from scoresde.runs.written import chosen_seeds, labels

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
    sample = override(config, with_grid(options.grid, overrides)).sample
    label, places = chosen_labels(options, loaded, len(seeds))
    said = chosen_conditions(options, loaded.model, prompts, before or {})
    if before is not None and before["model_hash"] not in ("", loaded.digest):
        say(f"{options.like}: drawn by other weights, which make other pictures")
    configured_search(sample)  # raises early if the sampler has no grid to optimise
    loaded.model.to(own_device(pick_device(options.device), world))
    require_writable(options.out)
    every, keep = options.preview_every, options.trajectory
    recorder = Recorder(loaded.data, places, options.out, every, keep, loaded.model)
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
            settings = drawn_settings(
                loaded, sample, said, drawn, seconds, batch=options.batch, compile=options.compile
            )
            settings |= described_choice(options)
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


def _like(options: SampleOptions, before: Mapping[str, Any]) -> SampleOptions:
    """The options, where they say nothing filled with the settings of a picture."""
    seed, found = before["seed"], dict[str, Any]()
    if options.seeds is None:
        found["seeds"] = f"{seed}-{seed + (options.num or 1) - 1}"
    if options.checkpoint is None:
        found["checkpoint"] = Path(before["checkpoint"])
    if not chosen_flags(options):
        found["no_ema"] = before["weights"] == "raw"
        found |= {name: before[name] for name in ("ema_decay", "ema_width", *READING)}
    if options.label is None and options.classes is None:
        name = before["label"] if before["class"] is None else before["class"]
        found["label"] = None if name is None else str(name)
    return replace(options, compile=options.compile or before["compile"], **found)
