"""``scoresde sample``: draws from a trained model, each a function of its own seed."""

from __future__ import annotations

import math
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.atomic import writing
from scoresde.cli.console import Advance, pick_device, progress
from scoresde.cli.options import SampleOptions
from scoresde.cli.report import Stopping
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import Config, build_sampler, override, to_plain
from scoresde.data import Scaling
from scoresde.data.foreign import RECORD
from scoresde.parameterization import ScoreModel
from scoresde.registry import STEPS, Sampler
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import Wanted, find_grid, grid_file, kept_grid, wanted
from scoresde.runs.pictures import Make, require_free, save_preview, trajectory_files, write
from scoresde.runs.watch import Seen, Stopped, Watch, require_finite
from scoresde.samplers import Grid, per_sample_noise, starting_noise

DEFAULT_NUM = 64
MOST = 10_000_000


@dataclass(frozen=True)
class Job:
    """What is to be drawn: the options, the model with its settings, and a label a seed."""

    options: SampleOptions
    loaded: LoadedRun
    config: Config
    seeds: list[int]
    labels: Tensor | None


def run(options: SampleOptions, overrides: Mapping[str, Any]) -> int:
    """Draw, write and report.

    After SIGINT or SIGTERM what there is is written, and SystemExit with 130 or 143 raised.
    """
    job = prepared(options, overrides)
    want = wanted(job.config.sample)
    grid = None if want is None else optimised_grid(job.loaded, want)
    sampler = build_sampler(job.config.sample, grid)
    film = Film(options, job.loaded.data.scaling, job.labels)
    started = time.perf_counter()
    with Stopping() as stop, progress(len(job.seeds), "samples") as advance:
        drawn = draw(
            job.loaded.model,
            sampler,
            job.loaded.data.shape,
            job.seeds,
            job.labels,
            name=job.config.sample.sampler.kind,
            batch=options.batch,
            advance=advance,
            look=film.look,
            stopping=lambda: stop.signal is not None,
        )
    seconds = time.perf_counter() - started
    if len(drawn.x):
        _write(job, drawn, film, seconds, stop.signal)
    if stop.signal is None:
        return 0
    print(_kept(job, drawn, stop.signal), file=sys.stderr)
    raise SystemExit(128 + stop.signal)


def prepared(options: SampleOptions, overrides: Mapping[str, Any]) -> Job:
    """The model on its device, with everything checked that can be before it is called."""
    seeds = chosen_seeds(options.num, options.seeds)
    _check(options)
    require_free(options.out, options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, _with_grid(options.grid, overrides))
    labels = chosen_labels(
        options, loaded.data.classes if config.conditional else None, len(seeds)
    )
    loaded.model.to(pick_device(options.device))
    _require_trained(config, labels)
    _require_writable(options.out)
    return Job(options, loaded, config, seeds, labels)


def _write(
    job: Job, drawn: Drawn, film: Film, seconds: float, stopped: signal.Signals | None
) -> None:
    """The samples with their settings; and a line about them."""
    n, out = len(drawn.x), job.options.out
    settings = _settings(job.options, job.loaded, job.config) | {
        "nfe": drawn.nfe,
        "seconds": seconds,
        "images_per_second": n / seconds,
    }
    if stopped is not None:
        settings |= {"stopped": stopped.name, "unfinished": drawn.unfinished}
    write(
        out,
        drawn.x,
        job.loaded.data.scaling,
        job.seeds[:n],
        None if job.labels is None else job.labels[:n],
        settings,
        npz=job.options.npz,
        extra=film.files(),
    )
    rate = f"{n / seconds:.3g} images/s"
    print(f"{n} samples in {seconds:.1f} s ({rate}), NFE {drawn.nfe:g}: {out}")


def _kept(job: Job, drawn: Drawn, stopped: signal.Signals) -> str:
    """What a stop has left."""
    if not len(drawn.x):
        return f"{stopped.name} before the first network call: nothing written"
    return (
        f"{stopped.name}: {len(drawn.x) - drawn.unfinished} of {len(job.seeds)} samples finished, "
        f"{drawn.unfinished} more as denoised so far (the last ones; {RECORD} says so)"
    )


