"""Scores the examples of a split in batches, resumable and distributed over processes.

The value of an example is a function of (seed, row, draw) alone. It does not depend on batches,
interruptions or the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write
from scoresde.config import plain
from scoresde.data import Scaling, Split
from scoresde.data.columns import flat
from scoresde.latent.files import codec_digest
from scoresde.likelihood import bits_per_dim
from scoresde.likelihood.dequantise import importance_weighted
from scoresde.likelihood.estimators import Estimator
from scoresde.parameterization import ScoreModel
from scoresde.registry import Scoring
from scoresde.runs.load import coefficients
from scoresde.runs.space import state_shape
from scoresde.samplers import per_sample_noise
from scoresde.training.batches import derived_seed
from scoresde.training.checkpoint import fingerprint
from scoresde.training.said import said

PARTS = ("distortion", "rate", "entropy")
"""What the bound of a picture through a codec consists of, in nats: -log p(x | z), log q(z | x) -
log p(z), and -log q(z | x), which is in the rate. Each is a mean over the draws."""
COLUMNS = ("nats", "nfe", "solver_error", "bound", "again", "change", *PARTS)
"""log p in nats, its network calls, the error of its solver, the lower bound, log p with other
random draws, its change with half the effort of the solver, and the parts; NaN where not computed.
An example whose solver did not reach its end has calls and an infinite error, but no log p."""

DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Job:
    """Examples to score, and the settings of the estimator.

    Args:
        model: the model, in evaluation mode.
        split: the examples.
        scaling: their scaling to model units.
        settings: estimator of log p.
        name: name of the examples in a report.
        bound: also find the variational lower bound.
        conditional: score log p(x | y) with the labels and columns of the split.
        seed: seed of all random draws.
        notes: remarks on the examples for the report.
    """

    model: ScoreModel
    split: Split
    scaling: Scaling
    settings: Scoring
    name: str = "data"
    bound: bool = False
    conditional: bool = False
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def estimator(self) -> Estimator:
        """The estimator of log p."""
        return self.settings.estimator(self.scaling, self.model.codec)

    @property
    def beside(self) -> Estimator | None:
        """The estimator of the bound; None if not requested."""
        return self.settings.bound(self.scaling, self.model.codec) if self.bound else None

    @property
    def of_latents(self) -> bool:
        """Whether the latents are scored, in place of the pictures that the data are."""
        return self.model.codec is not None and self.settings.of == "latents"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example of what is scored."""
        return self.state_shape if self.of_latents else tuple(self.split.x.shape[1:])

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of the state of one example."""
        return state_shape(self.model, self.split.x.shape[1:])

    def checked(self) -> Tensor:
        """Rows to score again for the error estimates, at most ``settings.check`` of them."""
        count = min(self.settings.check, len(self.split))
        rows: Tensor = torch.linspace(0, len(self.split) - 1, count).round().long().unique()
        return rows

    def bits(self, nats: Tensor) -> Tensor:
        """Convert nats to bits per dimension, in the units of the data."""
        return bits_per_dim(nats, self.shape, 1.0)


@dataclass
class Values:
    """One column (N,) for each of ``COLUMNS``; NaN marks values not yet computed."""

    columns: dict[str, Tensor]

    @staticmethod
    def empty(n: int) -> Values:
        """Columns of n examples without values."""
        nan = {name: torch.full((n,), math.nan, dtype=torch.float64) for name in COLUMNS}
        return Values(nan)

    @property
    def done(self) -> Tensor:
        """Rows that are scored."""
        return self.known("nfe")

    def put(self, rows: Tensor, found: Mapping[str, Tensor]) -> None:
        """Store the values of some rows."""
        for name, column in found.items():
            self.columns[name][rows] = column.double().cpu()

    def joined(self, other: Values) -> Values:
        """Merge two sets of values."""
        pairs = {name: (self.columns[name], other.columns[name]) for name in COLUMNS}
        return Values({name: torch.where(a.isnan(), b, a) for name, (a, b) in pairs.items()})

    def known(self, name: str) -> Tensor:
        """Rows where a column has a value."""
        return torch.nonzero(self.columns[name].isfinite()).flatten()


def batches(job: Job, rows: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Score rows batch by batch, yielding the rows (B,) and their columns.

    Raises RuntimeError for values that are not finite, and SolverError if a solver fails.
    """
    checked, estimator, settings = job.checked(), job.estimator, job.settings
    pair, beside = estimator.halved(), job.beside
    # ``split`` of an empty tensor returns one empty part.
    for some in rows.split(settings.batch) if len(rows) else ():
        value = _scored(job, estimator, some, "likelihood", settings.importance)
        nats, wrong = value.log_prob, value.solver_error
        columns = {"nats": nats, "nfe": torch.full((len(some),), value.nfe), **value.parts}
        if beside is not None:
            # An importance-weighted mean of noisy draws may exceed log p, so take the plain mean.
            columns["bound"] = _scored(job, beside, some, "bound", importance=False).log_prob
        _require_finite(columns, some, wrong)
        if wrong is not None:
            columns["solver_error"] = wrong
        if len(twice := torch.nonzero(torch.isin(some, checked)).flatten()):

            def once(other: Estimator, purpose: str, rows: Tensor = some[twice]) -> Tensor:
                return _scored(job, other, rows, purpose, settings.importance).log_prob.cpu()

            others = {"again": once(estimator, "again")}
            if pair is not None:
                fine, coarse = pair
                same = fine == estimator
                first = nats.cpu()[twice] if same else once(fine, "likelihood")
                others["change"] = once(coarse, "likelihood") - first
            for name, found in others.items():
                columns[name] = torch.full((len(some),), math.nan, dtype=torch.float64)
                columns[name][twice] = found.double()
        yield some, columns


