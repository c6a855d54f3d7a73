"""Sources of pictures: a folder, or a zip archive, read without extraction."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath

from scoresde.data.dataset import DataError, reading, require_there
from scoresde.data.file_kinds import kind_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LARGEST_MEMBER = 2**28
"""Most bytes of an unpacked picture of an archive."""
DEEPEST_LINK = 3
"""Depth to which links to folders are followed: that of classes, ``outer/train/cat``."""


class DamagedPicture(DataError):
    """A picture cannot be decoded; ``on_error="skip"`` leaves it out."""


class Album(ABC):
    """Pictures by name; names are paths relative to the album, with slashes."""

    path: Path

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the visible pictures, in an order that depends only on the names.

        Raises DataError for an album without pictures.
        """

    @abstractmethod
    def __contains__(self, name: str) -> bool:
        """True if there is a file, a picture or not, with this name."""

    @abstractmethod
    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        """(name, size, modification time or CRC) of files, to detect changes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises DamagedPicture if they cannot be read."""

    def where(self, name: str) -> str:
        """The name of a picture for messages."""
        return shown(str(self.path / name))


class FolderAlbum(Album):
    """The pictures below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def names(self) -> Sequence[str]:
        return _pictures([name for name in self._files() if (self.path / name).is_file()])

    def _files(self) -> Iterator[str]:
        def fail(error: OSError) -> None:
            raise error  # os.walk would skip an unreadable folder

        for root, folders, files in os.walk(self.path, onerror=fail, followlinks=True):
            here = Path(root).relative_to(self.path)
            deep = len(here.parts) >= DEEPEST_LINK
            folders[:] = [
                name
                for name in folders
                if not _hidden(name) and not (deep and (Path(root) / name).is_symlink())
            ]
            yield from ((here / name).as_posix() for name in files if not _hidden(name))

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file()

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
    """The pictures in an open zip archive.

    Raises DataError for names that lead out of the archive, duplicate names, or encryption.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self._members = _members(archive)

    @cached_property
    def names(self) -> Sequence[str]:
        return _pictures(list(self._members))

    def __contains__(self, name: str) -> bool:
        return name in self._members

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
        except Exception as error:  # each compression method raises its own types
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DamagedPicture(f"damaged ({reason}); make the archive anew") from error


@contextmanager
def album(path: Path) -> Iterator[Album]:
    """The pictures at a path, a folder or a ``.zip``. Raises DataError for anything else."""
    with reading(path):
        require_there(path)
        if path.is_dir():
            archive = None
        elif path.suffix.lower() != ".zip":
            raise DataError(f"is {kind_of(path)}; give a folder of pictures, or a .zip of one")
        else:
            try:
                archive = zipfile.ZipFile(path)
            except PermissionError as error:
                raise DataError(f"not readable ({error.strerror}); allow it") from error
            except Exception as error:  # the parser raises many types
                raise DataError(f"damaged or no zip archive ({error}); get it anew") from error
    if archive is None:
        yield FolderAlbum(path)
        return
    with archive:
        with reading(path):
            found = ZipAlbum(path, archive)
        yield found


def shown(name: str) -> str:
    """A name with unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _pictures(names: Sequence[str]) -> list[str]:
    """The names with the suffix of a picture, sorted by folder. Raises DataError for none."""
    suffixes = {name: PurePosixPath(name).suffix.lower() for name in sorted(names)}
    found = [name for name in names if suffixes[name] in SUFFIXES]
    if not found:
        most = Counter(suffixes.values()).most_common(3)
        other = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in most) or "no"
        raise DataError(f"no pictures ({' '.join(SUFFIXES)}), {other} files; check the path")
    return sorted(found, key=lambda name: name.split("/"))


def _hidden(part: str) -> bool:
    """True for hidden files and folders, and those that macOS adds to archives."""
    return part.startswith((".", "__MACOSX"))


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The visible files by name, with forward slashes."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _require_inside(info.filename)
        path = PurePosixPath(info.filename.replace("\\", "/"))  # some programs use backslashes
        if info.is_dir() or any(map(_hidden, path.parts)):
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