def optimised_grid(loaded: LoadedRun, want: Wanted) -> Grid:
    """The grid kept for the model, or one found now, which is said."""
    path = grid_file(loaded, want)
    if (kept := kept_grid(loaded, want)) is not None:
        print(f"grid: {path}", file=sys.stderr)
        return kept
    with progress(
        want.settings.budget, f"{want.kind}: network calls to optimise the grid"
    ) as tell:
        grid, notes = find_grid(loaded, want, tell)
    gain = math.exp(notes["log_error_before"] - notes["log_error"])
    print(
        f"grid: found in {notes['network_calls']} network calls, {gain:.2g} times the accuracy of "
        f"the best standard grid on {want.settings.starts} paths: {path}",
        file=sys.stderr,
    )
    return grid


@dataclass(frozen=True)
class Drawn:
    """Samples (N, ...) on the host, and the network calls each of them took, on average.

    The last ``unfinished`` of them are what a sampler that was stopped thought of them so far.
    """

    x: Tensor
    nfe: float
    unfinished: int = 0


def draw(
    model: ScoreModel,
    sampler: Sampler,
    shape: Sequence[int],
    seeds: Sequence[int],
    labels: Tensor | None = None,
    *,
    name: str = "sampler",
    batch: int = DEFAULT_NUM,
    advance: Advance = lambda n, note="": None,
    look: Callable[[int, Seen], None] = lambda first, seen: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Drawn:
    """One sample of ``shape`` a seed, from its own stream of noise, the starting noise included.

    So a sample does not depend on the others in its batch (those of black-box solvers do, see
    ``build``). ``labels`` (N,) or None for none. ``look`` is shown every network call, with the
    place of the first sample of its batch; ``stopping`` is asked before each. Raises ValueError
    unless batch >= 1, RuntimeError for samples that are not finite.
    """
    if batch < 1:
        raise ValueError(f"--batch: need at least 1, got {batch}")
    device = model.device
    parts: list[Tensor] = [torch.empty(0, *shape)]
    total, unfinished, started, calls = 0, 0, time.perf_counter(), 0
    for first in range(0, len(seeds), batch):
        some = seeds[first : first + batch]
        label = None if labels is None else labels[first : first + batch].to(device)

        def seen(call: Seen, first: int = first) -> None:
            nonlocal calls
            calls += 1
            advance(0, f"call {call.call}, {calls / (time.perf_counter() - started):.3g} calls/s")
            look(first, call)

        watch, noise = Watch(name, seen, stopping), per_sample_noise(some)
        x = starting_noise(model.sde, torch.empty(len(some), *shape, device=device), noise)
        try:
            end = sampler(watch.over(model.denoiser(label=label)), x, noise, some[0])
        except Stopped:
            if watch.last is None:
                break
            end, unfinished = watch.last.x0, len(some)
        parts.append(end.cpu())
        total += watch.count * len(some)
        advance(len(some))
        if unfinished:
            break
    drawn = torch.cat(parts)
    require_finite(drawn, name, "at the end")
    return Drawn(drawn, total / max(len(drawn), 1), unfinished)


@dataclass
class Film:
    """Previews of the first batch while it is sampled, and its trajectory."""

    options: SampleOptions
    scaling: Scaling
    labels: Tensor | None
    calls: list[Seen] = field(default_factory=list)

    def look(self, first: int, seen: Seen) -> None:
        """Draw and keep what the options ask for."""
        every = self.options.preview_every
        if first:
            return
        if every is not None and seen.call % every == 0:
            save_preview(self.options.out, seen, self.scaling, self.labels)
        if self.options.trajectory:
            t = seen.t.double().cpu()
            self.calls.append(Seen(seen.call, t, seen.x.cpu(), seen.x0.cpu()))

    def files(self) -> dict[str, Make]:
        """What to write at the end."""
        if not self.calls:
            return {}
        return trajectory_files(self.calls, self.scaling, self.labels)


def chosen_seeds(num: int | None, text: str | None) -> list[int]:
    """Seeds such as "0-63" or "1,5,9"; 0 to num-1 without any. Raises ValueError."""
    if num is not None and not 1 <= num <= MOST:
        raise ValueError(f"--num: need 1 to {MOST:,}, got {num}")
    if text is None:
        return list(range(num or DEFAULT_NUM))
    seeds = [seed for part in text.split(",") for seed in _range(part.strip())]
    if len(seeds) > MOST:
        raise ValueError(f"--seeds: {len(seeds):,} seeds; give at most {MOST:,}")
    if num is not None and num != len(seeds):
        raise ValueError(f"--num {num} but --seeds holds {len(seeds)}; leave one of them out")
    return seeds


def chosen_labels(
    options: SampleOptions, classes: tuple[str, ...] | None, n: int
) -> Tensor | None:
    """The label of every sample, in blocks of one class; None without --class and --classes.

    Raises ValueError for an unconditional model or an unknown class.
    """
    given = [text for text in (options.label, options.classes) if text is not None]
    if not given:
        return None
    if len(given) == 2:
        raise ValueError("--class and --classes: give one of them")
    if classes is None:
        raise ValueError(
            "--class and --classes: this model was trained without classes; leave them out"
        )
    option = "--class" if options.classes is None else "--classes"
    names = range(len(classes)) if given == ["all"] else given[0].split(",")
    wanted = torch.tensor([_label(option, str(name).strip(), classes) for name in names])
    if len(wanted) > n:
        raise ValueError(f"--num: {n} samples for {len(wanted)} classes; ask for more")
    return wanted[torch.arange(n) * len(wanted) // n]


def one_class(name: str, classes: tuple[str, ...] | None, n: int) -> Tensor:
    """The label of ``--class``, n times. Raises ValueError as ``chosen_labels`` does."""
    if classes is None:
        raise ValueError("--class: this model was trained without classes; leave it out")
    return torch.full((n,), _label("--class", name.strip(), classes))


def _range(part: str) -> range:
    found = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part)
    if found is None:
        raise ValueError(f"--seeds: cannot read {part!r}; write such as 0-63 or 1,5,9")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"--seeds: {part} runs backwards; write {last}-{first}")
    if last >= 2**64:
        raise ValueError(f"--seeds: {last} has more than 64 bits; give less than {2**64}")
    if last - first >= MOST:
        raise ValueError(f"--seeds: {part} holds more than {MOST:,}; give fewer")
    return range(first, last + 1)


