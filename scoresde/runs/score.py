"""Computes log p of every example, and its mean with a standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scoresde.arguments import Count, Natural, check, nearest
from scoresde.config import build
from scoresde.data import Dataset, Scaling, Split, examples
from scoresde.data.sources import column_of, columns_apart
from scoresde.latent import Codec
from scoresde.latent.likelihood import law_of
from scoresde.likelihood.confidence import mean
from scoresde.likelihood.dequantise import middles
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, silent
from scoresde.registry import Scoring
from scoresde.runs import scoring
from scoresde.runs.compatibility import require_same_data
from scoresde.runs.draw import Drawn
from scoresde.runs.processes import World
from scoresde.runs.results import require_writable
from scoresde.runs.said import require_said
from scoresde.runs.scoring import Job, Partial, Values
from scoresde.runs.train_setup import takes_labels
from scoresde.sde import SDE
from scoresde.solvers import SolverError
from scoresde.training.held_out import evaluating
from scoresde.training.said import columns_read, words_of

FILES = ("likelihood.json", "values.csv", "values.npz", "histogram.png")
KEEP_SECONDS = 5.0
ALONE = World()


class Stopped(RuntimeError):
    """Raised when scoring stops before every example has a value."""


@dataclass(frozen=True, eq=False)
class Scores:
    """log p of every example, in nats and in bits, with the standard error of the mean."""

    job: Job
    values: Values
    seconds: float

    @property
    def log_prob(self) -> Tensor:
        """log p (N,) in nats: a probability of pixel levels, or a density in units of the data.

        NaN for an example whose solver did not reach its end.
        """
        return self.values.columns["nats"]

    @property
    def bits(self) -> Tensor:
        """Bits per dimension (N,), -log2 p / D."""
        return self.job.bits(self.log_prob)

    @property
    def bits_per_dim(self) -> float:
        """Mean of ``bits`` over the examples that have a value."""
        return mean(valued(self.bits)).value

    @property
    def standard_error(self) -> float:
        """The standard error of ``bits_per_dim``; NaN for a single example."""
        return mean(valued(self.bits)).error

    @property
    def bound(self) -> Tensor | None:
        """Lower bound of log p (N,) in nats; None if not requested."""
        return self.values.columns["bound"] if self.job.bound else None

    @property
    def solver_error(self) -> Tensor | None:
        """Estimated errors of the solver (N,) in nats; None if it does not estimate them."""
        return self._part("solver_error")

    @property
    def distortion(self) -> Tensor | None:
        """-log p(x | z) (N,) in nats of pictures through a codec, averaged over draws of z."""
        return self._part("distortion")

    @property
    def rate(self) -> Tensor | None:
        """log q(z | x) - log p(z) (N,) in nats of pictures through a codec, averaged over z.

        With ``distortion`` it adds up to -``log_prob``, unless the draws are importance-weighted.
        """
        return self._part("rate")

    def _part(self, name: str) -> Tensor | None:
        found = self.values.columns[name]
        return None if bool(found.isnan().all()) else found

    @property
    def nfe(self) -> float:
        """Network calls per draw, averaged over the examples."""
        return float(self.values.columns["nfe"].mean())


def score(
    model: ScoreModel,
    data: Any,
    *,
    label: Any = None,
    split: Literal["test", "train"] = "test",
    num: Count | None = None,
    conditional: bool | None = None,
    bound: bool = False,
    seed: Natural = 0,
    settings: Scoring | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    stopping: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> Scores:
    """Compute log p of each example, in the units of the data.

    The value of an example is a function of the seed and its row alone. Further keyword arguments
    are fields of ``registry.Scoring``, such as ``method="adaptive"`` or ``trace="exact"``.

    Args:
        model: trained model, such as ``load`` returns; it is scored in evaluation mode.
        data: examples: a tensor, a pair (x, label) or of x and a mapping of columns by name, a
            Split, a Dataset, a path, or what ``draw`` returns.
        label: class of every example of a tensor, or a single class for all.
        split: part of a Dataset to score.
        num: number of examples, from the first on; all by default.
        conditional: score log p(x | y) instead of log p(x), where y is what the data say of each
            example; by default if a tensor comes with it and the model takes it.
        bound: also compute the variational lower bound.
        seed: seed of all random draws.
        settings: estimator of log p; by default that of the configuration of the model.
        out: folder that stores the values so far, for ``resume``.
        resume: continue with the values that an interrupted call left in ``out``.
        overwrite: replace what ``out`` holds.
        progress: shows how many examples are scored.
        stopping: called after every batch; True stops the scoring.

    Raises ValueError for bad arguments, RuntimeError for values that are not finite, Stopped when
    ``stopping`` returns True, and SolverError if a solver fails for every example.
    """
    if out is None and (resume or overwrite):
        raise ValueError("resume and overwrite need out, the folder that keeps the values")
    if settings is None:
        changes = {"check": 0, **changes}  # the check is needed for a report only
    chosen = chosen_settings(model, settings, changes)
    job = prepared(
        model,
        data,
        chosen,
        label=label,
        split=split,
        num=num,
        conditional=conditional,
        bound=bound,
        seed=seed,
    )
    part = None if out is None else kept(job, Path(out), resume=resume, overwrite=overwrite)
    with evaluating(model):
        found = scored(job, part, progress=progress, stopping=stopping)
    if part is not None:
        part.remove()
    return found


def chosen_settings(
    model: ScoreModel, settings: Scoring | None, changes: dict[str, Any]
) -> Scoring:
    """Apply ``changes`` to the settings. Raises ValueError for an unknown setting."""
    if not isinstance(model, ScoreModel):
        raise ValueError(f"model: {type(model).__name__} is none; give a ScoreModel")
    known = [field.name for field in fields(Scoring)]
    for name in changes:
        if name not in known:
            raise ValueError(f"unknown setting {name!r}; {nearest(name, known)}")
    if settings is None:
        settings = Scoring() if model.config is None else build(model.config.likelihood)
    return replace(settings, **changes)


def prepared(
    model: ScoreModel,
    data: Any,
    settings: Scoring,
    *,
    label: Any = None,
    split: Literal["test", "train"] = "test",
    num: Count | None = None,
    conditional: bool | None = None,
    bound: bool = False,
    seed: Natural = 0,
) -> Job:
    """Check the arguments of ``score`` and return its job, before any computation."""
    check(prepared, locals())
    t0, sde, notes = settings.t0, model.sde, list[str]()
    _require_start(t0, sde)
    data, own, told = columns_apart(data)
    label = own if label is None else label
    found, name, classes = _examples(model, data, label, split)
    if told:
        found = replace(found, columns={k: column_of(k, values) for k, values in told.items()})
    given = bool(told) or label is not None or (isinstance(data, tuple) and len(data) == 2)
    if conditional is None:
        conditional = given and (_has_classes(model) or bool(model.conditions))
        if label is not None and not conditional:
            raise ValueError("label: this model was trained without classes; leave it out")
    if not (conditional and model.conditions) or model.classes is not None:
        _require_classes(model, conditional, found, classes, name)
    words = words_of(data) if isinstance(data, Dataset) else {}
    if classes is not None and not isinstance(data, Drawn):  # whose labels are the model's
        words["label"] = classes
    found = _columns(model, conditional, found, classes, words)
    if num is not None:
        if num > len(found):
            raise ValueError(f"num: there are {len(found)} examples, got {num}")
        found = found.take(torch.arange(num))
        notes.append(f"the first {'example' if num == 1 else f'{num} examples'} only")
    if split == "train" and isinstance(data, Dataset):
        notes.append("examples that the model was trained on")
    scaling = Scaling() if model.data is None else model.data.scaling
    _require_latents(model.codec, settings, found.x[:1], scaling)
    return Job(model, found, scaling, settings, name, bound, conditional, seed, notes=tuple(notes))


def scored(
    job: Job,
    part: Partial | None = None,
    world: World = ALONE,
    barrier: Callable[[], None] = lambda: None,
    progress: Progress = silent,
    stopping: Callable[[], bool] = lambda: False,
) -> Scores:
    """Run a job; ``part`` stores the values so far.

    Several processes divide the rows among them and need a ``part``; the first one returns all
    values. Raises Stopped when ``stopping`` returns True before every example has a value.
    """
    started, n = time.perf_counter(), len(job.split)
    if job.model.codec is not None:
        job.model.codec.to(job.model.device)
    barrier()  # until overwrite has deleted the earlier files
    values = Values.empty(n) if part is None else part.read(n)
    before = values.done
    barrier()  # until all have read the files, before any writes
    if part is not None and world.rank == 0 and len(before):
        # An earlier run may have had other processes, whose files are about to be replaced.
        part.write(values, before)
    barrier()
    everything = torch.arange(n)
    rows = world.share(everything[~torch.isin(everything, before)])
    own = torch.cat([before, rows]) if world.rank == 0 else rows
    last = time.monotonic()
    with progress(len(own), "scored") as advance:
        advance(len(own) - len(rows))
        for some, found in scoring.batches(job, rows):
            values.put(some, found)
            so_far = mean(valued(job.bits(values.columns["nats"])))
            advance(len(some), f"{with_error(*so_far)} bits/dim")
            stop = stopping()
            if part is not None and (stop or time.monotonic() - last >= KEEP_SECONDS):
                part.write(values, own)
                last = time.monotonic()
            if stop and len(values.done) < n:
                where = "nothing is kept without out"
                if part is not None:
                    where = f"kept in {part.folder}; go on with resume=True"
                raise Stopped(f"{len(values.done)} of {n} examples scored, {where}")
    if part is not None and world.size > 1:
        part.write(values, own)
    barrier()
    if part is not None and world.rank == 0 and world.size > 1:
        values = part.read(n).joined(values)
    if world.rank == 0 and (missing := n - len(values.done)):
        raise RuntimeError(f"{missing} examples have no value; go on with resume=True")
    result = Scores(job, values, time.perf_counter() - started)
    if n and world.rank == 0 and not len(valued(result.log_prob)):
        raise SolverError(
            f"likelihood: none of {n} examples has a value, since no solve reached its end; "
            "loosen rtol and atol"
        )
    return result


def valued(x: Tensor) -> Tensor:
    """The finite values among ``x`` (N,), which are those of the examples that were solved."""
    return x[x.isfinite()]


def with_error(value: float, error: float | None) -> str:
    """Format a number with its error, if known."""
    known = error is not None and error == error
    return f"{value:.4f} +- {error:.4f}" if known else f"{value:.4f}"


def kept(
    job: Job, out: Path, rank: int = 0, *, resume: bool = False, overwrite: bool = False
) -> Partial:
    """Prepare the folder that stores the values so far of a job.

    Raises ValueError for a folder with other results, OSError if it cannot be written.
    """
    require_room(out, resume=resume, overwrite=overwrite)
    require_writable(out)
    part = Partial(out, scoring.key(job), rank)
    if overwrite and rank == 0:
        part.remove()
    return part


def require_room(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise ValueError unless a job may write its values and its report to the folder."""
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True exclude each other; give one of them")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; give a folder")
    interrupted = bool(list(out.glob("partial-*.npz")))
    if resume and not interrupted:
        raise ValueError(f"resume: {out} holds nothing to go on with; leave it out")
    if resume or overwrite:
        return
    if taken := [name for name in FILES if (out / name).exists()]:
        raise ValueError(f"out: {out} holds {taken[0]}; give another folder, or overwrite=True")
    if interrupted:
        raise ValueError(
            f"out: {out} holds an interrupted evaluation; go on with resume=True, or "
            "overwrite=True"
        )


