"""scoresde.json, beside the model_index.json of a folder that this library wrote.

It says what diffusers has no place for: the data of the model, and the configuration of its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from scoresde.coordinates import Index, place
from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.network import Classes, Labelled
from scoresde.parameterization import ScoreModel
from scoresde.training.checkpoint import DataDescription
from scoresde.training.safe_files import DAMAGE, brief

ABOUT = "scoresde.json"
KIND, VERSION = "scoresde-diffusers", 1
MARK = {"kind": KIND, "version": VERSION, "data": None}
"""Contents of the file in a folder that was made of a checkpoint of another program."""


def about(
    model: ScoreModel, config: Mapping[str, Any] | None, notes: tuple[str, ...]
) -> dict[str, Any]:
    """The contents of the file.

    ``told`` is "place" for a network that is told ``coordinates.place``, which readers of a folder
    may interpolate otherwise between the levels.
    """
    return {
        "kind": KIND,
        "version": VERSION,
        "data": asdict(model.data),
        "told": "place" if getattr(model.parameterization, "noise", None) is place else None,
        "config": None if config is None else dict(config),
        "notes": list(notes),
    }


def completed(folder: Folder, model: ScoreModel) -> ScoreModel:
    """The model of a folder with the data that its scoresde.json describes, if it has one.

    A network with one class more than the data has a class for none, and the sentence of a
    pipeline has the name that it had in training. Raises FolderError.
    """
    if not folder.has(ABOUT):
        return model
    found, where = folder.json(ABOUT), folder.path / ABOUT
    if found.get("kind") != KIND:
        raise FolderError(f"{where}: not written by an export of scoresde; remove it")
    if found.get("version") != VERSION:
        raise FolderError(
            f"{where}: version {found.get('version')}, and {VERSION} is known; upgrade scoresde"
        )
    if found.get("data") is None:  # of an import, whose data nobody has described
        return model
    try:
        data = DataDescription.from_json(json.dumps(found["data"]))
    except DAMAGE as error:
        raise FolderError(f"{where}: damaged ({brief(error)}); use an intact copy") from error
    if data.shape != tuple(model.data.shape):
        raise FolderError(
            f"{where}: says pictures {data.shape}, and the other parts {tuple(model.data.shape)}; "
            "they are of different models"
        )
    if isinstance(model.net, Labelled) and data.classes is not None:
        module: Any = model.net.module
        if module.config.num_class_embeds == len(data.classes) + 1:
            model.net = Classes(module, len(data.classes))
    if len(data.told) == 1 and "text" in model.conditions:  # of a name of its own in training
        model.conditions = nn.ModuleDict({next(iter(data.told)): model.conditions["text"]})
    model.data = data
    told: Any = model.parameterization
    index = isinstance(getattr(told, "noise", None), Index) and not told.noise.nearest
    if found.get("told") == "place" and index:
        model.parameterization = replace(told, noise=place)
    return model
