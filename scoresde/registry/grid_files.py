"""Grids in JSON files: times alone, or with the process and the step that they belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from scoresde.samplers import Grid, Step, grids
from scoresde.sde import SDE


def from_file(path: str | PathLike[str]) -> Grid:
    """The grid in a JSON file: a list of decreasing times, or an object with the list "times".

    Raises ValueError, naming the file, for other content and as ``grids.fixed`` does.

    Args:
        path: JSON file with a list of decreasing times, or an object with the list "times".
    """
    content = read_json(path)
    times = numbers({"times": content} if isinstance(content, list) else content, "times", path)
    return grids.fixed(times, f"the grid in {path}")


def read_json(path: str | PathLike[str]) -> object:
    """The content of a JSON file. Raises ValueError, naming the file, if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the grid {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def numbers(content: object, key: str, path: str | PathLike[str]) -> list[float]:
    """The list of numbers under a key of a JSON object. Raises ValueError if there is none."""
    values = content.get(key) if isinstance(content, dict) else None
    if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
        raise ValueError(f'{path} needs a list of numbers under "{key}"')
    return values


@dataclass(frozen=True)
class StoredGrid:
    """A grid with the process and the step that it was optimised for.

    A call raises ValueError for another number of steps, or for a process with another lam at the
    times of the grid.
    """

    times: tuple[float, ...]
    lams: tuple[float, ...]
    process: str
    step: str
    name: str = "the stored grid"

    def __call__(self, sde: SDE, n: int) -> Tensor:
        ts = grids.fixed(self.times, self.name)(sde, n)
        if not torch.allclose(sde.lam(ts), torch.tensor(self.lams).double(), rtol=0, atol=1e-5):
            raise ValueError(f"{self.name} is for {self.process}, not for {described(sde)}")
        return ts


def save_grid(
    path: str | PathLike[str],
    ts: Tensor,
    sde: SDE,
    step: Step,
    notes: Mapping[str, object] | None = None,
) -> None:
    """Write a grid as JSON, together with its process and its step.

    ``notes`` are further entries, such as the settings of the search.
    """
    ts = ts.detach().double().cpu()
    content = {
        **(notes or {}),
        "times": ts.tolist(),
        "lams": sde.lam(ts).tolist(),
        "process": described(sde),
        "step": described(step),
    }
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(target)


def load_grid(path: str | PathLike[str]) -> StoredGrid:
    """Read a grid of ``save_grid``. Raises ValueError, naming the file, for other files."""
    content = read_json(path)
    times, lams = numbers(content, "times", path), numbers(content, "lams", path)
    name = f"the grid in {path}"
    grids.fixed(times, name)
    if len(lams) != len(times):
        raise ValueError(f"{name} has {len(times)} times and {len(lams)} lams; save it again")
    return StoredGrid(tuple(times), tuple(lams), *_labels(content), name)


def _labels(content: object) -> tuple[str, str]:
    found: Mapping[str, object] = content if isinstance(content, dict) else {}
    return str(found.get("process", "another process")), str(found.get("step", "another step"))


def described(value: object) -> str:
    """The repr of a dataclass, without memory addresses and at most 300 characters long."""
    text = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", repr(value))
    return text if len(text) <= 300 else text[:297] + "..."
