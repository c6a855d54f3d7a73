"""Scoring every example of a split: batch by batch, resumable, and shared between processes.

The value of an example is a function of (seed, its row, the draw), so neither batches, nor
interruptions, nor the number of processes change it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write
from scoresde.data import Scaling, Split
from scoresde.likelihood import Estimator, bits_per_dim, importance_weighted
from scoresde.parameterization import ScoreModel
from scoresde.samplers import per_sample_noise
from scoresde.training.batches import derived_seed

COLUMNS = ("nats", "nfe", "bound", "again", "coarse")
"""The value in nats and its calls, the bound beside it, the value by other draws and by a coarser
solver; NaN where it was not asked for."""

DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Job:
    """What is scored, and how: ``draws`` an example, with ``beside`` the bound printed along.

    ``importance`` joins the draws of the estimator in the exponent. ``check`` examples, spread
    over the split, are scored by other draws and a coarser solver too.
    """

    model: ScoreModel
    split: Split
    scaling: Scaling
    estimator: Estimator
    beside: Estimator | None = None
    draws: int = 1
    importance: bool = False
    check: int = 0
    conditional: bool = False
    batch: int = 128
    seed: int = 0

    def checked(self) -> Tensor:
        """The rows scored again, (check,), as many as there are at most."""
        count = min(self.check, len(self.split))
        rows: Tensor = torch.linspace(0, len(self.split) - 1, count).round().long().unique()
        return rows


@dataclass
class Values:
    """A column (N,) for each of ``COLUMNS``, NaN where nothing is known yet."""

    columns: dict[str, Tensor]

    @staticmethod
    def empty(n: int) -> Values:
        """Nothing known of n examples."""
        nan = {name: torch.full((n,), math.nan, dtype=torch.float64) for name in COLUMNS}
        return Values(nan)

    @property
    def done(self) -> Tensor:
        """The rows scored."""
        return torch.nonzero(self.columns["nats"].isfinite()).flatten()

    def put(self, rows: Tensor, found: Mapping[str, Tensor]) -> None:
        """Fill in rows."""
        for name, column in found.items():
            self.columns[name][rows] = column.double().cpu()

    def joined(self, other: Values) -> Values:
        """What either of the two knows."""
        pairs = {name: (self.columns[name], other.columns[name]) for name in COLUMNS}
        return Values({name: torch.where(a.isnan(), b, a) for name, (a, b) in pairs.items()})

    def known(self, name: str) -> Tensor:
        """Rows where a column is known."""
        return torch.nonzero(self.columns[name].isfinite()).flatten()


def score(job: Job, rows: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The columns of the rows, batch by batch: rows (B,) and what was found of them.

    Raises RuntimeError where a value is not finite, and SolverError as the solvers do.
    """
    checked = job.checked()
    bound = replace(job, importance=False)
    # Of no rows, split makes one empty part.
    for some in rows.split(job.batch) if len(rows) else ():
        found = _scored(job, job.estimator, some, "likelihood")
        columns = {"nats": found[0], "nfe": torch.full((len(some),), found[1])}
        if job.beside is not None:
            # Joined in the exponent, the scatter of its draws would lift it above the truth.
            columns["bound"] = _scored(bound, job.beside, some, "bound")[0]
        _require_finite(columns, some)
        if len(again := torch.nonzero(torch.isin(some, checked)).flatten()):
            columns |= {
                name: _spread(column, again, len(some))
                for name, column in _again(job, some[again]).items()
            }
        yield some, columns


def _again(job: Job, rows: Tensor) -> dict[str, Tensor]:
    """The value by other draws, and by the same with a coarser solver."""
    found = {"again": _scored(job, job.estimator, rows, "again")[0]}
    if (coarser := job.estimator.coarser()) is not None:
        found["coarse"] = _scored(job, coarser, rows, "likelihood")[0]
    return found


