"""``scoresde edit``: edits pictures, and maps examples to latent codes and back."""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import scoresde
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import EditOptions
from scoresde.cli.said import chosen_conditions, named_values, with_grid
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import Config, build_dataset, override
from scoresde.data import Split
from scoresde.data.foreign import picture_files
from scoresde.runs.compatibility import require_same_data
from scoresde.runs.draw import said_by
from scoresde.runs.edit import (
    COLUMNS,
    PATH,
    SAMPLES,
    Edited,
    edit,
    edit_folder,
    picture_of,
    require_own,
    rows_of,
)
from scoresde.runs.edit_pictures import pictures_of
from scoresde.runs.editor import CODES, Editor, read_codes
from scoresde.runs.load import LoadedRun
from scoresde.runs.optimised import configured_search
from scoresde.runs.pictures import Recorder, is_image
from scoresde.runs.pictures import picture_files as picture_files_of
from scoresde.runs.recipe import as_json
from scoresde.runs.results import Make, require_writable, save_arrays
from scoresde.runs.said import Said
from scoresde.runs.samples import configured_sampler, sampling_settings
from scoresde.runs.stopping import Stopping
from scoresde.runs.written import chosen_seeds, labels

FEW, MANY = 4, 16
"""Test examples, by default: of pictures to edit, and of codes."""


@dataclass(frozen=True)
class Job:
    """Options of one call, with the loaded model and its configuration."""

    options: EditOptions
    loaded: LoadedRun
    config: Config
    started: float

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names of a model that is told classes; None for another."""
        return self.loaded.data.classes if self.loaded.classed else None

    @property
    def editor(self) -> Editor:
        """The editor of the codes."""
        tolerance = self.options.tolerance or Editor.tolerance
        return Editor(self.loaded.model, tolerance, self.options.batch, progress)

    def told(self) -> dict[str, Any]:
        """What the flags say, as arguments of ``edit``."""
        text = self.options.label
        label = None if text is None else labels(text, self.loaded.data.classes or ())
        found = chosen_conditions(self.options, self.loaded.model, self.options.prompt)
        return {"label": label, **found}

    def said(self, places: Tensor | None, n: int) -> tuple[Said, Any]:
        """What is said of n examples, by default their stored classes, and these in words."""
        told = self.told()
        if told["label"] is None and self.classes is not None:
            if places is None:
                raise ValueError(
                    "label is missing: this model needs classes, and these examples have none"
                )
            told["label"] = [self.classes[k] for k in places.tolist()]
        interval = told.pop("guidance_interval")
        return said_by(self.loaded.model, **told, interval=interval).over(n), told["label"]


class Result(NamedTuple):
    """What an operation leaves: rows of the picture, report, summary line, arrays and files."""

    rows: list[tuple[str, Tensor]]
    report: dict[str, Any]
    line: str
    z: Tensor | None = None
    x: Tensor | None = None
    labels: Tensor | None = None
    files: Mapping[str, Make] = {}
    stopped: signal.Signals | None = None


def run(options: EditOptions, overrides: Mapping[str, Any]) -> int:
    """Run one operation, write its files and print a summary.

    On SIGINT or SIGTERM, writes the results so far and raises SystemExit with code 130 or 143.
    """
    job = _prepared(options, overrides)
    result = CODED.get(options.operation, edited)(job)
    record = {
        "operation": options.operation,
        "checkpoint": str(job.loaded.source.resolve()),
        "step": job.loaded.step,
        **described_choice(options),
        **result.report,
        "seconds": time.perf_counter() - job.started,
    }
    files: dict[str, Make] = dict(result.files)
    if result.z is not None:
        arrays: dict[str, Any] = {"z": result.z.numpy()}
        if result.labels is not None:
            arrays["label"] = result.labels.numpy()
        files[CODES] = partial(save_arrays, **arrays)
    if result.x is not None:
        title = f"{job.loaded.data.name}: {result.line}"
        files |= picture_of(job.loaded.model, result.rows, title)
        files[SAMPLES] = partial(save_arrays, x=result.x.numpy())
    if result.stopped is None or files:
        codes = options.codes
        own = codes is not None and codes.resolve() == (options.out / CODES).resolve()
        edit_folder(options.out).write(files, record, keep=(CODES,) if own else ())
    if result.stopped is not None:
        kept = f"{result.line}: {options.out}" if files else "nothing written"
        print(f"{result.stopped.name}: {kept}", file=sys.stderr)
        raise SystemExit(128 + result.stopped)
    print(f"{result.line} in {record['seconds']:.1f} s: {options.out}")
    return 0


# Codes -------------------------------------------------------------------------------------------


def encoded(job: Job) -> Result:
    """Encode examples."""
    split, _ = _examples(job, MANY)
    said, _ = job.said(split.label, len(split))
    z = job.editor.encode(split.x, said)
    size = float(z.square().mean().sqrt())
    report = {**_tolerance(job), "num": len(z), "code_rms": size}
    return Result([], report, f"{len(z)} codes of rms {size:.3g}", z, labels=said.labels())


def decoded(job: Job) -> Result:
    """Decode the codes in a file."""
    assert job.options.codes is not None
    z, stored = read_codes(job.options.codes, job.loaded.model)
    x = job.editor.decode(z, job.said(stored, len(z))[0])
    report = {**_tolerance(job), "num": len(x)}
    return Result(_rows({"decoded": x}), report, f"{len(x)} samples", x=x)


def interpolated(job: Job) -> Result:
    """Interpolate between the examples of each pair; each pair is one row."""
    split, ends = _examples(job, MANY)
    said, names = job.said(split.label, len(split))
    found = job.editor.interpolate(split.x, said, job.options.columns or PATH)
    if isinstance(names, list) and len(names) == len(ends):
        ends = [f"{end} ({name})" for end, name in zip(ends, names, strict=True)]
    rows = [(f"{a} to {b}", x) for a, b, x in zip(ends[::2], ends[1::2], found.x, strict=True)]
    n = found.x.shape[1]
    report = {**_tolerance(job), "pairs": len(found.x), "columns": n}
    line = f"{len(found.x)} paths of {n} samples"
    return Result(rows, report, line, found.z.flatten(0, 1), found.x.flatten(0, 1))


def reconstructed(job: Job) -> Result:
    """Encode and decode examples, and measure the reconstruction error."""
    split, _ = _examples(job, MANY)
    found = job.editor.reconstruct(split.x, job.said(split.label, len(split))[0])
    rms, worst = float(found.errors.square().mean().sqrt()), float(found.errors.max())
    report: dict[str, Any] = {**_tolerance(job), "num": len(found.x)}
    report |= {"error_rms": rms, "error_max": worst, "errors": found.errors.tolist()}
    line = f"{len(found.x)} reconstructed samples, rms error {rms:.2g}, worst {worst:.2g}"
    if found.changed is not None:
        report["levels_changed"] = found.changed
        line += f", {100 * found.changed:.2g} % of levels changed"
    rows = _rows({"examples": split.x, "decoded": found.x})
    return Result(rows, report, line, found.z, found.x)


CODED = {
    "encode": encoded,
    "decode": decoded,
    "interpolate": interpolated,
    "reconstruct": reconstructed,
}


def _tolerance(job: Job) -> dict[str, Any]:
    return {"tolerance": job.editor.tolerance}


def _rows(sets: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Split sets of images into rows that alternate between the sets; other data stay whole."""
    if next(iter(sets.values())).ndim != 4:
        return list(sets.items())
    parts = [x.split(COLUMNS) for x in sets.values()]
    return [pair for some in zip(*parts, strict=True) for pair in zip(sets, some, strict=True)]


