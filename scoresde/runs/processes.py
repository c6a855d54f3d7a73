"""Cooperating processes: a failure in one ends all of them and is reported once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.training.distributed import Rank

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes, as torchrun sets them."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @staticmethod
    def found() -> World:
        """Read the environment variables of torchrun."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, size, local = (
            int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)
        )
        return World(rank, size, local)

    def share(self, rows: Tensor) -> Tensor:
        """Select the rows that this process handles."""
        return rows[self.rank :: self.size]


@contextmanager
def together(world: World, backend: str = "gloo") -> Iterator[Callable[[], None]]:
    """Yield a barrier for all processes; it does nothing in a single process."""
    if world.size == 1:
        yield lambda: None
        return
    from torch import distributed

    # The others may wait while one scores another set; torchrun ends all if one dies.
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield distributed.barrier
    finally:
        distributed.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """Device by name; auto is a GPU if there is one. Raises ValueError if not usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        # Torch lists all its device types, or adds advice after the first sentence.
        reason = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0].rstrip(".")[:100]
        if reason.startswith("Expected one of"):
            reason = "unknown device type"
        raise ValueError(f"device: {name} is not usable ({reason}); try cpu") from None


def rank_of(world: World) -> Rank:
    """Rank of this process for training."""
    return Rank(world.rank, world.size)


def backend_of(device: str) -> str:
    """Communication backend: gloo, together with NCCL for GPUs."""
    return "gloo" if pick_device(device).type == "cpu" else "cpu:gloo,cuda:nccl"


def own_device(device: torch.device, world: World) -> torch.device:
    """The GPU of this process on its machine; other devices are returned unchanged."""
    if device.type != "cuda" or world.size == 1 or device.index is not None:
        return device
    torch.cuda.set_device(world.local)
    return torch.device("cuda", world.local)


def jointly(world: World, action: Callable[[], Result]) -> Result:
    """Run an action in every process; if it fails in some, the first of these raises its error.

    All others raise SystemExit, so that a single line reports the error.
    """
    error: Exception | None = None
    try:
        result = action()
    except (ValueError, OSError, RuntimeError) as found:
        error = found
    # The largest of the reversed numbers is the first process that failed.
    first = world.size - rank_of(world).largest(0 if error is None else world.size - world.rank)
    if error is not None and first == world.rank:
        raise error
    if first < world.size:
        raise SystemExit(1)
    return result


def require_same(world: World, values: Mapping[str, Any], remedy: str) -> None:
    """Raise ValueError, naming process and value, unless all processes have the same values."""
    if world.size == 1:
        return
    from torch import distributed

    found: list[dict[str, Any]] = [{} for _ in range(world.size)]
    distributed.all_gather_object(found, dict(values))
    for rank, theirs in enumerate(found):
        for key in sorted(found[0].keys() | theirs.keys()):
            if (one := found[0].get(key)) != (other := theirs.get(key)):
                raise ValueError(
                    f"{key}={other} in process {rank}, but {one} in process 0; {remedy}"
                )
