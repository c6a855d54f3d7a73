"""The latents of a data set: encoded once, standardised, and drawn anew at every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from scoresde.data import Dataset, Scaling, Split
from scoresde.data.cache import MANIFEST, Source, gathered, stored
from scoresde.data.dataset import MEASURED, bounds_of, reading, spread
from scoresde.data.digest import digest
from scoresde.latent.codec import Codec
from scoresde.latent.files import codec_digest
from scoresde.latent.tiles import decode, encode
from scoresde.progress import Progress, silent
from scoresde.training.held_out import evaluating

BATCH = 2**20
"""Numbers of the pictures that are encoded at a time."""
NEAR = (0.5, 2.0)
"""Deviations of a channel of standardised latents that need no remark."""
STILL = 1e-3
"""Deviation of such a channel below which it does not vary."""


def latent_scaling(codec: Codec) -> Scaling:
    """The map from latents to standardised latents, by channel."""
    mean, std = codec.latents_mean.tolist(), codec.latents_std.tolist()
    return Scaling(None, shift=tuple(mean), scale=tuple(std))


def latents_of(
    dataset: Dataset,
    codec: Codec,
    *,
    device: torch.device | None = None,
    folders: Sequence[Path] = (),
    progress: Progress = silent,
) -> Dataset:
    """The latents of a data set, with the labels and columns of its pictures.

    The examples are the means of q(z | x), and ``Split.std`` their deviations. In the first of the
    ``folders`` that can be written they are kept on disk, under the digests of the codec and of
    the pictures, and mapped from there. Raises ValueError for pictures that the codec cannot
    encode, OSError where no folder can be written.
    """
    _require_fit(codec, tuple(dataset.shape))
    if codec.data is not None and _units(codec.data.scaling) != _units(dataset.scaling):
        raise ValueError(
            f"codec: trained on pictures of {_units(codec.data.scaling)}, and {dataset.name} has "
            f"{_units(dataset.scaling)}; train one on these"
        )
    splits = {False: dataset.train, True: dataset.test}
    total = sum(map(len, splits.values()))

    def encoded(skipped: list[str]) -> Iterator[tuple[bool, Split]]:
        codec.to(device)
        with progress(total, "encoded") as advance, evaluating(codec), torch.no_grad():
            for test, split in splits.items():
                for rows in torch.arange(len(split)).split(max(1, BATCH // dataset.shape.numel())):
                    x = dataset.scaling.encode(split.take(rows).x)
                    x = x.to(device, codec.latents_mean.dtype)
                    mean, std = (part.float().cpu() for part in encode(codec, x))
                    with reading("codec"):
                        yield test, Split(mean, columns={"std": std.expand_as(mean).contiguous()})
                    advance(len(rows))

    if not folders:
        found = gathered(encoded)
    else:
        key = {"codec": codec_digest(codec), "examples": list(map(digest, splits.values()))}
        name = f"{key['codec'][:12]}-{key['examples'][0][:12]}"
        of_use = (f for f in folders if (f / name / MANIFEST).exists() or _writable(f))
        place = next(of_use, folders[-1])
        found = stored(place / name, Source(key, []), encoded)
        found = replace(found, notes=(*found.notes, *_others(place, name)))
    train, test = (
        _joined(latents, pictures)
        for latents, pictures in zip((found.train, found.test), splits.values(), strict=True)
    )
    scaling = latent_scaling(codec)
    return Dataset(
        dataset.name, train, test, scaling, dataset.classes, found.notes, words=dataset.words
    )


def _others(folder: Path, name: str) -> list[str]:
    """A sentence about the caches of other codecs beside that of a ``name``, if there are any."""
    found = [p.parent for p in folder.glob(f"*/{MANIFEST}") if p.parent.name[:12] != name[:12]]
    if not found:
        return []
    size = sum(p.stat().st_size for cache in found for p in cache.rglob("*") if p.is_file())
    names = ", ".join(sorted(cache.name for cache in found))
    return [
        f"{folder}: {names} are latents of other codecs, or of this one before it changed "
        f"({size / 1e6:.3g} MB); delete them if no run needs them"
    ]


def _units(scaling: Scaling) -> str:
    """The units of pictures in words."""
    if scaling.levels is None:
        return "real numbers"
    return f"pixel levels from {scaling.low:g} to {scaling.high:g}"


def _require_fit(codec: Codec, shape: tuple[int, ...]) -> None:
    """Raise ValueError for pictures (C, H, W) that a codec cannot encode.

    One that a program made is tried on a picture, whose latent and which it must give back.
    """
    latents = codec.latent_shape(shape)
    if codec.arguments is not None:
        return
    x = codec.latents_mean.new_zeros(1, *shape)
    whole = (shape[0], *(side * codec.factor for side in latents[1:]))

    def mean(x: Tensor) -> Tensor:
        return encode(codec, x).mean

    for name, run, expected in (
        ("encode", mean, latents),
        ("decode", partial(decode, codec), whole),
    ):
        try:
            with evaluating(codec), torch.no_grad():
                x = run(x)
        except Exception as error:  # a network raises whatever it stumbles over
            raise ValueError(
                f"codec: {name} fails for {tuple(x.shape)}: {type(error).__name__}: {error}"
            ) from error
        if (now := tuple(x.shape[1:])) != expected:
            raise ValueError(
                f"codec: {name} gives {now} of a picture {shape}, expected {expected}"
            )


def _writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which is made if there is none."""
    return os.access(folder if folder.exists() else folder.parent, os.W_OK)


def far_from_unit(dataset: Dataset) -> str | None:
    """One sentence where the deviations of standardised latents are far from 1, else None."""
    train, scaling = dataset.train, dataset.scaling
    some = train.take(spread(len(train), max(2, MEASURED // dataset.shape.numel())))
    w = scaling.encode(some.x)
    noise = torch.zeros_like(w) if some.std is None else scaling.encode(some.x + some.std) - w
    w, noise = (part.double().transpose(0, 1).flatten(1) for part in (w, noise))
    std = (w.var(1, correction=0) + noise.square().mean(1)).sqrt()
    least, largest = float(std.min()), float(std.max())
    if still := torch.nonzero(std < STILL).flatten().tolist():
        return (
            f"latents: channel {', '.join(map(str, still))} is the same in all of these pictures "
            "and carries nothing; train a codec on them, or one of fewer latent_channels"
        )
    if NEAR[0] <= least and largest <= NEAR[1]:
        return None
    return (
        f"latents: the deviations of their channels are {least:.2g} to {largest:.2g} after "
        "standardisation, far from 1; this codec was made for other pictures, train one on these"
    )


def _joined(latents: Split, pictures: Split) -> Split:
    """Latents with what is said of their pictures."""
    std = latents.columns["std"]
    assert isinstance(std, torch.Tensor)
    return Split(
        latents.x,
        pictures.label,
        latents.bounds,
        latents.mapped,
        pictures.columns,
        std if bounds_of(std)[1] > 0 else None,
    )
