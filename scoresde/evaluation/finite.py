"""The check for NaN and infinity that all metrics share."""

from __future__ import annotations

from torch import Tensor


def require_finite(*sets: Tensor) -> None:
    """Raise ValueError for NaN or infinity."""
    if not all(bool(part.isfinite().all()) for part in sets):
        raise ValueError("samples or references hold NaN or infinity; leave those out")
