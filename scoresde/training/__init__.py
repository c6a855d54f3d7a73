"""Training: one loss (``losses``), laws of time (``times``), batches, the loop, its files."""

from scoresde.training.checkpoint import (
    Best,
    Checkpoint,
    DataDescription,
    Weights,
    describe,
    export_weights,
    load_weights,
)
from scoresde.training.held_out import held_out_loss
from scoresde.training.loop import Metrics, TrainingError, fit
from scoresde.training.losses import dsm_loss
from scoresde.training.plan import Plan
from scoresde.training.safe_files import CheckpointError
from scoresde.training.schedules import cosine, inverse_sqrt, warmup
from scoresde.training.state import TrainState, start

__all__ = [
    "Best",
    "Checkpoint",
    "CheckpointError",
    "DataDescription",
    "Metrics",
    "Plan",
    "TrainState",
    "TrainingError",
    "Weights",
    "cosine",
    "describe",
    "dsm_loss",
    "export_weights",
    "fit",
    "held_out_loss",
    "inverse_sqrt",
    "load_weights",
    "start",
    "warmup",
]
