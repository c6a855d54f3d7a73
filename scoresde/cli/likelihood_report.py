"""What ``scoresde likelihood`` says and writes: the mean, how sure it is, a table, a histogram."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.atomic import atomic_write, writing
from scoresde.cli.options import LikelihoodOptions
from scoresde.config import Config, Section, plain
from scoresde.evaluation.figures import histogram
from scoresde.likelihood import bootstrap_interval, draw_error, mean
from scoresde.likelihood.bounds import terminal_gap
from scoresde.likelihood.dequantise import middles
from scoresde.runs import scoring
from scoresde.runs.load import LoadedRun
from scoresde.runs.results import Make, replace_all
from scoresde.runs.scoring import Job, Values
from scoresde.solvers import FIXED_STEP_METHODS

FILES = ("likelihood.json", "values.csv", "values.npz", "histogram.png")
LEVEL = 0.95


@dataclass(frozen=True)
class Prepared:
    """A job with what its report says of it."""

    options: LikelihoodOptions
    loaded: LoadedRun
    config: Config
    job: Job
    name: str
    against: Job | None = None


def report_of(
    ready: Prepared, values: Values, other: Values | None, seconds: float
) -> dict[str, Any]:
    """Everything that is known of the mean, as JSON has it."""
    job, settings = ready.job, ready.config.likelihood
    nats = values.columns["nats"]
    bits = scoring.bits(job, nats)
    found, in_nats = mean(bits), mean(nats)
    scaling = job.scaling
    return {
        "data": ready.name,
        "examples": len(bits),
        "bits_per_dim": found.value,
        "bits_per_dim_se": _number(found.error),
        "interval": None if len(bits) < 2 else list(bootstrap_interval(bits, LEVEL)),
        "draws_se": _number(_draws(job, values)),
        "solver_error": _solver(job, values),
        "lower_bound": _beside(job, values),
        "nats": in_nats.value,
        "nats_se": _number(in_nats.error),
        "is": job.estimator.bounds,
        "warnings": _warnings(ready),
        "levels": scaling.levels,
        "t0": job.estimator.start(job.model.sde, scaling),
        "prior_gap": _prior_gap(job),
        "offset": 0.0 - math.log2(scaling.step),
        "against": None if other is None else _against(ready, bits, other),
        "conditional": ready.options.conditional,
        "seed": ready.options.seed,
        "nfe": float(values.columns["nfe"].mean()),
        "seconds": seconds,
        **{k: v for k, v in plain(settings).items() if k not in ("t0", "dequantisation")},
        "dequantisation": None if scaling.levels is None else _law(settings),
    }


def _draws(job: Job, values: Values) -> float:
    """The standard error that other draws would change, in bits per dimension."""
    rows = values.known("again")
    first, second = (scoring.bits(job, values.columns[c][rows]) for c in ("nats", "again"))
    # A value is a mean of all draws already, and so is the one scored again.
    return draw_error(first, second, len(job.split))


def _solver(job: Job, values: Values) -> dict[str, Any] | None:
    """The mean change when the solver takes half the effort, which its own error is below."""
    rows = values.known("coarse")
    if not len(rows):
        return None
    fine, coarse = (scoring.bits(job, values.columns[c][rows]) for c in ("nats", "coarse"))
    found = mean(coarse - fine)
    return {"change": found.value, "se": _number(found.error), "examples": len(rows)}


def _beside(job: Job, values: Values) -> dict[str, Any] | None:
    if job.beside is None:
        return None
    found = mean(scoring.bits(job, values.columns["bound"]))
    return {
        "bits_per_dim": found.value,
        "bits_per_dim_se": _number(found.error),
        "is": job.beside.bounds,
    }


def _prior_gap(job: Job) -> float:
    """A bound on what the prior costs in place of the law at t_max, in bits per dimension.

    KL(q(x_T | x) | prior), averaged over the data, levels at the end that is further from 0.
    """
    x, sde, scaling = job.split.x.double(), job.model.sde, job.scaling
    if scaling.levels is not None:
        x = middles(x, scaling)
        x = x + x.sign() * scaling.step / 2
    gap = terminal_gap(sde, x, torch.tensor(sde.t_max, dtype=torch.float64))
    return float(gap.mean()) / x[0].numel() / math.log(2)


def _law(settings: Section) -> str:
    """The dequantisation, of a chain the decoder it ends with."""
    return "decoder" if settings.method == "discrete" else settings.dequantisation


def _warnings(ready: Prepared) -> list[str]:
    """What a reader of the number must know."""
    config, found = ready.config, []
    dithered = ready.loaded.config.train.dither
    law, coarser = _law(config.likelihood), ready.job.estimator.coarser()
    uniform = law == "uniform"
    if ready.job.scaling.levels is not None:
        if uniform and not dithered:
            found.append(
                "the model was trained on the levels themselves (train.dither false): uniform "
                "dequantisation scores a law it never saw"
            )
        if not uniform and dithered:
            found.append(
                f"the model was trained on dithered levels: {law} scores a law it never saw, and "
                "its bound is loose"
            )
    if config.likelihood.method not in ("elbo", "discrete") and coarser is None:
        found.append(
            f"{config.likelihood.steps} steps are too few to halve: nothing is known of the "
            "error of the solver"
        )
    if config.likelihood.importance and config.likelihood.trace != "exact":
        found.append(
            "the scatter of the probes lifts an importance-weighted value, which is a bound with "
            "likelihood.trace exact only"
        )
    if ready.options.num is not None:
        found.append(f"the first {ready.options.num} examples only")
    if ready.options.split == "train":
        found.append("examples that the model was trained on")
    return found


def _against(ready: Prepared, bits: Tensor, other: Values) -> dict[str, Any]:
    """The other set's mean, and how well the bits tell the two apart."""
    theirs = scoring.bits(ready.job, other.columns["nats"])
    found = mean(theirs)
    order = torch.cat([bits, theirs]).argsort().argsort().double() + 1
    n, m = len(bits), len(theirs)
    auroc = (float(order[n:].sum()) - m * (m + 1) / 2) / (n * m)
    return {
        "data": str(ready.options.against),
        "examples": m,
        "bits_per_dim": found.value,
        "bits_per_dim_se": _number(found.error),
        "auroc": auroc,
    }


