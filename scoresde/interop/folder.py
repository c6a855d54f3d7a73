"""A folder of diffusers: JSON and safetensors. Nothing in it is run or unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, final

import torch
from torch import Tensor

from scoresde.training.safe_files import NUMBERS, brief, first_few, printable

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
LONGEST = 2**24
"""Most bytes of a JSON file."""
STEMS = ("diffusion_pytorch_model", "model")
"""Names of the weights of a part, of diffusers and of transformers."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class FolderError(ValueError):
    """A folder of diffusers that cannot be read; the message names the file and a remedy."""


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of diffusers, whole or not: a pipeline, or one of its models."""
    if (path / INDEX).is_file():
        return True
    return any((path / name).is_file() for name in ("config.json", SCHEDULER))


@final
class Folder:
    """The parts of a pipeline that lies in a folder.

    Raises FolderError for a folder without a readable model_index.json, and for a variant of which
    it has no file.

    Args:
        path: folder with model_index.json.
        variant: variant of the weights, such as fp16, where a part has it.
        bare: leave the weights out, for a description, which takes any variant.
    """

    def __init__(self, path: Path, variant: str | None = None, bare: bool = False) -> None:
        self.path, self.variant, self.bare = path, variant, bare
        self.notes: list[str] = []
        if not (path / INDEX).is_file():
            raise FolderError(f"{path}: {_missing(path)}")
        self.index: Mapping[str, Any] = self.json(INDEX)
        if not isinstance(self.index.get("_class_name"), str):
            raise FolderError(f"{path / INDEX}: damaged (no _class_name); use an intact copy")
        if variant is not None and variant not in (known := self.variants()):
            listed = f"it has {', '.join(known)}" if known else "it has none; leave variant out"
            raise FolderError(f"{path}: no weights of the variant {variant!r}; {listed}")

    @property
    def pipeline(self) -> str:
        """The name of the class of the pipeline."""
        return str(self.index["_class_name"])

    def part(self, name: str) -> tuple[str, str] | None:
        """Library and class of a part; None where there is none. Raises FolderError."""
        found = self.index.get(name)
        if found is None or found == [None, None]:
            return None
        if not (isinstance(found, list) and len(found) == 2 and {*map(type, found)} == {str}):
            raise FolderError(
                f"{self.path / INDEX}: {printable(name)}: need [library, class], got "
                f"{printable(str(found))}"
            )
        return found[0], found[1]

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self.file(name).is_file()

    def file(self, name: str) -> Path:
        """The path of a file of the folder. Raises FolderError for a name that leaves it."""
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or "\0" in name:
            raise FolderError(f"{self.path}: {printable(name)} is outside the folder; refused")
        return self.path / name

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, such as unet/config.json. Raises FolderError."""
        file = self.file(name)
        try:
            if file.stat().st_size > LONGEST:
                raise FolderError(f"{file}: longer than {LONGEST} bytes; use an intact copy")
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FolderError(f"{file}: no such file; use a complete copy of the folder") from None
        except (OSError, RecursionError) as error:
            raise FolderError(f"{file}: cannot be read ({brief(error)})") from error
        except FolderError:
            raise
        except ValueError as error:
            raise FolderError(f"{file}: damaged ({brief(error)}); use an intact copy") from error
        if not isinstance(found, dict):
            raise FolderError(f"{file}: need an object of JSON, got {type(found).__name__}")
        return found

    def variants(self) -> list[str]:
        """The variants that some part has."""
        found = set()
        for stem in STEMS:
            for file in self.path.glob(f"*/{stem}.*"):
                words = file.name.removeprefix(f"{stem}.").split(".")
                if len(words) == 2 and words[1] == "safetensors":
                    found.add(words[0].split("-")[0])
                elif words[:2] == ["safetensors", "index"] and len(words) == 4:
                    found.add(words[2])
        return sorted(found)

    def files(self, part: str) -> list[Path]:
        """The files of the weights of a part: one, or its shards. Raises FolderError."""
        any_of = self.variants() if self.bare else []
        for variant in dict.fromkeys((self.variant, None, *any_of)):
            for stem in STEMS:
                dotted = "" if variant is None else f".{variant}"
                if self.has(whole := f"{part}/{stem}{dotted}.safetensors"):
                    return [self.file(whole)]
                if self.has(index := f"{part}/{stem}.safetensors.index{dotted}.json"):
                    return self._shards(part, index)
        folder = self.path / part
        here = sorted(file.name for file in folder.glob("*") if file.is_file())
        if [name for name in here if name.endswith(".safetensors")] and self.variants():
            raise FolderError(
                f"{folder}: has weights of the variants {', '.join(self.variants())} only; give "
                f"variant, such as {self.variants()[0]}"
            )
        if pickles := [name for name in here if name.endswith(PICKLES)]:
            raise FolderError(
                f"{folder / pickles[0]}: a pickle, which could run code, refused; convert it "
                "offline with diffusers' save_pretrained(folder, safe_serialization=True)"
            )
        raise FolderError(
            f"{folder}: no weights (diffusion_pytorch_model.safetensors or model.safetensors); "
            "use a complete copy of the folder"
        )

    def _shards(self, part: str, index: str) -> list[Path]:
        places = self.json(index).get("weight_map")
        if not isinstance(places, dict) or not {*map(type, places.values())} == {str}:
            raise FolderError(f"{self.path / index}: damaged (weight_map); use an intact copy")
        names = sorted(set(places.values()))
        if bad := [name for name in names if not name.endswith(".safetensors")]:
            raise FolderError(
                f"{self.path / index}: {printable(bad[0])} is no safetensors; refused"
            )
        shards = [self.file(f"{part}/{name}") for name in names]
        for shard in shards:
            if not shard.is_file():
                raise FolderError(
                    f"{shard}: no such file, and {PurePosixPath(index).name} names it; use a "
                    "complete copy of the folder"
                )
        return shards

    def weights(self, part: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of a part, from all its shards; real numbers in ``dtype`` if it is given.

        They are read and cast one by one. Raises FolderError for damaged files.
        """
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for path in self.files(part):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118, it is no mapping
                        value = file.get_tensor(name)
                        if value.dtype not in NUMBERS:
                            raise ValueError(f"{name} holds {value.dtype}")
                        found[name] = value.to(dtype) if value.is_floating_point() else value
            except Exception as error:  # its parser raises many types
                raise FolderError(
                    f"{path}: damaged or not safetensors ({brief(error)}); use an intact copy"
                ) from error
        return found


def _missing(path: Path) -> str:
    """What a folder without model_index.json lacks."""
    if not path.is_dir():
        return "no such folder; check the path"
    if (path / "config.json").is_file():
        return (
            f"a single model without its scheduler, no pipeline; name the folder above it, that "
            f"of {INDEX}, or give the module to ss.wrap"
        )
    if any((path / name).is_dir() for name in ("unet", "transformer", "scheduler")):
        return f"{INDEX} is missing; use a complete copy of the folder"
    return f"not a folder of diffusers ({INDEX} is missing)"


def fitted(
    found: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], optional: set[str], where: Path
) -> None:
    """Raise FolderError unless tensors have the names and shapes of a module."""
    if missing := sorted(shapes.keys() - found.keys() - optional):
        raise FolderError(
            f"{where}: {len(missing)} tensors are missing ({first_few(missing)}); the weights and "
            "config.json are of different models"
        )
    if stray := sorted(found.keys() - shapes.keys()):
        raise FolderError(
            f"{where}: {len(stray)} tensors that its class does not have ({first_few(stray)}); "
            "the weights and config.json are of different models"
        )
    for name, value in found.items():
        if value.shape != shapes[name]:
            raise FolderError(
                f"{where}: {printable(name)} has the shape {tuple(value.shape)}, and config.json "
                f"says {tuple(shapes[name])}; they are of different models"
            )
