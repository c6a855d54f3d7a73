"""Sources of pictures: a folder, a zip archive, or tar shards, read without extraction."""

from __future__ import annotations

import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath

from scoresde.data.dataset import DataError, reading, require_there
from scoresde.data.file_kinds import kind_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TAR = ".tar"
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
    def files(self) -> Collection[str]:
        """Names of all visible files, pictures or not."""

    @cached_property
    def names(self) -> Sequence[str]:
        """Names of the pictures, in an order that depends only on the names.

        Raises DataError for an album without pictures.
        """
        return _pictures(list(self.files))

    def __contains__(self, name: str) -> bool:
        """True if there is a file, a picture or not, with this name."""
        return name in self.files

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
    def files(self) -> Collection[str]:
        return {name for name in self._files() if (self.path / name).is_file()}

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

    @property
    def files(self) -> Collection[str]:
        return self._members.keys()

    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        infos = (self._members[name] for name in names)
        return [(info.filename, info.file_size, info.CRC) for info in infos]

    def read(self, name: str) -> bytes:
        info = self._members[name]
        _require_small(info.file_size)
        try:
            return self._archive.read(info)
        except Exception as error:  # each compression method raises its own types
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DamagedPicture(f"damaged ({reason}); make the archive anew") from error


class TarAlbum(Album):
    """The pictures in uncompressed tar files, such as the shards of webdataset.

    A name is that of the member, below the folder of its tar file relative to ``path``. Raises
    DataError for damaged tar files, names that lead out, and names that come twice.
    """

    def __init__(self, path: Path, shards: Sequence[Path]) -> None:
        self.path = path
        self._members: dict[str, tuple[Path, tarfile.TarInfo]] = {}
        for shard in shards:
            inner = PurePosixPath() if shard == path else shard.relative_to(path).parent
            with reading(shard.name):
                try:
                    with tarfile.open(shard, "r:") as archive:
                        members = archive.getmembers()
                except (OSError, tarfile.TarError) as error:
                    raise DataError(f"no usable .tar ({error}); get it anew, unpacked") from error
                for info in members:
                    if name := _visible(info.name, not info.isreg() or info.issparse()):
                        name = (inner / name).as_posix()
                        if name in self._members:
                            first = self._members[name][0].name
                            raise DataError(f"member {name!r} is in {first} too; rename it")
                        self._members[name] = shard, info

    @property
    def files(self) -> Collection[str]:
        return self._members.keys()

    def marks(self, names: Sequence[str]) -> list[tuple[str, int, int]]:
        found = ((name, *self._members[name]) for name in names)
        return [(name, info.size, shard.stat().st_mtime_ns) for name, shard, info in found]

    def read(self, name: str) -> bytes:
        shard, info = self._members[name]
        _require_small(info.size)
        try:
            with shard.open("rb") as file:
                file.seek(info.offset_data)
                return file.read(info.size)
        except OSError as error:
            raise DamagedPicture(f"not readable ({error.strerror}); get it anew") from error


@contextmanager
def album(path: Path) -> Iterator[Album]:
    """The pictures at a path: a folder, of tar files too, a ``.zip`` or a ``.tar``.

    Raises DataError for anything else.
    """
    with reading(path):
        require_there(path)
        archive = None
        found: Album
        if path.is_dir():
            found = folder = FolderAlbum(path)
            if shards := tar_files(folder):
                found = TarAlbum(path, shards)
        elif path.suffix.lower() == TAR:
            found = TarAlbum(path, [path])
        elif path.suffix.lower() == ".zip":
            try:
                archive = zipfile.ZipFile(path)
            except PermissionError as error:
                raise DataError(f"not readable ({error.strerror}); allow it") from error
            except Exception as error:  # the parser raises many types
                raise DataError(f"damaged or no zip archive ({error}); get it anew") from error
        else:
            raise DataError(
                f"is {kind_of(path)}; give a folder of pictures, or a .zip or .tar of one"
            )
    if archive is None:
        yield found
        return
    with archive:
        with reading(path):
            found = ZipAlbum(path, archive)
        yield found


def tar_files(folder: FolderAlbum) -> list[Path]:
    """The sorted ``.tar`` files below a folder without pictures."""
    suffixes = {name: PurePosixPath(name).suffix.lower() for name in folder.files}
    if not set(SUFFIXES).isdisjoint(suffixes.values()):
        return []
    return [folder.path / name for name in sorted(suffixes) if suffixes[name] == TAR]


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
        if not (name := _visible(info.filename, info.is_dir())):
            continue
        if name in found:
            raise DataError(f"member {name!r} comes twice; make the archive anew")
        if info.flag_bits & 1:
            raise DataError(f"member {name!r} is encrypted; make the archive anew")
        found[name] = info
    return found


def _visible(name: str, other: bool) -> str:
    """The name of a member with slashes; "" if it is hidden or ``other`` than a file."""
    _require_inside(name)
    path = PurePosixPath(name.replace("\\", "/"))  # some programs use backslashes
    return "" if other or any(map(_hidden, path.parts)) else path.as_posix()


def _require_small(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise DamagedPicture(
            f"unpacks to {size} bytes, more than the {LARGEST_MEMBER} allowed to a picture; "
            f"remove it"
        )


def _require_inside(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise DataError(
            f"member {name!r} leads out of the archive; nothing was read, make it anew without"
        )
