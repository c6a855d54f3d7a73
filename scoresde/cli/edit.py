"""``scoresde edit``: encodes examples to latent codes, decodes and interpolates codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.cli.choices import labels
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import EditOptions
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.config import Config, build_dataset, override
from scoresde.data import Split
from scoresde.parameterization import ScoreModel
from scoresde.runs.compatibility import require_same_data
from scoresde.runs.draw import places_of
from scoresde.runs.edit import CODES, COLUMNS, SAMPLES, Editor, edit_folder, picture_of, read_codes
from scoresde.runs.load import LoadedRun
from scoresde.runs.results import Make, require_writable, save_arrays

DEFAULT_NUM = 16


@dataclass(frozen=True)
class Job:
    """Options of one call, with the loaded model, its configuration and its editor."""

    options: EditOptions
    loaded: LoadedRun
    config: Config
    editor: Editor

    @property
    def classes(self) -> Sequence[str] | None:
        """Class names of a model that is told classes; None for another."""
        return self.loaded.data.classes if self.loaded.classed else None

    def names(self, places: Tensor | None) -> Any:
        """Labels from --class, else the stored classes; None for a model without classes."""
        if self.options.label is not None:
            return labels(self.options.label, self.classes or ())
        if self.classes is None:
            return None
        if places is None:
            raise ValueError(
                "label is missing: this model needs classes, and these examples have none"
            )
        return [self.classes[k] for k in places.tolist()]


class Edited(NamedTuple):
    """Result of an operation: codes, samples, rows of the picture, report and summary line."""

    z: Tensor | None
    x: Tensor | None
    rows: list[tuple[str, Tensor]]
    report: dict[str, Any]
    line: str
    labels: Tensor | None = None


def run(options: EditOptions, overrides: Mapping[str, Any]) -> int:
    """Run one operation, write its files and print a summary."""
    job = _prepared(options, overrides)
    started = time.perf_counter()
    edited = OPERATIONS[options.operation](job)
    record = {
        "operation": options.operation,
        "checkpoint": str(job.loaded.source.resolve()),
        "step": job.loaded.step,
        **described_choice(options),
        "tolerance": options.tolerance,
        **edited.report,
        "seconds": time.perf_counter() - started,
    }
    files: dict[str, Make] = {}
    if edited.z is not None:
        arrays: dict[str, Any] = {"z": edited.z.numpy()}
        if edited.labels is not None:
            arrays["label"] = edited.labels.numpy()
        files[CODES] = partial(save_arrays, **arrays)
    if edited.x is not None:
        title = f"{job.loaded.data.name}: {edited.line}"
        files |= picture_of(job.loaded.model, edited.rows, title)
        files[SAMPLES] = partial(save_arrays, x=edited.x.numpy())
    codes = options.codes
    own = codes is not None and codes.resolve() == (options.out / CODES).resolve()
    edit_folder(options.out).write(files, record, keep=(CODES,) if own else ())
    print(f"{edited.line} in {record['seconds']:.1f} s: {options.out}")
    return 0


def encoded(job: Job) -> Edited:
    """Encode examples."""
    split = _examples(job)
    names = job.names(split.label)
    z = job.editor.encode(split.x, names)
    size = float(z.square().mean().sqrt())
    line = f"{len(z)} codes of rms {size:.3g}"
    labels = places_of(names, job.loaded.model, len(z))
    return Edited(z, None, [], {"num": len(z), "code_rms": size}, line, labels)


def decoded(job: Job) -> Edited:
    """Decode the codes in a file."""
    assert job.options.codes is not None
    z, stored = read_codes(job.options.codes, job.loaded.model)
    x = job.editor.decode(z, job.names(stored))
    return Edited(None, x, _rows({"decoded": x}), {"num": len(x)}, f"{len(x)} samples")


def interpolated(job: Job) -> Edited:
    """Interpolate between the examples of each pair; each pair is one row."""
    split, n = _examples(job), job.options.columns
    names = job.names(split.label)
    found = job.editor.interpolate(split.x, names, n)
    ends = [f"example {k}" for k in range(1, len(split) + 1)]
    if names is not None and len(names) == len(ends):
        ends = [f"{k} ({name})" for k, name in enumerate(names, start=1)]
    rows = [(f"{a} to {b}", x) for a, b, x in zip(ends[::2], ends[1::2], found.x, strict=True)]
    report = {"pairs": len(found.x), "columns": n}
    line = f"{len(found.x)} paths of {n} samples"
    return Edited(found.z.flatten(0, 1), found.x.flatten(0, 1), rows, report, line)


def reconstructed(job: Job) -> Edited:
    """Encode and decode examples, and measure the reconstruction error."""
    split = _examples(job)
    found = job.editor.reconstruct(split.x, job.names(split.label))
    rms, worst = float(found.errors.square().mean().sqrt()), float(found.errors.max())
    report: dict[str, Any] = {"num": len(found.x), "error_rms": rms, "error_max": worst}
    report["errors"] = found.errors.tolist()
    line = f"{len(found.x)} reconstructed samples, rms error {rms:.2g}, worst {worst:.2g}"
    if found.changed is not None:
        report["levels_changed"] = found.changed
        line += f", {100 * found.changed:.2g} % of levels changed"
    rows = _rows({"examples": split.x, "decoded": found.x})
    return Edited(found.z, found.x, rows, report, line)


OPERATIONS = {
    "encode": encoded,
    "decode": decoded,
    "interpolate": interpolated,
    "reconstruct": reconstructed,
}


def _rows(sets: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Split sets of images into rows that alternate between the sets; other data stay whole."""
    if next(iter(sets.values())).ndim != 4:
        return list(sets.items())
    parts = [x.split(COLUMNS) for x in sets.values()]
    return [pair for some in zip(*parts, strict=True) for pair in zip(sets, some, strict=True)]


def _prepared(options: EditOptions, overrides: Mapping[str, Any]) -> Job:
    """Check the options, load the model and make the output folder."""
    if (options.codes is None) == (options.operation == "decode"):
        verb = "needs" if options.codes is None else "is for"
        raise ValueError(f"--operation decode {verb} --codes, a file that encode has written")
    if options.codes is not None and options.num is not None:
        raise ValueError("num: decode takes all codes of the file; leave it out")
    edit_folder(options.out).require_free(options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    model: ScoreModel = loaded.model.to(pick_device(options.device))
    require_writable(options.out)
    return Job(options, loaded, config, Editor(model, options.tolerance, options.batch, progress))


def _examples(job: Job) -> Split:
    """The first test examples of the configured data set, which must fit the model."""
    dataset = build_dataset(job.config.data)
    require_same_data(dataset, job.loaded.data)
    num = job.options.num or min(DEFAULT_NUM, len(dataset.test) // 2 * 2 or 1)
    if num > len(dataset.test):
        raise ValueError(f"num: the test split has {len(dataset.test)} examples, got {num}")
    split = dataset.test.take(torch.arange(num))
    return split if dataset.classes == job.loaded.data.classes else Split(split.x)