def _label(option: str, name: str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and name.isascii() and int(name) < len(classes):
        return int(name)
    known = f"0 to {len(classes) - 1}, or by name: {', '.join(classes[:20])}"
    raise ValueError(f"{option}: no class {name!r}; choose {known}")


def _check(options: SampleOptions) -> None:
    if options.preview_every is not None and options.preview_every < 1:
        raise ValueError(f"--preview-every: need at least 1, got {options.preview_every}")


def _with_grid(grid: str | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with ``--grid`` among them."""
    if grid is None:
        return dict(overrides)
    if given := [key for key in overrides if key in ("sample.grid", "sample.grid.kind")]:
        raise ValueError(f"--grid and --{given[0]}: give one of them")
    return {"sample.grid.kind": grid, **overrides}


def _require_trained(config: Config, labels: Tensor | None) -> None:
    if labels is None and config.conditional and config.train.label_dropout == 0:
        raise ValueError(
            "this model never learned to do without a class (train.label_dropout=0); "
            "give --class or --classes"
        )


def _require_writable(folder: Path) -> None:
    """Make the folder, or raise OSError, before anything is computed."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _settings(options: SampleOptions, loaded: LoadedRun, config: Config) -> dict[str, Any]:
    chosen = to_plain(config)["sample"]
    if config.sample.sampler.kind not in STEPS:
        del chosen["grid"]  # black-box solvers have none
    return {
        "checkpoint": str(loaded.source),
        "step": loaded.step,
        **described_choice(options),
        "batch": options.batch,
        **chosen,
    }
