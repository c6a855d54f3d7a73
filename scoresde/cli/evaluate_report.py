"""What ``scoresde evaluate`` leaves: a page with the table, its numbers as JSON, a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.data import Dataset
from scoresde.evaluation import nearest, neighbour_grid, save_png, scatter
from scoresde.runs.results import Make, replace_all

REPORT = "evaluate.json"
PAGE = "evaluate.txt"
FILES = (REPORT, PAGE, "neighbours.png", "scatter.png")
PAIRS = 48


def require_free(folder: Path, overwrite: bool) -> None:
    """Raise ValueError unless a report may go into the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, not a folder; give another --out")
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        raise ValueError(f"{folder}: holds {held[0]}; give another --out, or --overwrite")


def page(report: Mapping[str, Any], seconds: float) -> str:
    """The table, and what its columns are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "samples", "real", "halves", "better", header_style="bold")
    for row in report["metrics"].values():
        value = _with_error(row["value"], row["error"])
        cells = (row["title"], value, _cell(row["real"]), _cell(row["halves"]), row["better"])
        table.add_row(*cells)
    console = Console(file=io.StringIO(), width=100, highlight=False)
    console.print(table)
    for line in _lines(report, seconds):
        console.print(line, markup=False, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n")


def _lines(report: Mapping[str, Any], seconds: float) -> list[str]:
    other = "training" if report["against"] == "test" else "test"
    accuracy = report["features"].get("test_accuracy")
    judged = (
        "" if accuracy is None else f", whose classifier reads {accuracy:.1%} of the test split"
    )
    lines = [
        f"{report['samples']} samples against the {report['references']} examples of the "
        f"{report['against']} split of {report['data']}, in {seconds:.1f} s",
        f"in {report['features']['name']}{judged}",
        f"real: {report['real']} {other} examples in the samples' place (of the copy rate: the "
        "test split); halves: one half of the references against the other",
    ]
    if report["statistics"] is not None:
        lines.append(f"Frechet distance from the statistics in {report['statistics']}")
    for row in report["metrics"].values():
        lines += [f"{row['title']}: {note}" for note in row["notes"]]
        if row["extrapolated"] is not None:
            limit = f"about {row['extrapolated']:.4g} for endless items"
            lines.append(f"{row['title']}: {limit}")
    return lines


def _with_error(value: float, error: float | None) -> str:
    """The value to two digits of its error."""
    if error is None or not error > 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def picture(dataset: Dataset, reference: Tensor, x: Tensor) -> dict[str, Make]:
    """The samples nearest to training images beside those; of points in the plane a scatter plot.

    Nothing for data of other shapes.
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
    """Replace the report in the folder; while ``evaluate.json`` is there, all belongs to it."""
    files = dict(pictures)
    for name, content in ((PAGE, text), (REPORT, json.dumps(report, indent=2))):
        files[name] = partial(Path.write_text, data=content + "\n")
    replace_all(folder, files, FILES)