def _scored(job: Job, estimator: Estimator, rows: Tensor, purpose: str) -> tuple[Tensor, float]:
    """The value (B,) over the draws of the job, and its calls."""
    device = job.model.device
    part = job.split.take(rows)
    label = part.label.to(device) if job.conditional and part.label is not None else None
    denoiser, values, calls = job.model.denoiser(label=label), [], 0
    for draw in range(job.draws):
        seeds = [derived_seed(job.seed, int(row), f"{purpose} {draw}") for row in rows]
        found = estimator(denoiser, part.x.to(device), job.scaling, per_sample_noise(seeds))
        values.append(found.log_prob)
        calls += found.nfe
    drawn = torch.stack(values)
    return (importance_weighted(drawn) if job.importance else drawn.mean(0)), calls / job.draws


def _spread(values: Tensor, places: Tensor, n: int) -> Tensor:
    spread = torch.full((n,), math.nan, dtype=torch.float64)
    spread[places] = values.double().cpu()
    return spread


def _require_finite(columns: Mapping[str, Tensor], rows: Tensor) -> None:
    for name, column in columns.items():
        if bad := int((~column.isfinite()).sum()):
            row = int(rows[torch.nonzero(~column.isfinite()).flatten()[0].cpu()])
            raise RuntimeError(
                f"{name} of {bad} of {len(rows)} examples is not finite, the first is row {row}; "
                "check the model, or take more --likelihood.steps"
            )


def bits(job: Job, nats: Tensor) -> Tensor:
    """Bits per dimension: levels are discrete already, real numbers in units of the data."""
    return bits_per_dim(nats, job.split.x.shape[1:], 1.0)


# --- what an interruption leaves ----------------------------------------------------------------


def key(job: Job, weights: str, settings: Mapping[str, object]) -> str:
    """Tells one job from another: its weights, data, settings and seed, not its batches."""
    data = hashlib.sha256(job.split.x.contiguous().numpy().tobytes())
    if job.conditional and job.split.label is not None:
        data.update(job.split.label.numpy().tobytes())
    plain = {k: v for k, v in settings.items() if k != "batch"}
    named = {"weights": weights, "data": data.hexdigest(), "seed": job.seed, **plain}
    named |= {"beside": job.beside is not None, "conditional": job.conditional}
    return json.dumps(named, sort_keys=True)


@dataclass(frozen=True)
class Partial:
    """The values so far of a job, one file a process in the folder of the report."""

    folder: Path
    key: str
    rank: int = 0

    @property
    def files(self) -> list[Path]:
        """Those of every process of this run and of earlier ones."""
        return sorted(self.folder.glob("partial-*.npz"))

    def read(self, n: int) -> Values:
        """What all files hold. Raises ValueError for a file of another job."""
        values = Values.empty(n)
        for path in self.files:
            try:
                # Opened here: numpy leaves the file open when it is a damaged archive.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                    same = str(found["key"]) == self.key
                    rows = torch.from_numpy(found["rows"])
                    columns = {name: torch.from_numpy(found[name]) for name in COLUMNS}
            except DAMAGE as error:
                raise ValueError(
                    f"{path}: damaged ({type(error).__name__}); delete it and --resume"
                ) from None
            if not same:
                raise ValueError(
                    f"{path}: left by other weights, data or settings; give the same ones to "
                    "--resume, or --overwrite"
                )
            values.put(rows, columns)
        return values

    def write(self, values: Values, rows: Tensor) -> None:
        """Keep what is known of this process's rows."""
        known = rows[torch.isin(rows, values.done)]
        arrays: dict[str, Any] = {name: values.columns[name][known].numpy() for name in COLUMNS}
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(self.key), rows=known.numpy(), **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"partial-{self.rank}.npz"
        atomic_write(path, lambda target: target.write_bytes(buffer.getvalue()))

    def remove(self) -> None:
        """Forget them."""
        for path in self.files:
            path.unlink(missing_ok=True)