# The examples ------------------------------------------------------------------------------------


def _examples(
    model: ScoreModel, data: Any, label: Any, split: str
) -> tuple[Split, str, tuple[str, ...] | None]:
    """Read the examples to score, with their name and the names of their classes."""
    known = model.data
    if isinstance(data, Drawn):
        data = Split(data.x, data.label)
    columns = data.columns if isinstance(data, Split) else {}
    if isinstance(data, Dataset):
        if known is not None:
            require_same_data(data, known)
        chosen = data.train if split == "train" else data.test
        return chosen, f"{data.name}, {split} split", data.classes
    path = isinstance(data, str | Path)
    name = str(data) if path else "data"
    if known is not None:
        of_pictures = {} if model.config is None else model.config.data.values
        fit = {key: of_pictures.get(key) for key in ("size", "channels")} if path else {}
        found = examples(
            data, known.shape, known.scaling, label=label, classes=known.classes, **fit
        )
        return replace(found, columns=columns), name, known.classes
    x = data[0] if isinstance(data, tuple) else getattr(data, "x", data)
    if path or not hasattr(x, "shape"):
        raise ValueError(
            "data: the model does not say what it was trained on; give a tensor in model units"
        )
    found = examples(data, tuple(x.shape[1:]), Scaling(), label=label)
    return replace(found, columns=columns), name, None


