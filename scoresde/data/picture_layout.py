"""The usual layouts of picture sets: the class and the part (train or test) of every picture.

A folder may have pictures; folders of classes; folders ``train``, ``val`` and ``test`` of either;
``dataset.json`` of StyleGAN and EDM with the labels; or a single folder with any of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scoresde.data.dataset import DataError
from scoresde.data.labels import in_order, label_values, listing
from scoresde.data.picture_sources import Album

ROLES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
INDEX = "dataset.json"

Group = list[tuple[str, str]]
"""(class, name) of each picture; the class is "" if there is none."""


@dataclass(frozen=True)
class PictureLayout:
    """Pictures for training and, if there is a folder of them, for testing, with notes.

    ``classes`` may be empty; ``index`` is the file of the labels, if any.
    """

    train: Group
    test: Group | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    index: str | None = None


def layout_of(album: Album) -> PictureLayout:
    """The layout of an album. Raises DataError if it is ambiguous."""
    outer = _outer(album.names)
    if outer + INDEX in album:
        return _indexed(album, outer)
    notes = [f"everything is in {outer}"] if outer else []
    names = [name.removeprefix(outer) for name in album.names]
    splits = _splits(names)
    if not splits:
        train, test = _group(outer, "", names), None
    else:
        held = splits.get("test") or splits.get("val")
        train = _group(outer, splits["train"], names)
        test = _group(outer, held, names) if held else None
        notes += _split_notes(splits, names)
    used = {group for group, _ in train + (test or [])}
    if "" in used and len(used) > 1:
        raise DataError("only one of train/ and test/ has class folders; give both the same")
    classes = in_order(used - {""})
    if test is not None:
        notes += _unseen(train, test)
    return PictureLayout(train, test, classes, tuple(notes))


def _outer(names: Sequence[str]) -> str:
    """The path, with a final slash, of the nested single folders around everything; or ""."""
    outer = ""
    while True:
        inner = [name.removeprefix(outer) for name in names]
        tops = {name.partition("/")[0] for name in inner}
        nested = all(name.count("/") > 1 for name in inner)
        if len(tops) > 1 or not nested or min(tops).lower() in ROLES:
            return outer
        outer += f"{tops.pop()}/"


def _splits(names: Sequence[str]) -> dict[str, str]:
    """The folder of each role; empty if the folders are classes or there are none."""
    tops = sorted({name.partition("/")[0] for name in names if "/" in name})
    parts = [top for top in tops if top.lower() in ROLES]
    others = [f"{top}/" for top in tops if top not in parts]
    if not parts:
        return {}
    said = ", ".join(f"{part}/" for part in parts)
    if others:
        nested = any(name.count("/") > 1 and name.partition("/")[0] in parts for name in names)
        if len(parts) == 1 and not nested:  # the name of a class
            return {}
        raise DataError(
            f"{said} beside {listing(others, 4)}: parts of the set or classes? move one kind away"
        )
    roles = {ROLES[part.lower()]: part for part in parts}
    if len(roles) < len(parts):
        raise DataError(f"{said}: two folders of one part; join them")
    if "train" not in roles:
        raise DataError(f"{said} but no train/; to train on {parts[0]}/ give the path to it")
    return roles


def _split_notes(splits: dict[str, str], names: Sequence[str]) -> Iterable[str]:
    train, val, test = (splits.get(role) for role in ("train", "val", "test"))
    if held := test or val:
        yield f"{held}/ is held out for testing"
    else:
        yield f"only {train}/: some of its pictures are held out for testing"
    if test and val:
        count = sum(name.startswith(f"{val}/") for name in names)
        yield f"{val}/ is left out ({count} pictures): {test}/ is the part for testing"
    if loose := sum("/" not in name for name in names):
        yield f"left out {loose} picture{'s' * (loose > 1)} beside {train}/"


def _group(outer: str, folder: str, names: Sequence[str]) -> Group:
    """The pictures below a folder; the names of its folders are classes."""
    root = f"{folder}/" if folder else ""
    inner = [name.removeprefix(root) for name in names if name.startswith(root)]
    found = [
        (name.partition("/")[0] if "/" in name else "", f"{outer}{root}{name}") for name in inner
    ]
    loose = sum(not group for group, _ in found)
    if 0 < loose < len(found):
        said = f"{loose} picture{'s' * (loose > 1)} beside the class folders"
        raise DataError(f"{said}{root and f' of {root}'}; move them into one of these")
    return found


def _unseen(train: Group, test: Group) -> list[str]:
    """A note about classes without training pictures."""
    known, found = ({group for group, _ in part} for part in (train, test))
    if not (new := in_order(found - known)):
        return []
    if not found & known:
        raise DataError(
            f"the pictures for testing are of {listing(new, 4)}, those for training of "
            f"{listing(in_order(known), 4)}; give both the same classes"
        )
    return [f"without training pictures: {listing(new)}"]


def _indexed(album: Album, outer: str) -> PictureLayout:
    """The layout from ``dataset.json``: labels by name, or none; folders are not classes."""
    index = outer + INDEX
    try:
        labels = json.loads(album.read(index))["labels"]
        by_name = None if labels is None else {str(n).replace("\\", "/"): k for n, k in labels}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{index} has no list of labels [[name, label], ...], nor null; repair it, or rename "
            f"it if it is something else"
        ) from error
    said = f"labels from {index}" if by_name is not None else f"no labels in {index}"
    if by_name is None:
        return PictureLayout([("", name) for name in album.names], None, (), (said,), index)
    if len(by_name) < len(labels):
        raise DataError(f"{index} has {len(labels)} labels for {len(by_name)} pictures; repair it")
    missing = [name for name in album.names if name.removeprefix(outer) not in by_name]
    if missing:
        raise DataError(f"{index} has no label for {missing[0]} ({len(missing)} such); repair it")
    listed = [by_name[name.removeprefix(outer)] for name in album.names]
    try:
        values = label_values(np.array(listed))
    except ValueError as error:
        raise DataError(f"{index}: {error}") from error
    train = list(zip(map(str, values.tolist()), album.names, strict=True))
    return PictureLayout(train, None, in_order(name for name, _ in train), (said,), index)
