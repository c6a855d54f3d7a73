"""The check for NaN and infinity that all metrics share."""

from __future__ import annotations

from torch import Tensor


def require_finite(**sets: Tensor) -> None:
    """Raise ValueError for NaN or infinity, with the number of items (N, ...) that have them."""
    for name, x in sets.items():
        if bad := int((~x.isfinite()).unsqueeze(-1).flatten(1).any(1).sum()):
            raise ValueError(f"{bad} of {len(x)} {name} are not finite; leave them out")
