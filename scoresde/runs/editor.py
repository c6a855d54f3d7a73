"""Latent codes of examples: encode, decode, interpolate, reconstruct.

Examples and samples are in the units of the data; codes have unit variance under the prior.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde import codes
from scoresde.arguments import Count, Open, check_fields
from scoresde.data.file_kinds import kind_of
from scoresde.denoiser import Denoiser
from scoresde.parameterization import ScoreModel
from scoresde.progress import Advance, Progress, silent
from scoresde.runs.draw import said_by
from scoresde.runs.instrument import require_finite
from scoresde.runs.said import Said
from scoresde.runs.space import state_shape, to_data, to_state
from scoresde.sde import match

CODES = "codes.npz"


class Interpolated(NamedTuple):
    """Samples and codes (pairs, n, ...) along the paths between pairs of examples."""

    x: Tensor
    z: Tensor


class Reconstructed(NamedTuple):
    """Reconstructions ``x`` from the codes ``z``, and the RMS error of each example, (N,).

    The errors are in model units, or of standardised latents. ``changed`` is the fraction of pixel
    levels that differ, None for real numbers.
    """

    x: Tensor
    z: Tensor
    errors: Tensor
    changed: float | None


@dataclass(frozen=True)
class Editor:
    """Maps between examples and latent codes by the probability flow of a model.

    Args:
        model: trained model.
        tolerance: relative and absolute tolerance of the probability flow.
        batch: samples solved at a time.
        progress: shows how many samples are done.

    Methods take what is said of the examples, or labels as ``draw`` does; None says nothing. They
    raise ValueError for bad labels, RuntimeError if the solver fails.
    """

    model: ScoreModel
    tolerance: Open = 1e-5
    batch: Count = 64
    progress: Progress = silent

    def __post_init__(self) -> None:
        check_fields(self)

    def encode(self, x: Tensor, said: Any = None) -> Tensor:
        """Encode examples to codes (N, ...) in float64."""
        given = self._given(said, len(x))
        with self.progress(len(x), "encoded") as advance:
            return self._carried(codes.encode, self._units(x), given, advance)

    def decode(self, z: Tensor, said: Any = None) -> Tensor:
        """Decode codes to samples (N, ...)."""
        given = self._given(said, len(z))
        with self.progress(len(z), "decoded") as advance:
            return self._data(self._carried(codes.decode, z, given, advance))

    def interpolate(self, x: Tensor, said: Any = None, n: int = 9) -> Interpolated:
        """Interpolate along great circles between the codes of each pair, with n samples per path.

        Where different things are said of a pair, the denoisers are interpolated linearly as well.
        The path is therefore continuous, and it ends at the examples.
        """
        if len(x) % 2:
            raise ValueError(f"interpolate: need an even number, two ends a path, got {len(x)}")
        given, pairs = self._given(said, len(x)), len(x) // 2

        def between(rows: Tensor) -> Denoiser:
            first = rows // n * 2
            a, b = given(first), given(first + 1)
            u = ((rows % n).double() / (n - 1)).to(self.model.device)
            return replace(
                a,
                predict=lambda x, t: match(1 - u, x) * a(x, t) + match(u, x) * b(x, t),
                normalised=False,
            )

        alike = self._said(said, len(x)).count == 1
        with self.progress(len(x) + n * pairs, "carried") as advance:
            z = self._carried(codes.encode, self._units(x), given, advance)
            path = codes.interpolate(z[0::2], z[1::2], n).transpose(0, 1)
            along = (lambda rows: given(rows // n * 2)) if alike else between
            found = self._carried(codes.decode, path.flatten(0, 1), along, advance)
        return Interpolated(self._data(found).unflatten(0, (pairs, n)), path)

    def reconstruct(self, x: Tensor, said: Any = None) -> Reconstructed:
        """Encode and decode examples."""
        given = self._given(said, len(x))
        clean = self._units(x)
        with self.progress(2 * len(x), "carried") as advance:
            z = self._carried(codes.encode, clean, given, advance)
            back = self._carried(codes.decode, z, given, advance)
        found, data = self._data(back), self.model.data
        levels = data is not None and data.scaling.levels is not None
        errors = (back - clean).flatten(1).square().mean(1).sqrt()
        return Reconstructed(
            found, z, errors, float((found != x).double().mean()) if levels else None
        )

    def _carried(
        self,
        carry: Callable[..., Tensor],
        x: Tensor,
        denoiser: Callable[[Tensor], Denoiser],
        advance: Advance,
    ) -> Tensor:
        """Apply ``codes.encode`` or ``codes.decode`` to all samples, batch by batch."""
        flow, device, parts = codes.Solved(self.tolerance), self.model.device, []
        for rows in torch.arange(len(x)).split(self.batch):
            part = carry(denoiser(rows), x[rows].to(device), flow).cpu()
            require_finite(part, carry.__name__, "at the end")
            parts.append(part)
            advance(len(rows))
        return torch.cat(parts)

    def _said(self, said: Any, n: int) -> Said:
        """What is said of n samples."""
        return (said if isinstance(said, Said) else said_by(self.model, said)).over(n)

    def _given(self, said: Any, n: int) -> Callable[[Tensor], Denoiser]:
        """A function from rows to their denoiser, conditional on what is said of them."""
        all_of_them = self._said(said, n)
        return lambda rows: all_of_them.denoiser(rows.tolist())

    def _units(self, x: Tensor) -> Tensor:
        """Convert to states; pixel levels become the middles of their bins."""
        return to_state(self.model, x, dtype=torch.float64)

    def _data(self, x: Tensor) -> Tensor:
        """Convert to the units of the data."""
        return to_data(self.model, x.float())


def read_codes(path: Path, model: ScoreModel) -> tuple[Tensor, Tensor | None]:
    """Read codes z (N, ...) and optional labels (N,) from a .npz.

    Raises ValueError for a file without codes for this model, OSError for a missing file.
    """
    try:
        # Opened here, because numpy does not close a damaged archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, OSError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"codes: {path} is {kind_of(path)}, not codes; give a {CODES}") from error
    z, shape = found.get("z"), state_shape(model)
    if z is None or tuple(z.shape[1:]) != shape or not len(z) or not z.is_floating_point():
        got = "nothing" if z is None else f"{z.dtype} {tuple(z.shape)}"
        needed = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"codes: z of {path} is {got}; this model needs ({needed})")
    if not bool(z.isfinite().all()):
        raise ValueError(f"codes: some in {path} are not finite; encode them anew")
    return z, found.get("label")
