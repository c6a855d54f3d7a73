"""Codecs in files: weights and statistics of the latents, with a description. Nothing is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.latent.codec import Codec
from scoresde.training.checkpoint import (
    DataDescription,
    fingerprint,
    read_tensors,
    write_tensors,
)
from scoresde.training.safe_files import DAMAGE, REMEDY, CheckpointError, brief

KIND = "scoresde-codec"


@dataclass(frozen=True)
class StoredCodec:
    """A codec apart from its network: what it is made of, and its weights and buffers.

    Args:
        autoencoder: ``kind`` in the table of autoencoders, and the arguments of its constructor;
            None for a codec that only its program can build.
        data: description of the pictures it was trained on; None where nobody has said.
        adversarial: whether a discriminator shaped its pictures.
        step: updates of its training.
        tensors: its state dict, on the host.
    """

    autoencoder: Mapping[str, Any] | None
    data: DataDescription | None
    adversarial: bool
    step: int
    tensors: Mapping[str, Tensor]

    @property
    def about(self) -> dict[str, str]:
        """The description as text by name, from which ``read_about`` reads it back."""
        return {
            "autoencoder": json.dumps(self.autoencoder, sort_keys=True),
            "data": "null" if self.data is None else self.data.to_json(),
            "adversarial": json.dumps(self.adversarial),
            "step": str(self.step),
        }

    @property
    def digest(self) -> str:
        """sha256 of all that decides what the codec does."""
        about = {name: self.about[name] for name in ("autoencoder", "adversarial")}
        about["scaling"] = "" if self.data is None else str(self.data.scaling)
        return fingerprint(about, self.tensors)


def stored(codec: Codec, step: int = 0) -> StoredCodec:
    """What is stored of a codec."""
    made = None
    if codec.kind is not None and codec.arguments is not None:
        made = {"kind": codec.kind, **codec.arguments}
    tensors = {name: value.detach().cpu() for name, value in codec.state_dict().items()}
    return StoredCodec(made, codec.data, codec.adversarial, step, tensors)


def codec_digest(codec: Codec) -> str:
    """sha256 of the weights, buffers and description of a codec."""
    return stored(codec).digest


def save_codec(path: str | Path, codec: Codec, step: int = 0) -> None:
    """Write a codec as safetensors with its description and a checksum, atomically.

    Raises CheckpointError if a weight is NaN or infinite, and OSError.
    """
    found = stored(codec, step)
    write_tensors(path, KIND, found.about, found.tensors)


def read_codec(path: str | Path) -> StoredCodec:
    """Read a file of ``save_codec``. Raises CheckpointError if it is damaged or another kind."""
    path = Path(path)
    about, tensors = read_tensors(path, KIND)
    try:
        return read_about(about, tensors)
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {REMEDY}") from error


def read_about(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> StoredCodec:
    """The inverse of ``StoredCodec.about``. Raises one of ``DAMAGE`` for another text."""
    made = json.loads(about["autoencoder"])
    if made is not None and not isinstance(made["kind"], str):
        raise TypeError("an autoencoder without a kind")
    data = about["data"]
    return StoredCodec(
        made,
        None if data == "null" else DataDescription.from_json(data),
        json.loads(about["adversarial"]) is True,
        int(about["step"]),
        tensors,
    )
