"""Where pictures lie: below a folder, or in a zip archive that is read without extracting it."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from scoresde.data.dataset import DataError, reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LARGEST_MEMBER = 2**28
"""Bytes a picture in an archive may unpack to."""


class DamagedPicture(DataError):
    """A picture that cannot be decoded, which may be left out where that is asked for."""


class Album(ABC):
    """Pictures by name, in one part or in two, for training and for testing."""

    path: Path

    @abstractmethod
    def parts(self) -> list[list[tuple[str, str]]]:
        """(class, name) of the pictures of each part, in an order that depends on names alone.

        The class is "" for pictures in no folder. Raises DataError for an album without pictures.
        """

    @abstractmethod
    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        """(name, size, time of change or CRC) of pictures: another file has another."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a picture. Raises DamagedPicture where they cannot be had."""

    def where(self, name: str) -> str:
        """A picture as messages name it."""
        return shown(str(self.path / name))


class FolderAlbum(Album):
    """The pictures below a folder, or below its folders ``train/`` and ``test/``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def parts(self) -> list[list[tuple[str, str]]]:
        divided = (self.path / "train").is_dir() and (self.path / "test").is_dir()
        roots = [self.path / "train", self.path / "test"] if divided else [self.path]
        found = [picture_files(root) for root in roots]
        return [
            [(name, file.relative_to(self.path).as_posix()) for name, file in files]
            for files in found
        ]

    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        found = []
        for name in names:
            status = (self.path / name).stat()
            found.append((name, status.st_size, status.st_mtime_ns))
        return found

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DamagedPicture(
                f"not readable ({error.strerror}); replace or remove it"
            ) from error


class ZipAlbum(Album):
    """The pictures in an open zip archive, as if it were the folder that it packs.

    A single folder around everything is passed over. Raises DataError for names that lead out of
    the archive, that come twice, and for encryption.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._members = _members(archive)

    def parts(self) -> list[list[tuple[str, str]]]:
        names = sorted(self._members, key=lambda name: name.split("/"))
        if not names:
            raise DataError(f"{self.path}: no pictures ({' '.join(SUFFIXES)}); check the archive")
        outer = _outer(names)
        tops = {name[len(outer) :].partition("/")[0] for name in names}
        roots = [f"{outer}train/", f"{outer}test/"] if {"train", "test"} <= tops else [outer]
        return [self._part(root, [n for n in names if n.startswith(root)]) for root in roots]

    def _part(self, root: str, names: list[str]) -> list[tuple[str, str]]:
        folders = [
            (name[len(root) :].rpartition("/")[0].partition("/")[0], name) for name in names
        ]
        loose = [pair for pair in folders if not pair[0]]
        if loose and len(loose) < len(folders):
            raise DataError(
                f"{self.path}: {len(loose)} pictures beside the class folders; move them into one"
            )
        return folders

    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        infos = (self._members[name] for name in names)
        return [(info.filename, info.file_size, info.CRC) for info in infos]

    def read(self, name: str) -> bytes:
        info = self._members[name]
        if info.file_size > LARGEST_MEMBER:
            raise DamagedPicture(
                f"unpacks to {info.file_size} bytes, more than the {LARGEST_MEMBER} allowed to a "
                f"picture; remove it"
            )
        try:
            return self._archive.read(info)
        except Exception as error:  # every method of packing has errors of its own
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DamagedPicture(f"damaged ({reason}); make the archive anew") from error


@contextmanager
def album(path: Path) -> Iterator[Album]:
    """The pictures at a path, a folder or a ``.zip``. Raises DataError for anything else."""
    if path.suffix.lower() != ".zip" or path.is_dir():
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; check the path, or name a .zip")
        yield FolderAlbum(path)
        return
    with reading(path):
        if not path.is_file():
            raise DataError("no such file; check the path")
        try:
            archive = zipfile.ZipFile(path)
        except PermissionError as error:
            raise DataError(f"not readable ({error.strerror}); allow it") from error
        except Exception as error:  # whatever its parser stumbles over
            raise DataError(f"damaged or no zip archive ({error}); get it anew") from error
    with archive:
        with reading(path):
            found = ZipAlbum(path, archive)
        yield found


def shown(name: str) -> str:
    """A name with what no terminal or text file takes in it written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def picture_files(root: Path) -> list[tuple[str, Path]]:
    """(class, file) of every picture below `root`, in an order that depends on the names alone."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    loose = [("", p) for p in entries if _is_picture(p)]
    nested = [(folder.name, p) for folder in entries if folder.is_dir() for p in _below(folder)]
    with reading(root):
        if loose and nested:
            raise DataError(f"{len(loose)} pictures beside the class folders; move them into one")
        if not loose and not nested:
            raise DataError(f"no pictures ({' '.join(SUFFIXES)}); check the path")
    return loose or nested


def _below(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error  # a folder that cannot be read is not passed over

    names = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(root, name) for name in files if not name.startswith("."))
        names += [p.relative_to(folder) for p in visible if _is_picture(p)]
    return [folder / name for name in sorted(names)]


def _is_picture(p: Path) -> bool:
    # A dangling link is no file, and so is passed over.
    return p.suffix.lower() in SUFFIXES and p.is_file()


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The visible pictures by name, whose folders end in one slash however they were packed."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _require_inside(info.filename)
        path = PurePosixPath(info.filename.replace("\\", "/"))  # as some programs pack folders
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        if info.is_dir() or hidden or path.suffix.lower() not in SUFFIXES:
            continue
        name = path.as_posix()
        if name in found:
            raise DataError(f"member {name!r} comes twice; make the archive anew")
        if info.flag_bits & 1:
            raise DataError(f"member {name!r} is encrypted; make the archive anew")
        found[name] = info
    return found


def _require_inside(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise DataError(
            f"member {name!r} leads out of the archive; nothing was read, make it anew without"
        )


def _outer(names: Sequence[str]) -> str:
    """The folder, with its slash, that holds everything and has folders; "" if there is none."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) > 1 or not all(name.count("/") > 1 for name in names):
        return ""
    return f"{tops.pop()}/"