# Pictures ----------------------------------------------------------------------------------------


def edited(job: Job) -> Result:
    """Run an operation of ``edit`` on the pictures."""
    options, loaded, operation = job.options, job.loaded, job.options.operation
    model, told, settings = loaded.model, job.told(), _settings(options)
    source: Any
    if options.picture:
        files = [file for path in options.picture for file in picture_files(path)]
        source, names = files, list(map(str, files))
    else:
        split, names = _examples(job, FEW)
        source = split.x
        if operation == "deblur":
            settings["degrade"] = True
        if operation == "invert" and "source" not in settings and job.classes is not None:
            settings["source"] = {"label": _named(split.label, job.classes)}
    if options.source:
        settings["source"] = named_values(model, "source", options.source)
    record: dict[str, Any] = {}
    if operation == "img2img":
        sample = job.config.sample
        sampler, note = configured_sampler(loaded, sample, progress=progress)
        if note:
            print(note, file=sys.stderr)
        settings |= {"sampler": sampler, "name": sample.sampler.kind}
        record = sampling_settings(loaded, sample)
    if options.seeds is not None:
        settings["seeds"] = chosen_seeds(options.num, options.seeds)
    elif options.num is not None:
        settings["num"] = options.num
    recorder = Recorder(loaded.data, None, options.out, options.preview_every, False, model)
    with Stopping() as stop:
        found = edit(
            model,
            source,
            operation,
            **settings,
            **told,
            batch=options.batch,
            progress=progress,
            look=recorder,
            stopping=lambda: stop.signal is not None,
        )
    return _result(job, found, names, record, told, stop.signal)


