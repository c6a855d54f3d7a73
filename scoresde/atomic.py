"""Files that are whole or absent, and errors of writing that say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# What to do about what the system refuses.
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place you may write to",
    errno.EISDIR: "name a file",
    errno.ENOLCK: "choose a file system with locks",
    errno.ENOTDIR: "check the path",
    errno.ENOENT: "make the folder first",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Give every OSError raised inside the file or folder it is about, and the remedy."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the disk")
        raise OSError(error.errno, f"{error.strerror or error}; {advice}", str(path)) from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, sync it to disk and rename it there.

    Whatever goes wrong before the rename leaves ``path`` as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def digest(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
