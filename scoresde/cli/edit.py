"""``scoresde edit``: latent codes of images, what they decode to, and the paths between them."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.cli.console import Advance, pick_device, progress
from scoresde.cli.options import EditOptions
from scoresde.cli.sample import one_class
from scoresde.cli.weights import described_choice, load_chosen
from scoresde.codes import Solved, decode, encode, interpolate
from scoresde.config import Config, build_dataset, override
from scoresde.data import Scaling, Split
from scoresde.denoiser import Denoiser
from scoresde.evaluation import image_grid, save_png, scatter
from scoresde.runs.compatibility import require_same_data
from scoresde.runs.load import LoadedRun
from scoresde.runs.results import Make, replace_all, require_writable
from scoresde.runs.watch import require_finite

RECORD, CODES, SAMPLES, GRID = "edit.json", "codes.npz", "edited.npz", "edit.png"
FILES = (RECORD, CODES, SAMPLES, GRID)
DEFAULT_NUM = 16
COLUMNS = 16


@dataclass(frozen=True)
class Job:
    """The options and the model on its device, with the flow that makes codes."""

    options: EditOptions
    loaded: LoadedRun
    config: Config
    flow: Solved

    @property
    def scaling(self) -> Scaling:
        return self.loaded.data.scaling

    def carried(
        self, carry: Callable[..., Tensor], x: Tensor, labels: Tensor | None, advance: Advance
    ) -> Tensor:
        """``encode`` or ``decode`` of every sample, a batch at a time."""
        parts = []
        device = self.loaded.model.device
        for rows in torch.arange(len(x)).split(self.options.batch):
            label = None if labels is None else labels[rows].to(device)
            denoiser: Denoiser = self.loaded.model.denoiser(label=label)
            part = carry(denoiser, x[rows].to(device), self.flow).cpu()
            require_finite(part, carry.__name__, "at the end")
            parts.append(part)
            advance(len(rows))
        return torch.cat(parts)


class Edited(NamedTuple):
    """What an operation makes: arrays to store, rows of samples to show, numbers to report."""

    codes: dict[str, Tensor]
    shown: Tensor | None
    columns: int
    report: dict[str, Any]


def run(options: EditOptions, overrides: Mapping[str, Any]) -> int:
    """Encode, decode, interpolate or reconstruct; write and report."""
    job = _prepared(options, overrides)
    started = time.perf_counter()
    edited = OPERATIONS[options.operation](job)
    record = {
        "operation": options.operation,
        "checkpoint": str(job.loaded.source),
        "step": job.loaded.step,
        **described_choice(options),
        "tolerance": options.tolerance,
        **edited.report,
        "seconds": time.perf_counter() - started,
    }
    _write(job, edited, record)
    print(_line(record, options.out))
    return 0


def encoded(job: Job) -> Edited:
    """The codes of examples."""
    split = _examples(job)
    labels = _labels(job, split, len(split))
    with progress(len(split), "encoded") as advance:
        z = job.carried(encode, _clean(job, split), labels, advance)
    size = float(z.square().mean().sqrt())
    codes = {"z": z} | ({} if labels is None else {"label": labels})
    return Edited(codes, None, 0, {"num": len(z), "code_rms": size})


def decoded(job: Job) -> Edited:
    """The samples of codes in a file."""
    z, stored = _read_codes(job)
    labels = stored if job.options.label is None else _labels(job, None, len(z))
    with progress(len(z), "decoded") as advance:
        x = job.carried(decode, z, labels, advance)
    return Edited({}, x, min(len(x), COLUMNS), {"num": len(x)})


def interpolated(job: Job) -> Edited:
    """Paths between the first and the second of every pair of examples, a row each."""
    if job.options.columns < 2:
        raise ValueError(f"--columns: need at least 2, got {job.options.columns}")
    split = _examples(job)
    if len(split) % 2:
        raise ValueError(f"--num: pairs need an even number of examples, got {len(split)}")
    n, pairs = job.options.columns, len(split) // 2
    labels = _labels(job, split, len(split))
    with progress(len(split) + n * pairs, "carried") as advance:
        z = job.carried(encode, _clean(job, split), labels, advance)
        path = interpolate(z[0::2], z[1::2], n).transpose(0, 1).flatten(0, 1)
        # Between two classes a path changes from the one to the other half-way.
        along = None
        if labels is not None:
            half = torch.arange(n) < (n + 1) // 2
            along = torch.where(half, labels[0::2, None], labels[1::2, None]).flatten()
        x = job.carried(decode, path, along, advance)
    return Edited({"z": path}, x, n, {"pairs": pairs, "columns": n})


def reconstructed(job: Job) -> Edited:
    """Examples above what their codes decode to, and how far the two are apart."""
    split = _examples(job)
    labels = _labels(job, split, len(split))
    clean = _clean(job, split)
    with progress(2 * len(split), "carried") as advance:
        z = job.carried(encode, clean, labels, advance)
        x = job.carried(decode, z, labels, advance)
    error = (x - clean).flatten(1).square().mean(1).sqrt()
    columns = min(len(x), COLUMNS)
    rows = zip(clean.split(columns), x.split(columns), strict=True)
    shown = torch.cat([part for pair in rows for part in pair])
    report: dict[str, Any] = {
        "num": len(x),
        "error_rms": float(error.square().mean().sqrt()),
        "error_max": float(error.max()),
        "errors": error.tolist(),
    }
    if job.scaling.levels is not None:
        wrong = job.scaling.decode(x.float()) != split.x
        report["levels_changed"] = float(wrong.double().mean())
    return Edited({"z": z}, shown, columns, report)


OPERATIONS: dict[str, Callable[[Job], Edited]] = {
    "encode": encoded,
    "decode": decoded,
    "interpolate": interpolated,
    "reconstruct": reconstructed,
}


def _prepared(options: EditOptions, overrides: Mapping[str, Any]) -> Job:
    """Everything checked that can be before the model is called."""
    if not 0 < options.tolerance < 1:
        raise ValueError(f"--tolerance: need a number between 0 and 1, got {options.tolerance:g}")
    if options.batch < 1:
        raise ValueError(f"--batch: need at least 1, got {options.batch}")
    if (options.codes is None) == (options.operation == "decode"):
        what = "needs" if options.codes is None else "is for"
        raise ValueError(f"--operation decode {what} --codes, a file that encode has written")
    if options.codes is not None and options.num is not None:
        raise ValueError("--num: decode takes all codes of the file; leave it out")
    _require_free(options.out, options.overwrite)
    loaded = load_chosen(options.checkpoint, options)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    loaded.model.to(pick_device(options.device))
    require_writable(options.out)
    return Job(options, loaded, config, Solved(options.tolerance))


def _require_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not a folder; give another --out")
    taken = [name for name in FILES if (folder / name).exists()]
    if taken and not (folder / RECORD).exists():
        raise ValueError(f"{folder}: holds {taken[0]} but no {RECORD}; give another --out")
    if taken and not overwrite:
        raise ValueError(f"{folder}: holds {taken[0]}; give another --out, or --overwrite")


def _examples(job: Job) -> Split:
    """The first test examples, of the data in training or of another set of their kind."""
    dataset = build_dataset(job.config.data)
    require_same_data(dataset, job.loaded.data)
    num = job.options.num
    if num is None:
        num = min(DEFAULT_NUM, len(dataset.test) // 2 * 2 or 1)
    if not 1 <= num <= len(dataset.test):
        raise ValueError(f"--num: the test split has {len(dataset.test)} examples, got {num}")
    split = dataset.test.take(torch.arange(num))
    return split if dataset.classes == job.loaded.data.classes else Split(split.x)


def _clean(job: Job, split: Split) -> Tensor:
    """Model units, of levels their middles."""
    return job.scaling.encode(split.x, dtype=torch.float64)


def _labels(job: Job, split: Split | None, n: int) -> Tensor | None:
    """The class of ``--class``, else the true ones; None for a model without classes."""
    classes = job.loaded.data.classes if job.config.conditional else None
    if job.options.label is not None:
        return one_class(job.options.label, classes, n)
    if classes is None:
        return None
    if split is None or split.label is None:
        raise ValueError("this model was trained with classes and these have none; give --class")
    return split.label


def _read_codes(job: Job) -> tuple[Tensor, Tensor | None]:
    """Codes z (N, ...) and labels (N,) of a file that ``encode`` has written."""
    path, shape = job.options.codes, tuple(job.loaded.data.shape)
    assert path is not None
    try:
        # Opened here: numpy leaves the file open when it is a damaged archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, OSError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: not codes ({error}); give a {CODES}") from error
    z = found.get("z")
    if z is None or tuple(z.shape[1:]) != shape or not len(z) or not z.is_floating_point():
        got = "nothing" if z is None else f"{z.dtype} {tuple(z.shape)}"
        wanted = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"{path}: z is {got}; this model needs ({wanted})")
    if not bool(z.isfinite().all()):
        raise ValueError(f"{path}: some codes are not finite; encode them anew")
    classes = job.loaded.data.classes if job.config.conditional else None
    label = found.get("label")
    if classes is not None and label is None and job.options.label is None:
        raise ValueError(f"{path}: has no labels, and this model has classes; give --class")
    return z, label if classes is not None else None


def _write(job: Job, edited: Edited, record: Mapping[str, Any]) -> None:
    """Replace what the folder holds, but the codes that were decoded; the record comes last."""
    out, codes, x = job.options.out, job.options.codes, edited.shown
    files: dict[str, Make] = {}
    if edited.codes:
        arrays = {name: value.numpy() for name, value in edited.codes.items()}
        files[CODES] = partial(_save, arrays=arrays)
    if x is not None:
        files |= _pictures(job, x, edited.columns)
        files[SAMPLES] = partial(_save, arrays={"x": x.numpy()})
    files[RECORD] = partial(Path.write_text, data=json.dumps(record, indent=2) + "\n")
    earlier = [name for name in FILES if codes is None or not _same(out / name, codes)]
    replace_all(out, files, earlier)


def _pictures(job: Job, x: Tensor, columns: int) -> dict[str, Make]:
    """Rows of images, or points in the plane; nothing for other shapes."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        picture = image_grid(job.scaling.to_uint8(x), columns)
        return {GRID: partial(save_png, picture=picture)}
    if x.ndim == 2 and x.shape[1] == 2:
        return {GRID: partial(scatter, panels={"edited": x})}
    return {}


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # of a path numpy would make NAME.npz
        np.savez(file, allow_pickle=False, **arrays)


def _line(record: Mapping[str, Any], out: Path) -> str:
    """What was done, in a line."""
    seconds = f"in {record['seconds']:.1f} s: {out}"
    match record["operation"]:
        case "encode":
            return f"{record['num']} codes of rms {record['code_rms']:.3g} {seconds}"
        case "interpolate":
            return f"{record['pairs']} paths of {record['columns']} samples {seconds}"
        case "reconstruct":
            changed = ""
            if "levels_changed" in record:
                changed = f", {100 * record['levels_changed']:.2g} % of levels changed"
            size = f"rms error {record['error_rms']:.2g}, worst {record['error_max']:.2g}"
            return f"{record['num']} samples there and back, {size}{changed}, {seconds}"
        case _:
            return f"{record['num']} samples {seconds}"
