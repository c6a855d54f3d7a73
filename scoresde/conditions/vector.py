"""Real numbers: attributes, physical parameters, features of another model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from scoresde.arguments import Fraction, check
from scoresde.conditions.condition import Condition, Joined


@final
class Vector(Condition):
    """Numbers (d,), standardised: (y - mean) / std, and for each whether it is missing.

    A number that is not given is 0 with a 1 among the second d. Raises ValueError for lengths that
    differ, and for a mean or a deviation that is not finite.

    Args:
        mean: mean of each number.
        std: standard deviation of each number; a constant has 1.
        dropout: fraction of the training examples without their numbers.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, dropout: Fraction = 0.1
    ) -> None:
        super().__init__()
        check(Vector, {"dropout": dropout})
        if not len(mean) or len(mean) != len(std):
            raise ValueError(f"need a mean and std of each number, got {len(mean)} and {len(std)}")
        if not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
            raise ValueError(f"need finite means and std > 0, got mean={mean}, std={std}")
        self.dropout, self.embed = dropout, 2 * len(mean)
        # On the host, where numbers are read.
        self.mean = torch.tensor(mean, dtype=torch.float64, device="cpu")
        self.std = torch.tensor(std, dtype=torch.float64, device="cpu")

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        found = torch.as_tensor(values, dtype=torch.float64)
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or not torch.isfinite(found).all():
            raise ValueError(f"need finite numbers (N, d), got {tuple(found.shape)}")
        std = found.std(0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        return {"mean": found.mean(0).tolist(), "std": std.tolist()}

    def read(self, values: Any) -> Tensor:
        """One vector (d,), or (n, d); a number where d = 1. Numbers may be None: not given."""
        d = len(self.mean)
        if isinstance(values, Tensor):
            if values.is_complex():
                raise ValueError("need real numbers, got complex ones")
            found = values.detach().cpu().double()
        else:
            numbers = _numbers(values)
            try:
                found = torch.tensor(numbers, dtype=torch.float64)
            except ValueError:  # lists of different lengths
                raise ValueError(f"need {d} numbers, or {d} for each sample") from None
        if d == 1 and found.shape[-1:] != (1,):
            found = found.unsqueeze(-1)
        found = found[None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != d:
            raise ValueError(f"need {d} numbers, got {tuple(found.shape[found.ndim > 1 :])}")
        given = values if isinstance(values, Tensor) else None
        if torch.isinf(found).any() or (given is not None and torch.isnan(found).any()):
            raise ValueError("need finite numbers, got NaN or infinity")
        found = (found - self.mean) / self.std
        if (found.abs() > torch.finfo(torch.float32).max).any():
            raise ValueError("a number is too far from those of the training data; check it")
        return found

    def takes(self) -> str:
        means = ", ".join(f"{m:.3g} +- {s:.3g}" for m, s in zip(self.mean, self.std, strict=True))
        d = len(self.mean)
        return f"{d} number{'s' * (d > 1)}, in the training data {means}"

    def written(self, text: str) -> list[float | None]:
        """Numbers separated by commas; one that is left empty is not given."""
        parts = text.split(",")
        if len(parts) != len(self.mean):
            raise ValueError(f"need {len(self.mean)} numbers, got {text!r}")
        return [_numbers(part) if part.strip() else None for part in parts]

    def null(self, n: int) -> Tensor:
        return torch.full((n, len(self.mean)), math.nan, dtype=torch.float64)

    def forward(self, y: Tensor) -> Joined:
        missing = torch.isnan(y)
        both = torch.cat([y.masked_fill(missing, 0), missing.to(y)], 1)
        return Joined(embed=both)


def _numbers(values: Any) -> Any:
    """Nested lists of numbers with NaN for None. Raises ValueError for what is no number."""
    if values is None:
        return math.nan
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [_numbers(value) for value in values]
    try:
        number = float(values)
    except (TypeError, ValueError):
        raise ValueError(f"need numbers, got {values!r}") from None
    if not math.isfinite(number):
        raise ValueError("need finite numbers, got NaN or infinity")
    return number
