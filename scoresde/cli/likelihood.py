"""``scoresde likelihood``: bits per dimension of every test example, with the standard error."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.build import build_dataset, load_run
from scoresde.cli.console import pick_device, progress
from scoresde.cli.options import LikelihoodOptions
from scoresde.config import Config, ConfigError, override
from scoresde.config.schema import Likelihood
from scoresde.data import Dataset, Scaling, Split
from scoresde.denoiser import Denoiser
from scoresde.likelihood import (
    Hutchinson,
    LogLikelihood,
    Orthogonal,
    bits_per_dim,
    exact,
    log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood import exactly as at_every_node
from scoresde.parameterization import ScoreModel
from scoresde.solvers import FIXED_STEP_METHODS
from scoresde.training.checkpoint import DataDescription
from scoresde.training.files import atomic_write, writing
from scoresde.training.loop import stream


@dataclass(frozen=True)
class Scores:
    """Of every example (N,): its log-density in nats (in model units) and its bits per dimension.

    With several dequantisation draws both are means over them. ``nfe`` is the mean number of
    network calls, ``offset`` the part of the bits that only reflects the units, -log2(step).
    """

    nats: Tensor
    bits: Tensor
    nfe: float
    offset: float

    @property
    def mean(self) -> float:
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float:
        """Over examples; NaN for a single one."""
        return _standard_error(self.bits)


def run(options: LikelihoodOptions, overrides: Mapping[str, Any]) -> int:
    """Score and report."""
    if options.seed < 0:
        raise ValueError(f"--seed: need at least 0, got {options.seed}")
    if options.csv is not None:
        _require_writable(options.csv)
    loaded = load_run(options.checkpoint, ema=not options.no_ema)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = override(loaded.config, overrides)
    _require_same_split(config, loaded.config)
    dataset = build_dataset(config.data)
    _require_same_data(dataset, loaded.data)
    if options.conditional:
        _require_classes(config, dataset, loaded.data)
    elif config.conditional and config.train.label_dropout == 0:
        raise ValueError(
            "this model never learned to do without a class (train.label_dropout=0); "
            "give --conditional"
        )
    split = _first(dataset.test, options.num)
    started = time.perf_counter()
    with progress(len(split), "scored") as advance:
        scores = score_split(
            loaded.model.to(pick_device(options.device)),
            split,
            dataset.scaling,
            config.likelihood,
            conditional=options.conditional,
            seed=options.seed,
            advance=advance,
        )
    report = _report(options, dataset, config.likelihood, scores, time.perf_counter() - started)
    # First what no disk can take away.
    print(json.dumps(report, indent=2) if options.json else _page(report), flush=True)
    if options.csv is not None:
        _write_csv(options.csv, scores, split.label)
    return 0


def score_split(
    model: ScoreModel,
    split: Split,
    scaling: Scaling,
    settings: Likelihood,
    *,
    conditional: bool = False,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> Scores:
    """Score every example of a split, at uniform dequantisation within its pixel levels.

    Dequantisation and probes of an example are a function of (seed, its index, the repeat), so
    batches do not change them. ``conditional`` scores p(x | y). Raises SolverError as
    ``log_likelihood`` does.
    """
    device = next(model.parameters()).device
    nats, calls = torch.zeros(len(split), dtype=torch.float64), 0
    for rows in torch.arange(len(split)).split(settings.batch):
        part = split.take(rows)
        label = part.label.to(device) if conditional and part.label is not None else None
        for repeat in range(settings.repeats):
            streams = [_stream(seed, int(row), repeat) for row in rows]
            x = _dequantised(part.x, scaling, streams).to(device)
            found = _log_likelihood(model.denoiser(label=label), x, settings, streams)
            nats[rows] += found.log_prob.cpu() / settings.repeats
            calls += found.nfe * len(rows)
        advance(len(rows))
    bits = bits_per_dim(nats, split.x.shape[1:], scaling.step)
    nfe = calls / (len(split) * settings.repeats)
    return Scores(nats, bits, nfe, -math.log2(scaling.step))


def _log_likelihood(
    denoiser: Denoiser, x: Tensor, settings: Likelihood, streams: list[torch.Generator]
) -> LogLikelihood:
    """By the method of the settings, with probes from the stream of each example."""
    exactly = settings.trace == "exact"
    if settings.method == "path":
        probing = at_every_node if exactly else Orthogonal(_signs(1, x, streams), settings.probes)
        return path_log_likelihood(denoiser, x, probing, nodes=settings.steps)
    divergence = exact if exactly else Hutchinson(_signs(settings.probes, x, streams))
    return log_likelihood(
        denoiser,
        x,
        divergence,
        method=settings.method,
        rtol=settings.rtol,
        atol=settings.atol,
        steps=settings.steps,
    )


def _stream(seed: int, index: int, repeat: int) -> torch.Generator:
    """The random numbers of one example."""
    return torch.Generator().manual_seed(stream(seed, index, f"likelihood {repeat}"))


def _dequantised(levels: Tensor, scaling: Scaling, streams: list[torch.Generator]) -> Tensor:
    if scaling.levels is None:
        return levels.double()
    u = [torch.rand(levels.shape[1:], generator=g, dtype=torch.float64) for g in streams]
    return scaling.encode(levels, torch.stack(u), dtype=torch.float64)


def _signs(n: int, x: Tensor, streams: list[torch.Generator]) -> Tensor:
    """Random signs (n, *x.shape), those of an example from its stream."""
    size = (n, *x.shape[1:])
    signs = torch.stack([torch.randint(0, 2, size, generator=g) for g in streams], dim=1)
    return (2 * signs - 1).to(x)


def _first(split: Split, num: int | None) -> Split:
    if num is None:
        return split
    if not 1 <= num <= len(split):
        raise ValueError(f"--num: the test split has {len(split)} examples, got {num}")
    return split.take(torch.arange(num))


def _require_same_split(config: Config, trained: Config) -> None:
    """Another split of the same files would score examples the model was trained on."""
    asked, known = config.data.model_dump(), trained.data.model_dump()
    if asked["kind"] != known["kind"] or not _same_path(asked.get("path"), known.get("path")):
        return
    for key in ("seed", "holdout"):
        if asked.get(key) != known.get(key):
            raise ValueError(
                f"--data.{key} {asked[key]}: it was {known[key]} in training, and another split "
                "would score training examples; leave it out"
            )


def _same_path(a: str | None, b: str | None) -> bool:
    if a is None or b is None:
        return False
    return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def _require_same_data(dataset: Dataset, trained: DataDescription) -> None:
    """Bits per dimension mean nothing under another shape or scaling than the model's."""
    found, expected = (
        (tuple(d.shape), d.scaling.levels, d.scaling.low, d.scaling.high)
        for d in (dataset, trained)
    )
    if found != expected:
        raise ConfigError(
            f"data {dataset.name} has (shape, levels, low, high) = {found}, the model was trained "
            f"on {expected}; give the same data with --data.kind and --data.path"
        )


