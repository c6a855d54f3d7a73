"""Training: one loss (``losses``), laws of time (``times``), the loop, its average, its files."""

from scoresde.training.checkpoint import (
    Best,
    Checkpoint,
    DataDescription,
    Weights,
    describe,
    export_weights,
    load_weights,
)
from scoresde.training.files import CheckpointError
from scoresde.training.loop import (
    Metrics,
    Plan,
    TrainingError,
    TrainState,
    cosine,
    fit,
    held_out_loss,
    inverse_sqrt,
    start,
    warmup,
)
from scoresde.training.losses import dsm_loss

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