def _has_classes(model: ScoreModel) -> bool:
    """True if a model was trained with classes, or, if unknown, if its network takes labels."""
    if model.config is not None:
        return bool(model.config.conditional)
    if model.data is None:
        return takes_labels(model.net)
    return model.data.classes is not None


def _columns(
    model: ScoreModel,
    conditional: bool,
    split: Split,
    classes: tuple[str, ...] | None,
    words: Mapping[str, tuple[str, ...]],
) -> Split:
    """The split with the columns that are told to the model, read.

    Raises ValueError if the model needs to be told what is not asked for, or what there is not.
    """
    if conditional:
        known = None if model.data is None else model.data.classes
        if "label" in model.conditions and known not in (None, classes):
            raise ValueError("conditional: these are not the classes of the model; leave it out")
        try:
            return columns_read(split, model.conditions, words)
        except ValueError as error:
            raise ValueError(f"conditional: {error}; leave it out") from None
    require_said(model, remedy="; give conditional=True")
    return replace(split, columns={})


def _require_start(t0: float | None, sde: SDE) -> None:
    """Raise ValueError for a time outside the range of training."""
    if t0 is not None and not sde.t_min <= t0 < sde.t_max:
        raise ValueError(
            f"likelihood.t0: need {sde.t_min:g} to below {sde.t_max:g}, where the model was "
            f"trained, got {t0:g}"
        )


