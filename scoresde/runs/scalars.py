"""The records of a training run as TensorBoard scalars, an extra that may not be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

Add = Callable[[Mapping[str, Any]], None]
"""Takes a record of ``metrics.jsonl``."""


def require_tensorboard() -> None:
    """Raise ValueError, naming the extra, where TensorBoard is not installed."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise ValueError(
            "train.tensorboard=true needs TensorBoard; pip install 'scoresde[tensorboard]', or "
            "set train.tensorboard to false"
        ) from None


@contextmanager
def writing_scalars(folder: Path | None, step: int) -> Iterator[Add]:
    """What writes a record into a folder, at once; without a folder it does nothing.

    What was written there of steps after ``step`` no longer counts: a run that goes on from there
    makes it again.
    """
    if folder is None:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(record: Mapping[str, Any]) -> None:
        for tag, value in scalars(record).items():
            writer.add_scalar(tag, value, record["step"])
        writer.flush()

    try:
        yield add
    finally:
        writer.close()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by their tags; those of a noise level have its lam in theirs."""
    found = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k != "step"}
    levels = {f"loss_by_lam/{lam:+.2f}": loss for lam, loss in record.get("loss_by_lam", [])}
    return found | levels