def _result(
    job: Job,
    found: Edited,
    names: Sequence[str],
    record: Mapping[str, Any],
    told: Mapping[str, Any],
    stopped: signal.Signals | None,
) -> Result:
    """The files and the report of an edit."""
    model, drawn, operation = job.loaded.model, found.drawn, job.options.operation
    against = told["negative"]
    whole = len(names) * found.num
    if not drawn.unfinished and len(drawn) == whole:
        stopped = None
    report = {
        **record,
        **found.settings,
        "negative": against and {k: as_json(v) for k, v in against.items()},
        "guidance": told["guidance"],
        "guidance_interval": told["guidance_interval"],
        "model_hash": job.loaded.digest,
        "version": scoresde.__version__,
        "device": model.device.type,
        "batch": job.options.batch,
        "nfe": None if math.isnan(found.nfe) else found.nfe,
    }
    if stopped is not None:
        report |= {"stopped": stopped.name, "unfinished": drawn.unfinished}
    sources = [names[row // found.num] for row in drawn.rows]
    files: dict[str, Make] = {}
    if is_image(found.x) and len(found):
        where = {"operation": operation, "checkpoint": str(job.loaded.source.resolve())}
        settings = where | described_choice(job.options) | report
        files = picture_files_of(
            drawn, job.loaded.data, settings, [{"picture": s} for s in sources]
        )
    labels = None if drawn.label is None else drawn.label.tolist()
    report |= {"pictures": sources, "seeds": list(drawn.seeds), "labels": labels}
    some = f"{len(found)} of {whole}" if stopped is not None else str(len(found))
    line = f"{operation}: {some} results of {len(names)} picture{'s' * (len(names) > 1)}"
    if not math.isnan(found.nfe):
        line += f", NFE {found.nfe:g}"
    x = found.x if len(found) else None
    rows = rows_of(found, names) if len(found) else []
    return Result(rows, report, line, found.z, x, drawn.label, files, stopped)


def _settings(options: EditOptions) -> dict[str, Any]:
    """The settings that the flags give, as arguments of ``edit``."""
    names = ("mask", "strength", "factor", "blur", "method", "noise", "nfe", "tolerance")
    found = {name: getattr(options, name) for name in names}
    found |= {"box": options.box or None, "margins": options.margins or None}
    if (text := options.painted) is not None:
        digits = text.removeprefix("#")
        if not re.fullmatch(r"([0-9a-fA-F]{2})+", digits):
            raise ValueError(f"painted: need two hexadecimal digits a channel, got {text!r}")
        found["painted"] = tuple(bytes.fromhex(digits))
    return {name: value for name, value in found.items() if value is not None}


def _named(places: Tensor | None, classes: Sequence[str]) -> list[str] | None:
    return None if places is None else [classes[k] for k in places.tolist()]


def _prepared(options: EditOptions, overrides: Mapping[str, Any]) -> Job:
    """Check the options, load the model and make the output folder."""
    operation = options.operation
    if (options.codes is None) == (operation == "decode"):
        verb = "needs" if options.codes is None else "is for"
        raise ValueError(f"--operation decode {verb} --codes, a file that encode has written")
    if options.codes is not None and options.num is not None:
        raise ValueError("num: decode takes all codes of the file; leave it out")
    settings = _settings(options)
    if operation in CODED:
        settings.pop("tolerance", None)
    for name in ("source", "columns", "grid"):
        if getattr(options, name):
            settings[name] = getattr(options, name)
    require_own(operation, settings)
    still = [name for name in ("seeds", "preview_every") if getattr(options, name) is not None]
    if still and (operation in CODED or operation == "invert"):
        raise ValueError(f"{still[0]}: {operation} draws no noise; leave it out")
    if options.picture and options.examples is not None:
        raise ValueError("--picture and --examples: give one of them")
    if operation != "img2img" and (given := [k for k in overrides if k.startswith("sample.")]):
        raise ValueError(f"{given[0]}: is for img2img; leave it out")
    if operation == "img2img" and options.nfe is not None:
        raise ValueError("nfe: is for the other operations; img2img takes --sample.steps")
    edit_folder(options.out).require_free(options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, with_grid(options.grid, overrides))
    configured_search(config.sample)  # raises early if the sampler has no grid to optimise
    loaded.model.to(pick_device(options.device))
    require_writable(options.out)
    return Job(options, loaded, config, time.perf_counter())


def _examples(job: Job, default: int) -> tuple[Split, list[str]]:
    """The chosen pictures, or test examples of the data, which must fit the model; their names."""
    if job.options.picture:
        files = [file for path in job.options.picture for file in picture_files(path)]
        return Split(pictures_of(files, job.loaded.model)), list(map(str, files))
    dataset = build_dataset(job.config.data)
    require_same_data(dataset, job.loaded.data)
    n = len(dataset.test)
    if job.options.examples is not None:
        rows = chosen_seeds(None, job.options.examples)
        if max(rows) >= n:
            raise ValueError(f"examples: the test split has 0 to {n - 1}, got {max(rows)}")
    else:
        num = job.options.num if job.options.operation in CODED else None
        num = num or min(default, n // 2 * 2 or 1)
        if num > n:
            raise ValueError(f"num: the test split has {n} examples, got {num}")
        rows = range(num)
    split = dataset.test.take(torch.tensor(rows))
    same = dataset.classes == job.loaded.data.classes
    first = job.options.examples is None
    names = [f"example {row + first}" for row in rows]
    return split if same else Split(split.x), names
