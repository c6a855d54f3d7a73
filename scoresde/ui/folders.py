"""The folders that were named at the start: what lies in them, and nothing else is opened."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from scoresde.runs.folder import RunFolder
from scoresde.runs.load import LoadedRun, load_run
from scoresde.ui.jobs import NotFound

DEEP, LOADED = 4, 2
"""How deep folders are searched, and how many models stay in memory."""
INDEX = "model_index.json"
"""The file that marks a folder of diffusers."""


@dataclass(frozen=True)
class Folders:
    """The folders, as the user wrote them; names of what lies in them begin with those."""

    roots: tuple[Path, ...]

    def find(self, name: str) -> Path:
        """The file or folder of this name. Raises NotFound unless it lies in the folders."""
        try:
            path = Path(name).expanduser()
            found = path.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            found = None
        if found is None or not any(found.is_relative_to(root.resolve()) for root in self.roots):
            listed = ", ".join(map(str, self.roots))
            raise NotFound(f"{name!r:.80}: not there in the folders named at the start ({listed})")
        return path

    def models(self) -> list[str]:
        """Names of run folders, exported weights and folders of diffusers, the newest first."""
        found = dict.fromkeys(
            path
            for path in self._walk()
            if _is_model(path) or (path.suffix == ".safetensors" and path.is_file())
        )
        return [str(path) for path in sorted(found, key=_time, reverse=True)]

    def runs(self) -> list[str]:
        """Names of the folders of training runs, the newest first."""
        found = dict.fromkeys(path for path in self._walk() if RunFolder(path).is_run())
        return [str(path) for path in sorted(found, key=_time, reverse=True)]

    def configurations(self) -> list[str]:
        """Names of the configurations, YAML files outside the runs."""
        return sorted({str(path) for path in self._walk() if path.suffix in (".yaml", ".yml")})

    def _walk(self) -> Iterator[Path]:
        """The folders down to some depth, and the files that are not inside a model."""
        for root in self.roots:
            for place, inner, files in os.walk(root):
                path = Path(place)
                # A page and JSON cannot hold the others.
                inner[:] = filter(str.isprintable, inner)
                yield path
                if _is_model(path) or RunFolder(path).is_run():
                    inner.clear()
                    continue
                if len(path.relative_to(root).parts) >= DEEP:
                    inner.clear()
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                yield from (path / name for name in sorted(filter(str.isprintable, files)))


def _is_model(path: Path) -> bool:
    run = RunFolder(path)
    return (path / INDEX).is_file() or (run.is_run() and run.trains == "model")


def _time(path: Path) -> float:
    """When a model was last changed."""
    found = 0.0
    for inner in (path, path / "checkpoints"):
        with suppress(OSError):
            found = max(found, inner.stat().st_mtime)
    return found


@dataclass
class Models:
    """The models that are in memory, the last few that were asked for.

    Args:
        folders: where they are found.
        device: device of the models.
        bits: bits per dimension of test examples that were scored, by what was asked.
    """

    folders: Folders
    device: str = "cpu"
    bits: dict[Any, Tensor] = field(default_factory=dict)
    _loaded: OrderedDict[tuple[str, float], LoadedRun] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    def __call__(self, name: str) -> LoadedRun:
        """Load a model, or take it from memory if its files are the same.

        Raises NotFound for one outside the folders, ValueError for one that cannot be read.
        """
        path = self.folders.find(name)
        with self._lock:
            key = str(path.resolve()), _time(path)
            if key not in self._loaded:
                found = load_run(path)
                found.model.to(self.device)
                for old in [old for old in self._loaded if old[0] == key[0]]:
                    del self._loaded[old]
                self._loaded[key] = found
            self._loaded.move_to_end(key)
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
            return self._loaded[key]