def _require_latents(codec: Codec | None, settings: Scoring, x: Tensor, scaling: Scaling) -> None:
    """Raise ValueError for settings that need another codec; ``x`` (1, ...) is an example."""
    if codec is None:
        asked = {"of=latents": settings.of == "latents", "relative=true": settings.relative}
        for name in (name for name, given in asked.items() if given):
            raise ValueError(f"likelihood.{name}: this model has no codec; leave it out")
        return
    codec.latent_shape(tuple(x.shape[1:]))
    if settings.of == "latents":
        return
    with torch.no_grad():
        law_of(codec, codec.encode(middles(x, scaling).to(codec.latents_mean)).std)
    if codec.adversarial and not settings.relative:
        raise ValueError(
            "likelihood: a discriminator trained this codec, so that bits/dim of its pictures "
            "compare with those of no other; give relative=true to compare models of its latents"
        )


def _require_classes(
    model: ScoreModel,
    conditional: bool,
    split: Split,
    classes: tuple[str, ...] | None,
    name: str,
) -> None:
    """Raise ValueError if the model needs labels but has none, or cannot take those given."""
    config, known = model.config, model.data
    if not conditional:
        if model.needs_label:
            raise ValueError("the network needs a class; give conditional=True")
        if config is not None and config.conditional and config.train.label_dropout == 0:
            raise ValueError(
                "this model never learned to do without a class (train.label_dropout=0); "
                "give conditional=True"
            )
        return
    if config is not None and not config.conditional:
        raise ValueError("conditional: this model was trained without classes; leave it out")
    if split.label is None:
        kind = "labels"
        if known is None:
            kind = "numbers as labels, and the model names no classes"
        raise ValueError(f"conditional: {name} has no {kind}; give label, or leave it out")
    if known is not None and classes != known.classes:
        raise ValueError(f"conditional: {name} has not the classes of {known.name}; leave it out")
