"""What is said of pictures: captions and numbers, in metadata files or in files beside them.

- ``metadata.jsonl`` or ``metadata.csv`` in any folder, a row for each picture, whose ``file_name``
  is relative to that folder; a caption is a text or, in JSON, a list of texts;
- ``name.txt`` or ``name.caption`` beside ``name.png``, a caption a line;
- ``name.json`` beside it, with the columns of a row.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from scoresde.data.dataset import DataError, reading
from scoresde.data.labels import listing
from scoresde.data.picture_sources import Album

TABLES = ("metadata.jsonl", "metadata.csv")
NAME = "file_name"
TEXTS = (".txt", ".caption")
ROW = ".json"

OnMissing = Literal["refuse", "empty", "skip"]


class MissingCaption(DataError):
    """A picture has no caption; ``on_missing`` gives it an empty one, or leaves it out."""


class Told(NamedTuple):
    """The captions and the vector of a picture; None where the set has none."""

    captions: tuple[str, ...] | None = None
    vector: tuple[float, ...] | None = None


class Row(NamedTuple):
    """The columns of a picture and the place where they were found."""

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Metadata:
    """What is said of the pictures of an album, with notes for the user.

    ``files`` are the metadata files; ``captioned`` is True if there are captions.
    """

    album: Album
    rows: Mapping[str, Row]
    files: tuple[str, ...]
    captioned: bool
    caption_column: str | None
    vector: tuple[str, ...]
    on_missing: OnMissing
    notes: tuple[str, ...] = ()

    def beside(self, names: Iterable[str]) -> list[str]:
        """The files beside the pictures that are read."""
        suffixes = (*TEXTS, ROW) if self.captioned else (ROW,) if self.vector else ()
        return [file for name in names for file in _beside(self.album, name, suffixes)]

    def told(self, name: str) -> Told:
        """What is said of a picture. Raises DataError where it is missing or no number."""
        if not self.captioned and not self.vector:
            return Told()
        row = self.rows.get(name)
        for file in _beside(self.album, name, (ROW,)) if row is None else ():
            row = Row(file, _object(self.album.read(file), file))
        captions = self._captions(name, row) if self.captioned else None
        return Told(captions, self._vector(name, row) if self.vector else None)

    def _captions(self, name: str, row: Row | None) -> tuple[str, ...]:
        texts = _beside(self.album, name, TEXTS)
        in_table = row if name in self.rows else None
        found = _sentences(in_table, self.caption_column)
        if len(texts) + bool(found) > 1:
            places = [*texts, *([in_table.place] if in_table and found else [])]
            raise DataError(f"captions in {' and in '.join(places)}; keep one of them")
        for file in texts:
            lines = _text(self.album.read(file), file).splitlines()
            found = tuple(line.strip() for line in lines if line.strip())
        found = found or _sentences(row, self.caption_column)
        if found:
            return found
        if self.on_missing == "empty":
            return ("",)
        place = f" in {row.place}" if row else ""
        raise MissingCaption(
            f"no caption{place or ', neither in metadata nor in a .txt beside it'}; give one, or "
            f"set on_missing to empty or skip"
        )

    def _vector(self, name: str, row: Row | None) -> tuple[float, ...]:
        if row is None:
            raise DataError(f"no {', '.join(self.vector)} in metadata; give numbers")
        return tuple(_number(row, column) for column in self.vector)


def metadata_of(
    album: Album,
    *,
    caption_column: str | None = "text",
    vector: Sequence[str] | None = None,
    on_missing: OnMissing = "refuse",
) -> Metadata:
    """The metadata of an album. Raises DataError for unreadable rows, and those of no picture."""
    rows: dict[str, Row] = {}
    notes: list[str] = []
    pictures, files = set(album.names), []
    tables = [file for file in album.files if PurePosixPath(file).name in TABLES]
    for file in sorted(tables) if caption_column or vector else ():
        found = _table(album.read(file), file)
        if not any(NAME in row.values for row in found):
            notes.append(f"{file} has no column {NAME}: not read")
            continue
        files.append(file)
        for row in found:
            name = (PurePosixPath(file).parent / str(row.values.get(NAME))).as_posix()
            if name not in pictures:
                raise DataError(f"{row.place}: no picture {name!r}; correct {NAME}")
            if name in rows:
                raise DataError(f"{name} is in {rows[name].place} and in {row.place}; keep one")
            rows[name] = row
    columns = {
        key for row in rows.values() for key, value in row.values.items() if value is not None
    }
    places: list[str] = []
    if caption_column is not None:
        places = list(files) if caption_column in columns else []
        suffixes = {PurePosixPath(f).suffix for n in album.names for f in _beside(album, n, TEXTS)}
        places += [f"{suffix} files beside the pictures" for suffix in sorted(suffixes)]
        if not places and _says(album, caption_column):
            places = [f"{ROW} files beside the pictures"]
    if places:
        notes.append(f"captions from {listing(places, 4)}")
    elif files and caption_column not in (None, "text"):
        held = listing(sorted(columns - {NAME})) or "nothing else"
        raise DataError(f"{files[0]} has no column {caption_column!r}, but {held}; name one")
    return Metadata(
        album, rows, tuple(files), bool(places), caption_column, tuple(vector or ()), on_missing,
        tuple(notes),
    )  # fmt: skip


def _says(album: Album, column: str) -> bool:
    """Whether the first row beside a picture has a column."""
    for name in album.names:
        for file in _beside(album, name, (ROW,)):
            return column in _object(album.read(file), file)
    return False


def _beside(album: Album, name: str, suffixes: Sequence[str]) -> list[str]:
    files = (PurePosixPath(name).with_suffix(suffix).as_posix() for suffix in suffixes)
    return [file for file in files if file in album]


def _text(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error}); save it as UTF-8") from error


def _object(content: bytes | str, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: no JSON ({error}); repair it") from error
    if not isinstance(found, dict):
        raise DataError(f"{place}: {type(found).__name__}, no JSON object; repair it")
    return found


def _table(content: bytes, file: str) -> list[Row]:
    lines = _text(content, file).splitlines()
    if file.endswith(".csv"):
        return list(_csv(lines, file))
    numbers = [(f"{file}, line {k}", line) for k, line in enumerate(lines, 1) if line.strip()]
    return [Row(place, _object(line, place)) for place, line in numbers]


def _csv(lines: Sequence[str], file: str) -> Iterator[Row]:
    with reading(file):
        reader = csv.DictReader((f"{line}\n" for line in lines), strict=True)
        try:
            for values in reader:
                place = f"{file}, line {reader.line_num}"
                if None in values or None in values.values():
                    n = len(reader.fieldnames or ())
                    raise DataError(f"line {reader.line_num} has not the {n} columns of the first")
                yield Row(place, {key: value or None for key, value in values.items()})
        except csv.Error as error:
            raise DataError(f"line {reader.line_num}: {error}; repair it") from error


def _sentences(row: Row | None, column: str | None) -> tuple[str, ...]:
    value = None if row is None or column is None else row.values.get(column)
    if row is None or value is None:
        return ()
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        shown = repr(value)[:60]
        raise DataError(f"{row.place}: {column!r} is {shown}; give a text, or a list of texts")
    return tuple(found)


def _number(row: Row, column: str) -> float:
    value = row.values.get(column)
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{row.place}: {column!r} is {value!r}; give a finite number")
    return number
