"""A checkpoint of another program: what is in the file, what the user says of it, and the result.

Files are read with ``weights_only`` or as safetensors, so nothing in them is run.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.data.file_kinds import kind_of
from scoresde.training.checkpoint import DataDescription
from scoresde.training.safe_files import (
    first_few,
    is_plain,
    nonfinite,
    read_safetensors,
    read_zip,
    require_file,
)

PICTURES = Scaling(256, -1 - 1 / 255, 1 + 1 / 255)
"""Pictures u8 / 127.5 - 1: the middles of the levels."""
RECIPE = (
    "open it where its program is installed and save the tensors: "
    "safetensors.torch.save_file({k: v.contiguous() for k, v in state_dict.items()}, FILE)"
)


class PublishedError(ValueError):
    """A checkpoint of another program that cannot be read; the message names it and a remedy."""


@dataclass(frozen=True)
class Published:
    """What a checkpoint of another program is here.

    Args:
        sections: sections of a configuration, as plain values.
        data: description of the data.
        tensors: state dict of the network that the sections describe.
        step: number of updates made; 0 where the file does not say.
    """

    sections: Mapping[str, Any]
    data: DataDescription
    tensors: Mapping[str, Tensor]
    step: int = 0


@final
class Said:
    """What is not in the file: hyper-parameters by name, nested ones by their last name.

    Raises PublishedError.
    """

    def __init__(self, source: Path, values: Mapping[str, Any]) -> None:
        self.source, self.asked, self.missing = source, set[str](), dict[str, str]()
        self.values = dict(_leaves(values))

    def __contains__(self, name: str) -> bool:
        self.asked.add(name)
        return self.values.get(name) is not None

    def fill(self, values: Mapping[str, Any]) -> None:
        """Add values of the file to those that are said, which take precedence."""
        self.values = dict(_leaves(values)) | self.values

    def get(self, name: str, default: Any) -> Any:
        """A value of the type of the default, or the default."""
        return self._typed(name, type(default)) if name in self else default

    def need(self, name: str, kind: type, about: str) -> Any:
        """A value that has to be said; a zero of its type until ``complete`` raises."""
        if name in self:
            return self._typed(name, kind)
        self.missing[name] = about
        return kind()

    def flags(self, name: str, about: str) -> list[bool]:
        """A list of true and false that has to be said."""
        value = self.values.get(name) if name in self else None
        if value is None:
            self.missing[name] = about
            return []
        words = re.findall(r"[a-z0-9]+", str(value).lower())
        if stray := [word for word in words if word not in ("true", "false", "1", "0")]:
            raise PublishedError(f"{self.source}: {name}: need true and false, got {stray[0]}")
        return [word in ("true", "1") for word in words]

    def complete(self) -> None:
        """Raise PublishedError if a value that was needed is missing, naming all of them."""
        if self.missing:
            listed = ", ".join(f"{name} ({about})" for name, about in self.missing.items())
            raise PublishedError(
                f"{self.source}: the file does not hold {listed}; give each by --set NAME=VALUE, "
                "or the file of settings of its training by --settings"
            )

    def same(self, name: str, found: Any, default: Any = None) -> None:
        """Raise PublishedError if a value is said that differs from that of the weights."""
        if name in self and (said := self._typed(name, type(found))) != found:
            raise PublishedError(
                f"{self.source}: {name}={said} does not fit its weights, which say {found}; give "
                "the settings of this file"
            )

    def only(self, name: str, allowed: Iterable[Any], why: str) -> None:
        """Raise PublishedError for a setting whose network is not known here."""
        if name in self and (said := self.values[name]) not in tuple(allowed):
            raise PublishedError(f"{self.source}: {name}={said}: {why}")

    def _typed(self, name: str, kind: type) -> Any:
        value = self.values[name]
        try:
            if kind is bool:
                if str(value).lower() not in ("true", "false"):
                    raise ValueError(value)
                return str(value).lower() == "true"
            if kind in (list, tuple):
                parts = (
                    re.split(r"[,\s]+", value.strip("[]() ")) if isinstance(value, str) else value
                )
                parts = parts if isinstance(parts, list | tuple) else [parts]
                return kind(int(part) for part in parts if part != "")
            if kind is int and isinstance(value, bool | float) and value != int(value):
                raise ValueError(value)
            return kind(value)
        except (TypeError, ValueError):
            words = {bool: "true or false", list: "whole numbers", tuple: "whole numbers"}
            words |= {int: "a whole number", float: "a number", str: "a word"}
            raise PublishedError(
                f"{self.source}: {name} has to be {words[kind]}, got {value!r}"
            ) from None


@final
class Moved:
    """Tensors by our names, each taken once from those of a file by theirs.

    Raises PublishedError for tensors that are missing, that nothing takes, or that are not plain
    finite numbers. Numbers of half precision become float32 if ``wide``.
    """

    def __init__(self, source: Path, tensors: Mapping[str, Any], wide: bool = True) -> None:
        self.wide = wide
        self.source, self.left, self.found = source, dict(tensors), dict[str, Tensor]()
        bad = [name for name, value in self.left.items() if not is_plain(value)]
        bad += [] if bad else nonfinite(self.left)
        if bad:
            raise PublishedError(
                f"{source}: damaged (not finite numbers: {first_few(bad)}); use an intact copy"
            )

    def take(self, name: str) -> Tensor:
        """A tensor of theirs."""
        self.shape(name)
        value: Tensor = self.left.pop(name)
        return value.float() if self.wide and value.dtype != torch.float64 else value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of theirs."""
        if name not in self.left:
            raise PublishedError(
                f"{self.source}: has no tensor {name}, which its layout needs; use an intact copy"
            )
        return tuple(self.left[name].shape)

    def layer(
        self, ours: str, theirs: str, change: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        """Weight and bias of a layer."""
        for part in ("weight", "bias"):
            self.found[f"{ours}.{part}"] = change(self.take(f"{theirs}.{part}"))

    def drop(self, *patterns: str) -> None:
        """Leave out tensors that do nothing here, by the patterns of their names."""
        self.left = {
            k: v for k, v in self.left.items() if not any(re.fullmatch(p, k) for p in patterns)
        }

    def finished(self) -> dict[str, Tensor]:
        """Our tensors. Raises PublishedError if some of theirs are left."""
        if self.left:
            raise PublishedError(
                f"{self.source}: {len(self.left)} tensors have no place in the network of this "
                f"layout: {first_few(list(self.left))}; check --from and the settings"
            )
        return self.found


def read_file(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and contents of a .safetensors or torch file. Raises PublishedError."""
    require_file(path)
    kind = kind_of(path)
    if kind == "a safetensors file":
        return read_safetensors(path)
    if kind not in ("a PyTorch file (.pt)", "a damaged zip archive"):
        remedy = "download the file itself" if kind == "a web page" else RECIPE
        raise PublishedError(f"{path}: {kind}, not a checkpoint; {remedy}")
    # Numbers of numpy, as a trainer stores its best loss.
    scalar = np.float64(0).__reduce__()[0]
    known: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in "dfiqlb?")]
    known += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(known):
            found = read_zip(path)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|class|global) ([\w.]+)", str(error))
        what = name[1].rstrip(".") if name else "a program's own class"
        raise PublishedError(
            f"{path}: refused, it holds {what}, and to open it could run code (nothing was run); "
            f"{RECIPE}"
        ) from error
    return {}, found


def picture(
    name: str, channels: int, size: int | tuple[int, int], **known: Any
) -> DataDescription:
    """The description of pictures in [-1, 1], square or of height and width."""
    sides = (size, size) if isinstance(size, int) else size
    return DataDescription(name, (channels, *sides), PICTURES, **known)


def trained(classes: int | None, dropout: float, levels: int | None = None) -> dict[str, Any]:
    """What the section of the training has to say of a model.

    Without ``dropout`` of its classes it cannot do without one. With ``levels`` it learned the
    variances of a chain.
    """
    found: dict[str, Any] = {"label_dropout": dropout} if classes else {}
    if levels is not None:
        found |= {"objective": {"kind": "hybrid"}, "times": {"kind": "levels", "n": levels}}
    return found


def classes(n: int | None) -> tuple[str, ...] | None:
    """Names of classes of which only the number is known."""
    return None if not n else tuple(map(str, range(n)))


def numbered(names: Iterable[str], pattern: str) -> list[int]:
    """The numbers that a pattern finds at the start of names, in order, each once."""
    found = (re.match(pattern, name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def swapped(x: Tensor) -> Tensor:
    """The two halves of the columns of a matrix exchanged; a vector as it is."""
    return x if x.ndim < 2 else torch.cat(x.chunk(2, dim=1)[::-1], dim=1)


def matrix(x: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as a matrix; a bias as it is."""
    return x.flatten(1) if x.ndim > 1 else x


def _leaves(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(name), value
