"""Imports a published checkpoint of another program as a run, which every command reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from scoresde.config import build_model, config_from, to_plain, to_yaml
from scoresde.config.files import read_yaml
from scoresde.interop import published
from scoresde.interop.published import compvis
from scoresde.runs import folder as folders
from scoresde.runs.export import require_free, save
from scoresde.runs.load import LoadedRun, load_run
from scoresde.training import checkpoint as checkpoints
from scoresde.training.checkpoint import Checkpoint, load_tensors


def import_model(
    file: str | PathLike[str],
    program: str,
    out: str | PathLike[str],
    *,
    settings: str | PathLike[str] | None = None,
    said: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> LoadedRun:
    """Write a published checkpoint as a run folder, and load it from there.

    Args:
        file: checkpoint of another program, a torch file or safetensors.
        program: the program, one of ``interop.published.FORMATS``.
        out: run folder to write.
        settings: JSON or YAML file of the settings of its training, of which those that the
            checkpoint does not hold are used.
        said: such settings by name, which take precedence.
        overwrite: replace the run in the folder, or a folder of diffusers that scoresde wrote.

    Raises ValueError, naming the file and the remedy, for files and settings that cannot be used.
    """
    path = Path(file).expanduser()
    of_file = None if settings is None else read_yaml(Path(settings).expanduser())
    found = published.read(path, program, of_file, said)
    out = Path(out).expanduser()
    if isinstance(found, published.Pipeline):
        require_free(out, overwrite)
        save(partial(compvis.write, found), out)
        return load_run(out)
    # Pictures of a folder that the user names are what such a model can be compared with.
    plain = {"data": {"kind": "folder"}, **found.sections}
    config = config_from(plain, path)
    model = build_model(config, found.data)
    tensors = {f"net.{name}": value for name, value in found.tensors.items()}
    load_tensors(model, tensors, path)
    tensors = model.state_dict()
    folder = folders.claim(out, overwrite=overwrite)
    with folders.locked(folder):
        if overwrite:
            folders.clear(folder)
        about = folders.environment("cpu") | {"imported": {"file": path.name, "program": program}}
        checkpoint = Checkpoint(to_plain(config), found.data, found.step, tensors, tensors, {})
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        checkpoints.save_step(folder.checkpoints, checkpoint, keep=1)
        # Last, so that a folder that was interrupted is no run.
        folders.write_start(folder, to_yaml(config), json.loads(json.dumps(about)))
    return load_run(folder.path)
