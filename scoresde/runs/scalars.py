"""Writes records of a training run as TensorBoard scalars; TensorBoard is optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

Add = Callable[[Mapping[str, Any]], None]
"""Function that writes one record of ``metrics.jsonl``."""


def require_tensorboard() -> None:
    """Raise ValueError, naming the extra, if TensorBoard is not installed."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError:
        raise ValueError(
            "train.tensorboard=true needs TensorBoard; pip install 'scoresde[tensorboard]', or "
            "set train.tensorboard to false"
        ) from None


@contextmanager
def writing_scalars(folder: Path | None, step: int) -> Iterator[Add]:
    """Yield a function that writes a record to a folder; without a folder it does nothing.

    Scalars after ``step`` in the folder are purged, because a resumed run writes them again.
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
    """Numbers of a record by tag; the tag of a loss by noise level contains its lam."""
    found = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k != "step"}
    levels = {f"loss_by_lam/{lam:+.2f}": loss for lam, loss in record.get("loss_by_lam", [])}
    return found | levels
