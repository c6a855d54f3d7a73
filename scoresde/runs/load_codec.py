"""Loads codecs from run folders, checkpoints and codec files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from scoresde.config import AutoencoderConfig, build_codec, config_from
from scoresde.latent import Codec
from scoresde.latent.files import StoredCodec, read_about, read_codec
from scoresde.runs.folder import RunFolder
from scoresde.training import checkpoint as checkpoints
from scoresde.training.checkpoint import Checkpoint, CheckpointError, load_tensors

KIND = checkpoints.KINDS["autoencoder"]


def load_codec(path: str | PathLike[str], codec: Codec | None = None) -> Codec:
    """Load a codec from a run folder of ``train_autoencoder``, its checkpoint, or a codec file.

    A run folder provides what is newer, its codec file or its newest intact checkpoint; that of a
    model of latents provides the codec of the model. The averaged weights are copied into
    ``codec``, which is returned. Without it one is built from the description in the file. The
    codec is in evaluation mode, and its weights have no gradients. Nothing is unpickled. Raises
    ValueError, naming the file, if it is missing, damaged, no codec, or does not fit ``codec``.
    """
    if codec is not None and not isinstance(codec, Codec):
        raise ValueError(f"codec: need a Codec, got {type(codec).__name__}")
    file = Path(path).expanduser()
    if file.is_dir():
        folder = RunFolder(file)
        if folder.is_run() and folder.trains == "model" and (kept := kept_codec(folder)):
            return codec_of(kept[1], kept[0], codec)
        folder.require("autoencoder")
        files = checkpoints.step_files(folder.checkpoints)
        if folder.codec.exists():
            exported = read_codec(folder.codec)
            if not files or checkpoints.step_of(files[0]) <= exported.step:
                return codec_of(exported, folder.codec, codec)
        inside = file if checkpoints.step_files(file) else folder.checkpoints
        if not inside.exists():
            raise CheckpointError(
                f"{file}: holds no codec; give a run folder of train-autoencoder or its "
                "codec.safetensors (that of a pipeline of diffusers is ss.load(path).codec)"
            )
        file, found, _ = checkpoints.newest(inside, KIND)
        return codec_of(stored_in(found), file, codec)
    if file.suffix == ".pt":
        return codec_of(stored_in(checkpoints.load(file, kind=KIND)), file, codec)
    return codec_of(read_codec(file), file, codec)


def kept_codec(folder: RunFolder) -> tuple[Path, StoredCodec] | None:
    """The newest checkpoint of the run of a model of latents, and the codec in it; else None."""
    if not checkpoints.step_files(folder.checkpoints):
        return None
    path, found, _ = checkpoints.newest(folder.checkpoints)
    kept = found.codec
    return None if kept is None else (path, read_about(kept.about, kept.tensors))


def codec_of(found: StoredCodec, source: str | Path, codec: Codec | None = None) -> Codec:
    """The codec that was stored, in evaluation mode and without gradients.

    Raises ValueError, naming the source, if it cannot be built or does not fit ``codec``.
    """
    if codec is None:
        if found.autoencoder is None:
            raise CheckpointError(
                f"{source}: holds the weights of a codec that a program made, which no "
                "configuration describes; give the codec, such as ss.load_codec(path, codec=mine)"
            )
        given = dict(found.autoencoder)
        channels = given.pop("channels", None)
        if not isinstance(channels, int) or not 0 < channels < 2**16:
            raise CheckpointError(f"{source}: damaged (channels={channels!r})")
        section = config_from({"autoencoder": given}, source, AutoencoderConfig).autoencoder
        codec = build_codec(section, channels)
    load_tensors(codec, found.tensors, source)
    codec.data, codec.adversarial = found.data, found.adversarial or codec.adversarial
    return codec.eval().requires_grad_(False)


def stored_in(found: Checkpoint) -> StoredCodec:
    """The codec of a checkpoint, with averaged weights."""
    config = found.config
    made = None
    if not config["own"]:
        made = {**config["autoencoder"], "channels": found.data.shape[0]}
    return StoredCodec(made, found.data, found.adversarial, found.step, found.ema)
