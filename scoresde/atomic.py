"""Atomic writing of files, and write errors with a remedy."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Remedies by error number.
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
    errno.EEXIST: "choose another place",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the path and a remedy to every OSError raised inside."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "check the disk")
        raise OSError(error.errno, f"{error.strerror or error}; {advice}", str(path)) from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it to disk and rename it.

    An error before the rename leaves ``path`` unchanged.
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
    """sha256 of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
