"""Report of an evaluation: a page with a table, the numbers as JSON, and a picture."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.data import Dataset
from scoresde.evaluation import nearest, neighbour_grid, save_png, scatter
from scoresde.runs.results import Make, replace_all

REPORT, PAGE = "evaluate.json", "evaluate.txt"
CALIBRATION = "calibration.png"
FILES = (REPORT, PAGE, "neighbours.png", "scatter.png", CALIBRATION)
PAIRS = 48
WIDTH = 79
TITLES = {
    "p_value": "p-value of the ranks",
    "residual": "residual of the measurement",
    "crps": "CRPS",
    "prior_crps": "CRPS of the prior",
    "skill": "skill over the prior",
    "energy": "energy score",
}


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder holds a report already, unless ``overwrite``."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file; give a folder")
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        raise ValueError(f"out: {folder} holds {held[0]}; give another folder, or overwrite=True")


def page(report: Mapping[str, Any], seconds: float) -> str:
    """Format the table and an explanation of its columns, at most 79 characters wide."""
    head = ("", "samples", "real", "halves", "better")
    table = [head, *(_cells(row) for row in report["metrics"].values())]
    return _page(table, _lines(report, seconds))


def calibration_page(report: Mapping[str, Any], seconds: float) -> str:
    """Format the table of a calibration and what it is of, at most 79 characters wide."""
    table = [("", "found", "true posterior")]
    for name, row in report["rows"].items():
        title = TITLES.get(name, f"{name.replace('%', ' %')} intervals")
        table.append((title, _with_error(row["value"], row["error"]), _cell(row["ideal"])))
    quantities = report["quantities"]
    worst = min(quantities, key=lambda name: quantities[name]["p_value"] or 0)
    done, asked = report["examples"], report["asked"]
    settings = "".join(f", {key} {value}" for key, value in report["settings"].items())
    lines = [
        "",
        f"{done if done == asked else f'{done} of {asked}'} test examples of {report['data']}, "
        f"{report['draws']} draws each, NFE {report['nfe']:g}, in {seconds:.1f} s",
        f"posterior: {report['posterior']} of {report['operator']}{settings}, noise "
        f"{report['noise']:g}",
        "coverage: the proportion of truths in central intervals; too low if draws are too narrow "
        "or displaced, too high if they are too wide",
        "p-value: needs 10 examples"
        if report["rows"]["p_value"]["value"] is None
        else f"p-value: the smallest of {len(quantities)} quantities, that of {worst}, times "
        f"{len(quantities)}; if it is small, such as 0.01, this is not the true posterior",
        f"scores are in model units; the prior is that of {report['prior']} training examples",
    ]
    return _page(table, lines)


def _page(table: Sequence[tuple[str, ...]], lines: Sequence[str]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in table]
    rows.insert(1, "  ".join("-" * width for width in widths))
    text = [row.rstrip() for row in rows]
    for line in lines:
        text += textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) or [
            ""
        ]
    return "\n".join(text)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = _with_error(row["value"], row["error"])
    return row["title"], value, _cell(row["real"]), _cell(row["halves"]), row["better"]


def _lines(report: Mapping[str, Any], seconds: float) -> list[str]:
    other = "training" if report["against"] == "test" else "test"
    accuracy = report["features"].get("test_accuracy")
    judged = f" (accuracy {accuracy:.1%} on the test split)" if accuracy is not None else ""
    lines = [
        "",
        f"{report['samples']} samples against the {report['references']} examples of the "
        f"{report['against']} split of {report['data']}, in {seconds:.1f} s",
        f"compared by: {report['features']['name']}{judged}",
        f"real: the value of {report['real']} {other} examples in place of the samples; for the "
        "copy rate, that of the test split",
        "halves: the value of one half of the references against the other",
    ]
    if report["statistics"] is not None:
        lines.append(f"Frechet distance: from the statistics in {report['statistics']}")
    for row in report["metrics"].values():
        lines += [f"{row['title']}: {note}" for note in row["notes"]]
        if row["extrapolated"] is not None:
            lines.append(
                f"{row['title']}: about {row['extrapolated']:.4g} for an infinite number of items"
            )
    return lines


def _with_error(value: float | None, error: float | None) -> str:
    """Format a value with two digits of its error."""
    if value is None:
        return "-"
    if error is None or not error > 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def picture(dataset: Dataset, reference: Tensor, x: Tensor) -> dict[str, Make]:
    """Picture of the samples closest to training images beside these, or a scatter plot.

    Two-dimensional points get the scatter plot. Data of other shapes have no picture.
    """
    train, scaling = dataset.train.x, dataset.scaling
    if x.ndim == 2 and x.shape[1] == 2:
        return {"scatter.png": partial(scatter, panels={"real": reference, "samples": x})}
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return {}
    index, distance = nearest(x.flatten(1), train.flatten(1))
    closest = distance.argsort(stable=True)[:PAIRS]
    left, right = (scaling.to_uint8(scaling.encode(part[closest])) for part in (x, train[index]))
    return {"neighbours.png": partial(save_png, picture=neighbour_grid(left, right))}


def write(
    folder: Path, report: Mapping[str, Any], text: str, pictures: Mapping[str, Make]
) -> None:
    """Replace the report in the folder; ``evaluate.json`` exists only when all files do."""
    files = dict(pictures)
    for name, content in ((PAGE, text), (REPORT, json.dumps(report, indent=2))):
        files[name] = partial(Path.write_text, data=content + "\n")
    replace_all(folder, files, FILES)