def _require_classes(config: Config, dataset: Dataset, trained: DataDescription) -> None:
    if not config.conditional:
        raise ValueError("--conditional: this model was trained without classes; leave it out")
    if dataset.classes != trained.classes:
        raise ValueError(
            f"--conditional: {dataset.name} has other classes than {trained.name}; leave it out"
        )


def _report(
    options: LikelihoodOptions,
    dataset: Dataset,
    settings: Likelihood,
    scores: Scores,
    seconds: float,
) -> dict[str, Any]:
    error = scores.standard_error
    nats_error = _standard_error(scores.nats)
    discrete = dataset.scaling.levels is not None
    return {
        "data": dataset.name,
        "examples": len(scores.bits),
        "bits_per_dim": scores.mean,
        "bits_per_dim_se": None if math.isnan(error) else error,
        "nats": float(scores.nats.mean()),
        "nats_se": None if math.isnan(nats_error) else nats_error,
        "dequantization": "uniform" if discrete else None,
        "levels": dataset.scaling.levels,
        "offset": scores.offset,
        "conditional": options.conditional,
        "seed": options.seed,
        "nfe": scores.nfe,
        "seconds": seconds,
        **settings.model_dump(),
    }


def _page(report: Mapping[str, Any]) -> str:
    law = "log p(x | y), true classes" if report["conditional"] else "log p(x)"
    fixed = report["method"] in (*FIXED_STEP_METHODS, "path")
    effort = f"{report['steps']} steps" if fixed else f"rtol {report['rtol']:g}"
    trace = f"{report['trace']} trace, {report['method']}, {effort}"
    lines = [f"{report['data']}: {report['examples']} test examples, {law}, {trace}"]
    if report["levels"] is None:
        lines.append(
            f"continuous data: {_with_error(-report['nats'], report['nats_se'])} nats a sample "
            "(negative log-density); bits/dim are in the units of the data"
        )
    else:
        lines.append(
            f"uniform dequantisation, {report['repeats']} draw(s) an image; offset "
            f"{report['offset']:.4f} bits/dim for {report['levels']} levels"
        )
    bits = _with_error(report["bits_per_dim"], report["bits_per_dim_se"])
    lines.append(f"{bits} bits/dim, NFE {report['nfe']:.4g}, {report['seconds']:.1f} s")
    return "\n".join(lines)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} +- {error:.4f}"


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _write_csv(path: Path, scores: Scores, label: Tensor | None) -> None:
    labels = [""] * len(scores.bits) if label is None else label.tolist()
    rows = zip(labels, scores.nats.tolist(), scores.bits.tolist(), strict=True)

    def write(target: Path) -> None:
        with target.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["index", "label", "nats", "bits_per_dim"])
            table.writerows([i, *row] for i, row in enumerate(rows))

    if path.is_symlink() or (path.exists() and not path.is_file()):
        with writing(path):  # such as /dev/stdout, which no new file may replace
            write(path)
    else:
        atomic_write(path, write)


def _require_writable(path: Path) -> None:
    """Raise ValueError or OSError, before anything is computed, unless the file can be written."""
    if not path.parent.is_dir():
        raise ValueError(f"--csv {path}: no such folder; make it first")
    new = not path.exists()
    with writing(path):
        path.open("a").close()
    if new:
        path.unlink()
