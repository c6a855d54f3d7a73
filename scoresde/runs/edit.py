"""Latent codes of examples: encode, decode, interpolate, reconstruct.

Examples and samples are in the units of the data; codes have unit variance under the prior.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde import codes
from scoresde.arguments import Count, Open, check_fields
from scoresde.data.file_kinds import kind_of
from scoresde.denoiser import Denoiser
from scoresde.evaluation import captioned, image_grid, save_png, scatter
from scoresde.parameterization import ScoreModel
from scoresde.progress import Advance, Progress, silent
from scoresde.runs.draw import places_of
from scoresde.runs.instrument import require_finite
from scoresde.runs.pictures import is_image, pixels
from scoresde.runs.results import Make, ResultFolder
from scoresde.runs.said import require_said
from scoresde.sde import match

RECORD, CODES, SAMPLES, PICTURE = "edit.json", "codes.npz", "edited.npz", "edit.png"
NAMES = re.compile("|".join(map(re.escape, (CODES, SAMPLES, PICTURE))))
COLUMNS = 16


class Interpolated(NamedTuple):
    """Samples and codes (pairs, n, ...) along the paths between pairs of examples."""

    x: Tensor
    z: Tensor


class Reconstructed(NamedTuple):
    """Reconstructions ``x`` from the codes ``z``, and the RMS error of each example, (N,).

    The errors are in model units. ``changed`` is the fraction of pixel levels that differ, None
    for real numbers.
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

    Methods take labels as ``draw`` does; None means no class. They raise ValueError for bad
    labels, RuntimeError if the solver fails.
    """

    model: ScoreModel
    tolerance: Open = 1e-5
    batch: Count = 64
    progress: Progress = silent

    def __post_init__(self) -> None:
        check_fields(self)

    def encode(self, x: Tensor, label: Any = None) -> Tensor:
        """Encode examples to codes (N, ...) in float64."""
        places = places_of(label, self.model, len(x))
        with self.progress(len(x), "encoded") as advance:
            return self._carried(codes.encode, self._units(x), self._given(places), advance)

    def decode(self, z: Tensor, label: Any = None) -> Tensor:
        """Decode codes to samples (N, ...)."""
        places = places_of(label, self.model, len(z))
        with self.progress(len(z), "decoded") as advance:
            return self._data(self._carried(codes.decode, z, self._given(places), advance))

    def interpolate(self, x: Tensor, label: Any = None, n: int = 9) -> Interpolated:
        """Interpolate along great circles between the codes of each pair, with n samples per path.

        Between two classes, the denoisers are interpolated linearly as well. The path is therefore
        continuous, and it ends at the examples.
        """
        if len(x) % 2:
            raise ValueError(f"num: pairs need an even number of examples, got {len(x)}")
        places, pairs = places_of(label, self.model, len(x)), len(x) // 2
        with self.progress(len(x) + n * pairs, "carried") as advance:
            z = self._carried(codes.encode, self._units(x), self._given(places), advance)
            path = codes.interpolate(z[0::2], z[1::2], n).transpose(0, 1)
            between = self._given(places)
            if places is not None:
                share = torch.linspace(0, 1, n, dtype=torch.float64).repeat(pairs)
                ends = (places[k::2].repeat_interleave(n) for k in (0, 1))
                between = partial(self._between, share, *ends)
            found = self._carried(codes.decode, path.flatten(0, 1), between, advance)
        return Interpolated(self._data(found).unflatten(0, (pairs, n)), path)

    def reconstruct(self, x: Tensor, label: Any = None) -> Reconstructed:
        """Encode and decode examples."""
        given = self._given(places_of(label, self.model, len(x)))
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

    def _given(self, places: Tensor | None) -> Callable[[Tensor], Denoiser]:
        """A function from rows to their denoiser, conditional on their classes."""
        remedy = "; an example is edited with its class alone"
        require_said(self.model, () if places is None else ("label",), remedy)
        if places is None:
            return lambda rows: self.model.denoiser()
        return lambda rows: self.model.bound({"label": places[rows]})

    def _between(self, share: Tensor, first: Tensor, second: Tensor, rows: Tensor) -> Denoiser:
        """The denoiser of some rows, interpolated between the denoisers of two classes."""
        a, b = self._given(first)(rows), self._given(second)(rows)
        if torch.equal(first[rows], second[rows]):
            return a
        u = share[rows].to(self.model.device)
        return replace(
            a,
            predict=lambda x, t: match(1 - u, x) * a(x, t) + match(u, x) * b(x, t),
            normalised=False,
        )

    def _units(self, x: Tensor) -> Tensor:
        """Convert to model units; pixel levels become the middles of their bins."""
        data = self.model.data
        return x.double() if data is None else data.scaling.encode(x, dtype=torch.float64)

    def _data(self, x: Tensor) -> Tensor:
        """Convert to the units of the data."""
        data = self.model.data
        return x.float() if data is None else data.scaling.decode(x.float())


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
    z, shape = found.get("z"), tuple(model.data.shape)
    if z is None or tuple(z.shape[1:]) != shape or not len(z) or not z.is_floating_point():
        got = "nothing" if z is None else f"{z.dtype} {tuple(z.shape)}"
        needed = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"codes: z of {path} is {got}; this model needs ({needed})")
    if not bool(z.isfinite().all()):
        raise ValueError(f"codes: some in {path} are not finite; encode them anew")
    return z, found.get("label")


def edit_folder(folder: Path) -> ResultFolder:
    """The folder of an edit, whose files ``edit.json`` lists."""
    return ResultFolder(folder, RECORD, NAMES)


def picture_of(
    model: ScoreModel, rows: Sequence[tuple[str, Tensor]], title: str
) -> dict[str, Make]:
    """Picture of named rows of images or named sets of points; empty for other shapes."""
    x = rows[0][1]
    if is_image(x):
        images = [pixels(row, model.data.scaling) for _, row in rows]
        width = max(map(len, images))
        white = torch.full_like(images[0][:1], 255)
        whole = [torch.cat([row, white.expand(width - len(row), -1, -1, -1)]) for row in images]
        grid = captioned(image_grid(torch.cat(whole), width), title, [name for name, _ in rows])
        return {PICTURE: partial(save_png, picture=grid)}
    if x.ndim == 2 and x.shape[1] == 2:
        frame = torch.cat([row for _, row in rows])
        return {PICTURE: partial(scatter, panels=dict(rows), frame=frame)}
    return {}
