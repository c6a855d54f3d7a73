"""Several processes that do one job: what fails in one ends all, and is said once."""

from __future__ import annotations

import os
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
    """This process among those that torchrun started."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @staticmethod
    def found() -> World:
        """From the environment that torchrun sets."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, size, local = (
            int(os.environ.get(name, default)) for name, default in zip(names, "010", strict=True)
        )
        return World(rank, size, local)

    def share(self, rows: Tensor) -> Tensor:
        """The rows of this process."""
        return rows[self.rank :: self.size]


@contextmanager
def together(world: World, backend: str = "gloo") -> Iterator[Callable[[], None]]:
    """A function that waits for all processes; alone it returns at once."""
    if world.size == 1:
        yield lambda: None
        return
    from torch import distributed

    # One may have another set to score while the others wait; torchrun ends all if one dies.
    distributed.init_process_group(backend, timeout=timedelta(days=1))
    try:
        yield distributed.barrier
    finally:
        distributed.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of this name; auto is a GPU if there is one. Raises ValueError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"device: {name} is not usable ({reason}); try cpu") from None


def rank_of(world: World) -> Rank:
    """The place of this process in a batch."""
    return Rank(world.rank, world.size)


def backend_of(device: str) -> str:
    """What carries the sums: gloo, and NCCL between GPUs where they are used."""
    return "gloo" if pick_device(device).type == "cpu" else "cpu:gloo,cuda:nccl"


def own_device(device: torch.device, world: World) -> torch.device:
    """The GPU of this process among those of its machine; other devices as they are."""
    if device.type != "cuda" or world.size == 1 or device.index is not None:
        return device
    torch.cuda.set_device(world.local)
    return torch.device("cuda", world.local)


def jointly(world: World, action: Callable[[], Result]) -> Result:
    """What an action gives, in every process; where it fails in some, the first of them raises.

    The others raise SystemExit, so that one error is one line.
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
