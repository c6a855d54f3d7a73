"""``scoresde sample``: draws samples from a trained model, one per seed."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from scoresde.cli.choices import labels
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import SampleOptions
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import override
from scoresde.data.foreign import RECORD
from scoresde.progress import silent
from scoresde.runs.draw import DEFAULT_NUM, LARGEST_SEED, MOST, Drawn, draw, places_of
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import configured_search
from scoresde.runs.pictures import Recorder, sample_folder, write_samples
from scoresde.runs.processes import World, own_device, together
from scoresde.runs.results import require_writable
from scoresde.runs.samples import configured_sampler, sampling_settings
from scoresde.runs.stopping import Stopping


def run(options: SampleOptions, overrides: Mapping[str, Any]) -> int:
    """Draw samples, write them and print a summary.

    With several processes, the first one writes the samples of all. On SIGINT or SIGTERM, writes
    the samples so far and raises SystemExit with code 130 or 143.
    """
    world = World.found()
    seeds = chosen_seeds(options.num, options.seeds)
    sample_folder(options.out).require_free(options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    say = partial(print, file=sys.stderr) if world.rank == 0 else lambda line: None
    for note in loaded.notes:
        say(note)
    sample = override(loaded.config, _with_grid(options.grid, overrides)).sample
    label, places = chosen_labels(options, loaded, len(seeds))
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
            drawn = draw(
                loaded.model,
                seeds=seeds,
                sampler=sampler,
                name=sample.sampler.kind,
                label=label,
                batch=options.batch,
                compile=options.compile,
                world=world,
                progress=shown,
                look=recorder,
                stopping=lambda: stop.signal is not None,
            )
    stopped, seconds = stop.signal, time.perf_counter() - started
    if world.rank == 0:
        if stopped is None and len(drawn) - drawn.unfinished < len(seeds):
            stopped = signal.SIGTERM  # another process was stopped
        if len(drawn):
            settings = sampling_settings(loaded, sample) | described_choice(options)
            settings |= {
                "batch": options.batch,
                "compile": options.compile,
                "nfe": drawn.nfe,
                "seconds": seconds,
            }
            settings["images_per_second"] = len(drawn) / seconds
            if stopped is not None:
                settings |= {"stopped": stopped.name, "unfinished": drawn.unfinished}
            title = f"{loaded.data.name}: {sample.sampler.kind}, {drawn.nfe:g} network calls"
            npz, extra = options.npz, recorder.files()
            write_samples(
                options.out, drawn, loaded.data, settings, title=title, npz=npz, extra=extra
            )
        if stopped is None:
            rate = f"{len(drawn) / seconds:.3g} per second"
            line = f"{len(drawn)} samples in {seconds:.1f} s ({rate}), NFE {drawn.nfe:g}"
            print(f"{line}: {options.out}")
        else:
            say(_kept(stopped, drawn, len(seeds)))
    if stopped is not None:
        raise SystemExit(128 + stopped)
    return 0


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


def _with_grid(grid: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``--grid`` to the overrides."""
    if grid is None:
        return dict(overrides)
    if given := [key for key in overrides if key in ("sample.grid", "sample.grid.kind")]:
        raise ValueError(f"--grid and --{given[0]}: give one of them")
    return {"sample.grid.kind": grid, **overrides}
