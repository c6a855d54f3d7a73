"""Report of scored data: the mean with its errors, a table and a histogram."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write, writing
from scoresde.evaluation.figures import histogram
from scoresde.likelihood.bounds import terminal_gap
from scoresde.likelihood.confidence import Mean, draw_error, mean, mean_interval
from scoresde.likelihood.dequantise import middles
from scoresde.likelihood.path import default_tolerance
from scoresde.runs.results import Make, replace_all, save_arrays
from scoresde.runs.score import FILES, Scores, valued, with_error
from scoresde.runs.scoring import PARTS, Job
from scoresde.solvers import FIXED_STEP_METHODS
from scoresde.training.held_out import evaluating

LEVEL = 0.95
WIDTH = 79


def report_of(scores: Scores, other: Scores | None = None) -> dict[str, Any]:
    """Summary as JSON values; ``other`` is a set to distinguish from the scored data."""
    job, bits, settings = scores.job, valued(scores.bits), scores.job.settings
    values, levels = scores.values, None if job.of_latents else job.scaling.levels
    in_nats = mean(valued(scores.log_prob))
    # Both the value and its repetition are means over all draws.
    repeated = job.bits(values.columns["again"] - values.columns["nats"])
    draws = draw_error(valued(repeated), torch.tensor(0.0), len(bits))
    solver, changes = None, valued(job.bits(values.columns["change"]))
    if len(changes):
        change = mean(changes)
        solver = {"change": change.value, "se": _number(change.error), "examples": len(changes)}
    interval = None if len(bits) < 2 else mean_interval(bits, LEVEL)
    doubts = []
    if interval is not None and interval.doubt is not None:
        doubts = [f"the interval cannot be trusted: {interval.doubt}"]
    if late := len(scores.bits) - len(bits):
        doubts.append(
            f"{late} of {examples(len(scores.bits))} did not reach the end of the solver; the "
            "mean leaves them out, though they may be the least likely"
        )
    bound = None
    if job.beside is not None and scores.bound is not None:
        theirs = scores.bound[scores.bits.isfinite()]  # of the examples that the value is of
        bound = {**_as_bits(mean(job.bits(theirs))), "is": job.beside.bounds}
    return {
        "data": job.name,
        "examples": len(scores.bits),
        **_as_bits(mean(bits)),
        "interval": None if interval is None else [interval.low, interval.high],
        "draws_se": _number(draws),
        "solver_error": solver,
        "told_error": _told(scores),
        "parts": _parts(scores),
        "uncertain": _uncertain(scores),
        "lower_bound": bound,
        "nats": in_nats.value,
        "nats_se": _number(in_nats.error),
        "is": job.estimator.bounds,
        "warnings": [*_warnings(job), *doubts],
        "levels": levels,
        "t0": job.estimator.start(job.model.sde, job.scaling),
        "prior_gap": prior_gap(job),
        "offset": 0.0 if levels is None else 0.0 - math.log2(job.scaling.step),
        "against": None if other is None else _against(scores, other),
        "conditional": job.conditional,
        "seed": job.seed,
        "nfe": scores.nfe,
        "seconds": scores.seconds,
        **{k: v for k, v in asdict(settings).items() if k not in ("t0", "dequantisation")},
        "dequantisation": None if levels is None or job.model.codec else settings.law,
    }


def _parts(scores: Scores) -> dict[str, Any] | None:
    """Means of the parts of the bound of pictures through a codec."""
    if scores.distortion is None:
        return None
    columns = scores.values.columns
    return {name: _as_bits(mean(scores.job.bits(-valued(columns[name])))) for name in PARTS}


def _told(scores: Scores) -> float | None:
    """Mean of the errors that the solver estimates, in bits per dimension."""
    if scores.solver_error is None or not len(errors := valued(scores.solver_error)):
        return None
    return -float(scores.job.bits(errors.mean()))


def _uncertain(scores: Scores) -> dict[str, Any] | None:
    """Number of examples whose solver error is above the tolerance, in nats."""
    if (errors := scores.solver_error) is None:
        return None
    job = scores.job
    limit = job.settings.tolerance or default_tolerance(math.prod(job.state_shape))
    return {"examples": int((errors > limit).sum()), "above_nats": limit}


def prior_gap(job: Job) -> float:
    """Upper bound on the cost of replacing the law at t_max by the prior, in bits per dimension.

    It is KL(q(x_T | x) | prior) averaged over the data. Pixel levels take the end of their bin
    that is further from 0, and latents their root mean square.
    """
    sde, t = job.model.sde, torch.tensor(job.model.sde.t_max, dtype=torch.float64)
    rows = torch.arange(len(job.split)).split(job.settings.batch)
    gaps = torch.cat([terminal_gap(sde, _sizes(job, some), t).cpu() for some in rows])
    return float(gaps.mean()) / math.prod(job.shape) / math.log(2)


def _sizes(job: Job, rows: Tensor) -> Tensor:
    """Sizes of the states of some rows in model units: see ``prior_gap``."""
    codec, x = job.model.codec, middles(job.split.take(rows).x, job.scaling)
    if codec is not None:
        with evaluating(codec), torch.no_grad():
            mean, std = (part.double() for part in codec.encode(x.to(codec.latents_mean)))
        ends = (codec.standardised(mean - std), codec.standardised(mean + std))
        return torch.hypot(*ends) / math.sqrt(2)
    return x if job.scaling.levels is None else x + x.sign() * job.scaling.step / 2


def _warnings(job: Job) -> list[str]:
    """Remarks without which the result would be misleading."""
    settings, config, found = job.settings, job.model.config, list[str]()
    if job.scaling.levels is not None and config is not None and job.model.codec is None:
        uniform, dithered = settings.law == "uniform", config.train.dither
        if uniform and not dithered:
            found.append(
                "the model was trained on the levels themselves (train.dither false): uniform "
                "dequantisation scores a distribution it never saw"
            )
        if not uniform and dithered:
            found.append(
                f"the model was trained on dithered levels: {settings.law} scores a distribution "
                "it never saw, and its bound is loose"
            )
    judged = settings.method == "path" and settings.trace == "exact"
    bound = settings.method in ("elbo", "discrete")
    if not judged and not bound and job.estimator.halved() is None:
        found.append(
            f"{settings.steps} steps are too few to halve: the error of the solver is unknown"
        )
    if settings.importance and settings.trace != "exact":
        found.append(
            "random probes raise an importance-weighted value, which is a bound with "
            "likelihood.trace exact only"
        )
    if settings.relative and job.model.codec.adversarial:
        found.append(
            "relative only: a discriminator trained the codec, so that the value compares with "
            "those of models of its latents and with no other"
        )
    return [*found, *job.notes]


def _against(scores: Scores, other: Scores) -> dict[str, Any]:
    """Mean of the other set, and the AUROC of distinguishing the sets by their bits."""
    bits, theirs = valued(scores.bits), valued(other.bits)
    order = torch.cat([bits, theirs]).argsort().argsort().double() + 1
    n, m = len(bits), len(theirs)
    auroc = (float(order[n:].sum()) - m * (m + 1) / 2) / (n * m)
    return {
        "data": other.job.name,
        "examples": len(other.bits),
        **_as_bits(mean(theirs)),
        "auroc": auroc,
    }


def _as_bits(found: Mean) -> dict[str, float | None]:
    return {"bits_per_dim": found.value, "bits_per_dim_se": _number(found.error)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# The page ----------------------------------------------------------------------------------------


def page(report: Mapping[str, Any]) -> str:
    """Format the report as text, at most 79 characters wide."""
    what = "z" if report["of"] == "latents" else "x"
    law = f"log p({what} | y) with the true y" if report["conditional"] else f"log p({what})"
    lines = [
        f"{report['data']}: {examples(report['examples'])}, {law}",
        f"method: {_effort(report)}; {report['nfe']:.4g} evaluations per draw, "
        f"{report['seconds']:.1f} s",
        *(f"warning: {warning}" for warning in report["warnings"]),
        *_headline(report),
    ]
    if (uncertain := report["uncertain"]) is not None and uncertain["examples"]:
        lines.insert(
            2,
            f"warning: {uncertain['examples']} of {examples(report['examples'])} uncertain by "
            f"more than {uncertain['above_nats']:.3g} nats, by the estimate of the solver",
        )
    if (parts := report["parts"]) is not None:
        lines.append(
            f"distortion {_bits(parts['distortion'])} and rate {_bits(parts['rate'])} bits/dim, "
            "means over the draws"
        )
    if (bound := report["lower_bound"]) is not None:
        lines += [f"{_bits(bound)} bits/dim", f"  {bound['is']}"]
    if (other := report["against"]) is not None:
        lines += [
            f"{_bits(other)} bits/dim: {other['data']}, {examples(other['examples'])}",
            f"  they have more bits than the data in {other['auroc']:.1%} of pairs (AUROC)",
        ]
    if report["draws_se"] is not None:
        lines.append(f"error from random draws and probes: {report['draws_se']:.4f} bits/dim")
    if report["told_error"] is not None:
        lines.append(
            f"error of the solver, by its own estimate: {report['told_error']:.1e} bits/dim"
        )
    if (solver := report["solver_error"]) is not None:
        change = with_error(solver["change"], solver["se"])
        lines.append(
            f"change with half the solver's effort: {change} bits/dim "
            f"({examples(solver['examples'])})"
        )
    lines.append(f"cost of the prior at t_max: at most {report['prior_gap']:.1e} bits/dim")
    return "\n".join(part for line in lines for part in _wrapped(line))


def examples(n: int) -> str:
    """Format a number of examples, such as "2 examples"."""
    return "1 example" if n == 1 else f"{n} examples"


def _wrapped(line: str) -> list[str]:
    indent = "  " if line.startswith("  ") else "    "
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _effort(report: Mapping[str, Any]) -> str:
    method = report["method"]
    if method == "elbo":
        return f"elbo, {report['times']} times"
    if method == "discrete":
        return f"discrete, {report['steps']} times, {report['variance']} variance"
    if method in ("path", *FIXED_STEP_METHODS):
        effort = f"{report['steps']} steps"
    else:
        effort = f"rtol {report['rtol']:g}"
    return f"{method}, {effort}, {report['trace']} trace"


def _headline(report: Mapping[str, Any]) -> list[str]:
    """Lines with the value, its interval, and the quantity that it estimates."""
    value = f"{_bits(report)} bits/dim"
    if report["interval"] is not None:
        low, high = report["interval"]
        value += f", {LEVEL:.0%} interval {low:.4f} to {high:.4f}"
    draws = f"{report['repeats']} draw{'s' * (report['repeats'] > 1)} per image"
    draws += ", importance-weighted" if report["importance"] else ""
    if report["levels"] is None:
        units = "latents" if report["of"] == "latents" else "data"
        nats = with_error(-report["nats"], report["nats_se"])
        return [
            f"{nats} nats per sample (negative log-density)",
            f"{value}",
            f"  {report['is']}, in the units of the {units}",
        ]
    return [
        value,
        f"  {report['is']}",
        f"  t_0 = {report['t0']:.3g}, {draws}",
        f"  {report['levels']} levels; a density in model units would have "
        f"{report['offset']:.4f} bits less",
    ]


def _bits(found: Mapping[str, Any]) -> str:
    return with_error(found["bits_per_dim"], found["bits_per_dim_se"])


# Files -------------------------------------------------------------------------------------------


def write_report(
    out: Path, scores: Scores, report: Mapping[str, Any], other: Scores | None = None
) -> None:
    """Write the report, the value of every example and a histogram atomically."""
    shown = {part.job.name: valued(part.bits) for part in (scores, other) if part is not None}
    table, text = _table(scores), json.dumps(report, indent=2) + "\n"
    arrays = {k: np.array(v) for k, v in table.items() if k != "label" or v[0] != ""}
    files: dict[str, Make] = {
        "values.csv": lambda path: path.write_text(_as_csv(table), encoding="utf-8"),
        "values.npz": lambda path: save_arrays(path, **arrays),
        "histogram.png": partial(histogram, sets=shown, label="bits per dimension"),
        "likelihood.json": lambda path: path.write_text(text, encoding="utf-8"),
    }
    replace_all(out, files, FILES)


def csv_text(scores: Scores) -> str:
    """Format the value of every example as CSV."""
    return _as_csv(_table(scores))


def write_csv(path: Path, scores: Scores) -> None:
    """Write the value of every example as CSV to a file or a pipe."""

    def write(target: Path) -> None:
        with target.open("w", newline="") as file:
            file.write(csv_text(scores))

    if path.is_symlink() or (path.exists() and not path.is_file()):
        with writing(path):  # such as a pipe, which must not be replaced by a file
            write(path)
    else:
        atomic_write(path, write)


def require_csv(path: Path) -> None:
    """Raise ValueError or OSError if the table cannot be written, before any computation."""
    if not path.parent.is_dir():
        raise ValueError(f"csv: {path}: no such folder; make it first")
    new = not path.exists()
    with writing(path):
        path.open("a").close()
    if new:
        path.unlink()


def _table(scores: Scores) -> dict[str, list[Any]]:
    """Columns of the table, with one row per example."""
    label, bits = scores.job.split.label, scores.job.bits
    found = {
        "index": list(range(len(scores.bits))),
        "label": [""] * len(scores.bits) if label is None else label.tolist(),
        "nats": scores.log_prob.tolist(),
        "bits_per_dim": scores.bits.tolist(),
    }
    if scores.solver_error is not None:
        found["solver_error_nats"] = scores.solver_error.tolist()
    if scores.bound is not None:
        found["bound_bits_per_dim"] = bits(scores.bound).tolist()
    if scores.distortion is not None:
        columns = scores.values.columns
        found |= {f"{name}_bits_per_dim": bits(-columns[name]).tolist() for name in PARTS}
    return found


def _as_csv(table: Mapping[str, list[Any]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(table)
    rows.writerows(zip(*table.values(), strict=True))
    return text.getvalue()
