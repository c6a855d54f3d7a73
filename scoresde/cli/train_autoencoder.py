"""``scoresde train-autoencoder``: trains an autoencoder in a run folder and exports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.cli.console import progress
from scoresde.cli.options import TrainOptions
from scoresde.cli.report import Report
from scoresde.config import AutoencoderConfig, load_config, override, to_yaml
from scoresde.runs.folder import RunFolder
from scoresde.runs.processes import World, backend_of, jointly, pick_device, rank_of, together
from scoresde.runs.run import parameters, split_in_words
from scoresde.runs.stopping import Stopping
from scoresde.runs.train_autoencoder import CodecTask, prepare_codec, train_autoencoder_run
from scoresde.runs.train_resume import stored_config


def run(options: TrainOptions, overrides: Mapping[str, Any]) -> int:
    """Train or resume a run; with --dry-run, only print a summary.

    On SIGINT or SIGTERM, saves a checkpoint and raises SystemExit with code 130 or 143.
    """
    world = World.found()
    if options.dry_run:
        text = summary(_config(options, overrides), world)
        if world.rank == 0:
            print(text)
        return 0
    if options.out is None:
        raise ValueError("--out is missing; name the run folder to write, such as --out runs/demo")
    with together(world, backend_of(options.device)), Stopping() as stopping:
        stopped = train_autoencoder_run(
            jointly(world, lambda: _config(options, overrides)),
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            world=world,
            listener=Report(),
            progress=progress,
            stop=stopping.number,
        )
    if stopped:
        raise SystemExit(128 + stopped)
    return 0


def summary(config: AutoencoderConfig, world: World) -> str:
    """Output of --dry-run: configuration, number of parameters, latents and batch split."""
    found = prepare_codec(
        CodecTask(config), RunFolder(Path()), pick_device("cpu"), rank_of(world), progress=progress
    )
    codec = found.state.model
    shape = tuple(found.dataset.shape)
    return (
        f"{to_yaml(config)}# {parameters(codec):,} parameters; data {found.dataset.name} {shape}, "
        f"latents {codec.latent_shape(shape)}\n# {split_in_words(found.plan)}"
    )


def _config(options: TrainOptions, overrides: Mapping[str, Any]) -> AutoencoderConfig:
    """Configuration of --config, or of the run to resume, with the overrides applied."""
    if options.config is None and options.resume and options.out is not None:
        return override(stored_config(options.out, AutoencoderConfig), overrides)
    return load_config(options.config, overrides, AutoencoderConfig)
