"""Writes a trained model as a folder of diffusers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from scoresde.atomic import sync, writing
from scoresde.config import to_plain
from scoresde.interop.about import ABOUT, KIND
from scoresde.interop.write import written
from scoresde.parameterization import ScoreModel
from scoresde.runs.load import load


class Exported(NamedTuple):
    """A folder that was written: its path, the class of its pipeline, and notes for the user."""

    path: Path
    pipeline: str
    notes: tuple[str, ...]


def export(
    run: str | PathLike[str] | ScoreModel,
    directory: str | PathLike[str],
    *,
    overwrite: bool = False,
) -> Exported:
    """Write a model, or that of a run, as a folder that diffusers opens.

    The folder has the averaged weights, a scheduler with the same process and, for a model of
    latents, the autoencoder with their standardisation in its weights; scoresde.json holds what
    diffusers has no place for. Before anything is written the modules are shown to compute what
    ours do. The folder appears whole or not at all. Raises ValueError for a model that diffusers
    has no modules for, naming one to train, and for a folder that exists, unless ``overwrite`` is
    true and it was written by this function.

    Args:
        run: model, run folder, checkpoint, export or folder of diffusers.
        directory: folder to write.
        overwrite: replace a folder that was exported before.
    """
    path = Path(directory).expanduser()
    require_free(path, overwrite)
    model = run if isinstance(run, ScoreModel) else load(run)
    config = None if model.config is None else to_plain(model.config)
    found = written(model, config)
    save(found.save, path)
    return Exported(path, found.pipeline, found.notes)


def require_free(path: Path, overwrite: bool) -> None:
    """Raise ValueError for a place with something that may not be replaced."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if not (path.exists() or path.is_symlink()):
        return
    try:
        ours = json.loads((path / ABOUT).read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"{path}: exists, and no export of scoresde; choose another place")
    if not overwrite:
        raise ValueError(f"{path}: exists; choose another place, or give overwrite=True")


def save(write: Callable[[Path], None], path: Path) -> None:
    """Let ``write`` fill a folder beside its place, and rename it.

    An error leaves the place as it was.
    """
    from safetensors import SafetensorError

    with writing(path):
        path = path.resolve()  # a link stays, and what it leads to is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, old = (
            path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("new", "old")
        )
        try:
            temporary.mkdir()
            try:
                write(temporary)
            except SafetensorError as error:  # it holds the number of an OSError in its words
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number[1]) if number else None, str(error)) from error
            mode = (temporary / ABOUT).stat().st_mode
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(mode)  # safetensors are written for their owner only
                    sync(file)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        sync(path.parent)
