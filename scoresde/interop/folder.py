"""A folder of diffusers: JSON and safetensors. Nothing in it is run or unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from scoresde.training.safe_files import read_safetensors

INDEX = "model_index.json"


class FolderError(ValueError):
    """A folder of diffusers that cannot be read; the message names the file and a remedy."""


@final
class Folder:
    """The parts of a pipeline that lies in a folder. Raises FolderError.

    Args:
        path: folder with model_index.json.
        variant: variant of the weights, such as fp16.
    """

    def __init__(self, path: Path, variant: str | None = None) -> None:
        self.path, self.variant = path, variant
        self.index: Mapping[str, Any] = self.json(INDEX)

    @property
    def pipeline(self) -> str:
        """The name of the class of the pipeline."""
        return str(self.index["_class_name"])

    def part(self, name: str) -> tuple[str, str] | None:
        """Library and class of a part; None where there is none."""
        found = self.index.get(name)
        return None if found is None or found[0] is None else (str(found[0]), str(found[1]))

    def json(self, name: str) -> dict[str, Any]:
        """The contents of a JSON file, such as unet/config.json."""
        found = json.loads((self.path / name).read_text(encoding="utf-8"))
        return dict(found)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, from all its shards."""
        file = self.path / name / "diffusion_pytorch_model.safetensors"
        return read_safetensors(file)[1]