class _Found(NamedTuple):
    """Values (B,) over the repeated draws, calls per draw, errors of the solver, and parts."""

    log_prob: Tensor
    nfe: float
    solver_error: Tensor | None
    parts: dict[str, Tensor]


def _scored(
    job: Job, estimator: Estimator, rows: Tensor, purpose: str, importance: bool
) -> _Found:
    device, repeats = job.model.device, job.settings.repeats
    part = job.split.take(rows)
    told: dict[str, Tensor | None] = {}
    if job.conditional:
        told |= said(part, job.scaling.encode(part.x), job.model.conditions)
        if part.label is not None and (not told or job.model.classes is not None):
            told["label"] = part.label
    denoiser, draws = job.model.bound(told), []
    for draw in range(repeats):
        seeds = [derived_seed(job.seed, int(row), f"{purpose} {draw}") for row in rows]
        draws.append(estimator(denoiser, part.x.to(device), job.scaling, per_sample_noise(seeds)))
    drawn = torch.stack([draw.log_prob for draw in draws])
    value = importance_weighted(drawn) if importance else drawn.mean(0)
    errors = [draw.solver_error for draw in draws if draw.solver_error is not None]
    wrong = torch.stack(errors).mean(0) if errors else None
    parts = {
        name: torch.stack(each).mean(0)
        for name in ("distortion", "entropy")
        if None not in (each := [getattr(draw, name) for draw in draws])
    }
    if parts:
        parts["rate"] = -drawn.mean(0) - parts["distortion"]
    return _Found(value, sum(draw.nfe for draw in draws) / repeats, wrong, parts)


def _require_finite(
    columns: Mapping[str, Tensor], rows: Tensor, solver_error: Tensor | None
) -> None:
    """Raise RuntimeError for values that are not finite, unless the solver says it is not done."""
    for name, column in columns.items():
        wrong = ~column.isfinite()
        if name in ("nats", "rate") and solver_error is not None:
            wrong &= solver_error != math.inf
        if bad := int(wrong.sum()):
            row = int(rows[torch.nonzero(wrong).flatten()[0].cpu()])
            raise RuntimeError(
                f"{name} of {bad} of {len(rows)} examples is not finite, the first is row {row}; "
                "check the model, or take more steps"
            )


# The values of an interrupted job ----------------------------------------------------------------


def key(job: Job) -> str:
    """Identify a job by its weights, data, settings and seed, but not its batch size."""
    data = hashlib.sha256(job.split.x.contiguous().numpy().tobytes())
    if job.conditional and job.split.label is not None:
        data.update(job.split.label.numpy().tobytes())
    for name, column in sorted(flat(job.split.columns).items()):
        data.update(name.encode() + column.contiguous().numpy().tobytes())
    model, config = job.model, job.model.config
    state = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
    described: dict[str, Any] = {"sde": repr(model.sde), "coefficients": coefficients(model)}
    if config is not None:
        parts = ("sde", "parameterization", "network")
        described = {name: plain(getattr(config, name)) for name in parts}
    settings = {k: v for k, v in asdict(job.settings).items() if k != "batch"}
    named: dict[str, Any] = {
        "weights": fingerprint({}, state),
        "data": data.hexdigest(),
        "seed": job.seed,
    }
    named |= {"beside": job.bound, "conditional": job.conditional}
    if model.codec is not None:
        named["codec"] = codec_digest(model.codec)
    named["scaling"] = asdict(job.scaling)
    return json.dumps(named | described | settings, sort_keys=True)


@dataclass(frozen=True)
class Partial:
    """Values of an unfinished job: one file per process, in the folder of the report."""

    folder: Path
    key: str
    rank: int = 0

    @property
    def files(self) -> list[Path]:
        """Files of all processes, from this run and earlier ones."""
        return sorted(self.folder.glob("partial-*.npz"))

    def read(self, n: int) -> Values:
        """Read the values in all files. Raises ValueError for a file of another job."""
        values = Values.empty(n)
        for path in self.files:
            try:
                # Opened here, because numpy does not close a damaged archive.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                    same = str(found["key"]) == self.key
                    rows = torch.from_numpy(found["rows"])
                    columns = {name: torch.from_numpy(found[name]) for name in COLUMNS}
            except DAMAGE as error:
                raise ValueError(
                    f"{path}: damaged ({type(error).__name__}); delete it, then resume=True"
                ) from None
            if not same:
                raise ValueError(
                    f"{path}: left by other weights, data or settings; give the same ones "
                    "with resume=True, or overwrite=True"
                )
            values.put(rows, columns)
        return values

    def write(self, values: Values, rows: Tensor) -> None:
        """Write the values of those of these rows that have one."""
        known = rows[torch.isin(rows, values.done)]
        arrays: dict[str, Any] = {name: values.columns[name][known].numpy() for name in COLUMNS}
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(self.key), rows=known.numpy(), **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"partial-{self.rank}.npz"
        atomic_write(path, lambda target: target.write_bytes(buffer.getvalue()))

    def remove(self) -> None:
        """Delete all files."""
        for path in self.files:
            path.unlink(missing_ok=True)
