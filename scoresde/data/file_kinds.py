"""The kind of a file in words, for messages about a file of the wrong kind."""

from __future__ import annotations

import zipfile
from codecs import getincrementaldecoder
from pathlib import Path

MAGIC = {
    b"\x93NUMPY": "a numpy array (.npy)",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture",
    b"II*\0": "a picture",
    b"MM\0*": "a picture",
    b"\x1f\x8b": "a gzip file",
    b"\x80\x02": "a Python pickle, which is never opened",
    b"\x80\x03": "a Python pickle, which is never opened",
    b"\x80\x04": "a Python pickle, which is never opened",
    b"\x80\x05": "a Python pickle, which is never opened",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
}
TEXTS = {
    ".yaml": "a YAML file",
    ".yml": "a YAML file",
    ".json": "a JSON file",
    ".csv": "a table of text (CSV)",
    ".py": "a Python program",
}


def kind_of(path: Path) -> str:
    """A phrase such as "a YAML file", from the first bytes and the suffix of a path."""
    if path.is_dir():
        return "a folder"
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "an empty file"
    if head[:4] == b"PK\3\4":
        return _kind_of_zip(path)
    for magic, phrase in MAGIC.items():
        if head.startswith(magic):
            return phrase
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "a safetensors file"
    try:
        # Incremental, because the head may end within a character.
        text = getincrementaldecoder("utf-8")().decode(head).lstrip()
    except UnicodeDecodeError:
        return "a binary file of no known kind"
    if "\0" in text:
        return "a binary file of no known kind"
    return "a web page" if text.startswith("<") else TEXTS.get(path.suffix.lower(), "a text file")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a damaged zip archive"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file (.pt)"
    if any(name.endswith(".npy") for name in names):
        return "numpy arrays (.npz)"
    return "a zip archive"
