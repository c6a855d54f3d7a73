"""``scoresde train-autoencoder``: trains an autoencoder in a run folder and exports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.cli.console import progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.training import train
from scoresde.config import AutoencoderConfig, to_yaml
from scoresde.runs.folder import RunFolder
from scoresde.runs.processes import pick_device
from scoresde.runs.run import parameters, split_in_words
from scoresde.runs.train_autoencoder import CodecTask, prepare_codec, train_autoencoder_run
from scoresde.training.distributed import Rank


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """Train or resume the run of an autoencoder, as ``train``."""
    return train(options, overrides, AutoencoderConfig, summary, train_autoencoder_run)


def summary(config: AutoencoderConfig, rank: Rank) -> str:
    """Output of --dry-run: configuration, number of parameters, latents and batch split."""
    found = prepare_codec(
        CodecTask(config), RunFolder(Path()), pick_device("cpu"), rank, progress=progress
    )
    codec = found.state.model
    shape = tuple(found.dataset.shape)
    return (
        f"{to_yaml(config)}# {parameters(codec):,} parameters; data {found.dataset.name} {shape}, "
        f"latents {codec.latent_shape(shape)}\n# {split_in_words(found.plan)}"
    )
