"""Training: the loss (``losses``), laws of time (``times``), batches, the loop, checkpoints."""

from scoresde.training import losses, times
from scoresde.training.checkpoint import (
    Best,
    Checkpoint,
    DataDescription,
    Embedded,
    Weights,
    describe,
    export_weights,
    load_weights,
)
from scoresde.training.held_out import held_out_loss
from scoresde.training.loop import Metrics, TrainingError, fit
from scoresde.training.losses import dsm_loss
from scoresde.training.plan import Plan, Reporting
from scoresde.training.safe_files import CheckpointError
from scoresde.training.state import TrainState

__all__ = [
    "Best",
    "Checkpoint",
    "CheckpointError",
    "DataDescription",
    "Embedded",
    "Metrics",
    "Plan",
    "Reporting",
    "TrainState",
    "TrainingError",
    "Weights",
    "describe",
    "dsm_loss",
    "export_weights",
    "fit",
    "held_out_loss",
    "load_weights",
    "losses",
    "times",
]
