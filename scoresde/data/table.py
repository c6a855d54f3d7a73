"""Tables of numbers as text: CSV with or without a header, or columns separated by spaces."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoresde.data.dataset import DataError
from scoresde.data.labels import listing

SUFFIXES = (".csv", ".tsv", ".txt")
LABELS = ("label", "labels", "class", "y", "target")


class Table(NamedTuple):
    """Numbers (N, D), labels (N,) or None, notes for the user, and columns (N,) apart."""

    x: np.ndarray
    y: np.ndarray | None
    notes: tuple[str, ...]
    apart: Mapping[str, np.ndarray] = {}


def read_table(path: Path, apart: Sequence[str] = ()) -> Table:
    """The numbers in a text file, one example per line.

    Columns are separated by commas, semicolons, tabs or spaces. A first line without numbers is a
    header; then a column named as in LABELS holds classes, and a first column without a name is an
    index, which is ignored. Columns ``apart``, by name, are no part of the examples. Raises
    DataError, stating line and column, for other text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _rows(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not readable as UTF-8 text ({error}); save it as CSV") from error
    names = [f"{k + 1}" for k in range(len(rows[0][1]))]
    if not any(map(_is_number, rows[0][1])):
        names, rows = rows[0][1], rows[1:]
    if not rows:
        raise DataError("names of columns but no rows; give numbers")
    lower = [name.lower() for name in names]
    label = next((lower.index(name) for name in LABELS if name in lower), None)
    index = 0 if names[0] == "" else None
    if strange := [name for name in apart if name not in names]:
        raise DataError(f"no column {strange[0]!r}, but {listing(names)}; name one of these")
    others = [names.index(name) for name in apart]
    columns = [k for k in range(len(names)) if k not in (label, index, *others)]
    if not columns:
        raise DataError("no column of numbers; give at least one")
    notes = [] if index is None else ["column 1 has no name: an index, left out"]
    x, own = (
        np.array([[_number(row[k], line, names[k]) for k in some] for line, row in rows])
        for some in (columns, others)
    )
    found = dict(zip(apart, own.T, strict=True))
    if label is None:
        return Table(x, None, tuple(notes), found)
    notes.append(f"labels from column {names[label]!r}")
    cells = [_label(row[label], line, names[label]) for line, row in rows]
    numbers = all(map(_is_number, cells))
    y = np.array(cells, np.float64 if numbers else np.str_)
    return Table(x, y, tuple(notes), found)


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of all lines but empty ones. Raises DataError if lengths differ."""
    lines = text.removeprefix("# ").splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=first.count)
    if separator in first:
        split = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        found = [(split.line_num, [cell.strip() for cell in cells]) for cells in split]
    else:
        found = [(k, line.split()) for k, line in enumerate(lines, 1)]
    rows = [(line, cells) for line, cells in found if any(cells)]
    if not rows:
        raise DataError("no rows; give numbers")
    for line, cells in rows:
        if len(cells) != len(rows[0][1]):
            raise DataError(
                f"line {line} has {len(cells)} columns, line {rows[0][0]} has {len(rows[0][1])}; "
                f"give every line the same"
            )
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label(cell: str, line: int, column: str) -> str:
    if not cell:
        raise DataError(f"line {line}, column {column!r}: no label; give one, or cut the line")
    return cell


def _number(cell: str, line: int, column: str) -> float:
    if not cell:
        raise DataError(f"line {line}, column {column!r}: empty; give a number, or cut the line")
    try:
        return float(cell)
    except ValueError:
        raise DataError(
            f"line {line}, column {column!r}: {cell[:40]!r} is no number; name the column of "
            f"classes label, and leave out other text"
        ) from None