def page(report: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    law = "log p(x | y), true classes" if report["conditional"] else "log p(x)"
    lines = [f"{report['data']}: {report['examples']} examples, {law}; {_effort(report)}"]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines += [*_headline(report), *_beside_lines(report), *_errors(report)]
    lines.append(f"NFE {report['nfe']:.4g} a draw, {report['seconds']:.1f} s")
    return "\n".join(lines)


def _effort(report: Mapping[str, Any]) -> str:
    method = report["method"]
    if method == "elbo":
        return f"elbo, {report['times']} times"
    if method == "discrete":
        return f"discrete, {report['steps']} levels, {report['variance']} variance"
    if method in ("path", *FIXED_STEP_METHODS):
        effort = f"{report['steps']} steps"
    else:
        effort = f"rtol {report['rtol']:g}"
    return f"{report['trace']} trace, {method}, {effort}"


def _headline(report: Mapping[str, Any]) -> list[str]:
    """The value with its interval, and what it is."""
    value = with_error(report["bits_per_dim"], report["bits_per_dim_se"]) + " bits/dim"
    if report["interval"] is not None:
        low, high = report["interval"]
        value += f", {LEVEL:.0%} interval {low:.4f} to {high:.4f}"
    if report["levels"] is None:
        nats = with_error(-report["nats"], report["nats_se"])
        return [
            f"{nats} nats a sample (negative log-density), {report['is']}",
            f"{value}, in the units of the data",
        ]
    draws = f"{report['repeats']} draw(s) an image"
    draws += ", importance-weighted" if report["importance"] else ""
    units = f"{report['levels']} levels, of which the units are {report['offset']:.4f} bits"
    return [value, f"  {report['is']}; t_0 = {report['t0']:.3g}, {draws}, {units}"]


def _beside_lines(report: Mapping[str, Any]) -> list[str]:
    """The bound, and the other set."""
    lines = []
    if (bound := report["lower_bound"]) is not None:
        value = with_error(bound["bits_per_dim"], bound["bits_per_dim_se"])
        lines += [f"{value} bits/dim", f"  {bound['is']}"]
    if (other := report["against"]) is not None:
        value = with_error(other["bits_per_dim"], other["bits_per_dim_se"])
        lines.append(
            f"{value} bits/dim: {other['data']}, {other['examples']} examples, which bits rank "
            f"above in {other['auroc']:.1%} of pairs (AUROC)"
        )
    return lines


def _errors(report: Mapping[str, Any]) -> list[str]:
    """What is known of the parts of the error."""
    lines = []
    if report["draws_se"] is not None:
        lines.append(f"of the error, other draws and probes would change {report['draws_se']:.4f}")
    if (solver := report["solver_error"]) is not None:
        change = with_error(solver["change"], solver["se"])
        lines.append(
            f"half the effort of the solver changes {solver['examples']} of them by {change}"
        )
    lines.append(f"the prior at t_max costs at most {report['prior_gap']:.1e} bits/dim")
    return lines


def with_error(value: float, error: float | None) -> str:
    if error is None or math.isnan(error):
        return f"{value:.4f}"
    return f"{value:.4f} +- {error:.4f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


# --- files --------------------------------------------------------------------------------------


def write_files(
    ready: Prepared, values: Values, other: Values | None, report: Mapping[str, Any]
) -> None:
    """The files of ``--out``, and the table of ``--csv``."""
    options, job = ready.options, ready.job
    table = _table(job, values)
    if options.csv is not None:
        _write_csv(options.csv, table)
    if options.out is None:
        return
    shown = {ready.name: scoring.bits(job, values.columns["nats"])}
    if other is not None:
        shown[str(options.against)] = scoring.bits(job, other.columns["nats"])
    text = json.dumps(report, indent=2) + "\n"
    files: dict[str, Make] = {
        "values.csv": lambda path: path.write_text(_as_csv(table), encoding="utf-8"),
        "values.npz": partial(_as_npz, table=table),
        "histogram.png": partial(histogram, sets=shown, label="bits per dimension"),
        "likelihood.json": lambda path: path.write_text(text, encoding="utf-8"),
    }
    replace_all(options.out, files, FILES)


def _table(job: Job, values: Values) -> dict[str, list[Any]]:
    """The columns of a row an example."""
    n = len(job.split)
    label = [""] * n if job.split.label is None else job.split.label.tolist()
    nats = values.columns["nats"]
    found = {
        "index": list(range(n)),
        "label": label,
        "nats": nats.tolist(),
        "bits_per_dim": scoring.bits(job, nats).tolist(),
    }
    if job.beside is not None:
        found["bound_bits_per_dim"] = scoring.bits(job, values.columns["bound"]).tolist()
    return found


def _as_csv(table: Mapping[str, list[Any]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(table)
    rows.writerows(zip(*table.values(), strict=True))
    return text.getvalue()


def _as_npz(path: Path, table: Mapping[str, list[Any]]) -> None:
    arrays: dict[str, Any] = {
        k: np.array(v) for k, v in table.items() if k != "label" or v[0] != ""
    }
    with path.open("wb") as file:  # of a path numpy would make NAME.npz
        np.savez(file, **arrays)


def _write_csv(path: Path, table: Mapping[str, list[Any]]) -> None:
    def write(target: Path) -> None:
        with target.open("w", newline="") as file:
            file.write(_as_csv(table))

    if path.exists() and os.path.samestat(path.stat(), os.fstat(1)):
        # Opened anew, standard output that goes to a file would lose what it holds.
        print(_as_csv(table), end="", flush=True)
    elif path.is_symlink() or (path.exists() and not path.is_file()):
        with writing(path):  # such as a pipe, which no new file may replace
            write(path)
    else:
        atomic_write(path, write)
