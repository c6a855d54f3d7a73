"""Judging samples without knowing where they come from: classes, copies, pictures."""

from scoresde.evaluation.classifier import Classifier, fit_classifier
from scoresde.evaluation.copying import copy_rate
from scoresde.evaluation.figures import image_grid, loss_curve, save_gif, save_png, scatter

__all__ = [
    "Classifier",
    "copy_rate",
    "fit_classifier",
    "image_grid",
    "loss_curve",
    "save_gif",
    "save_png",
    "scatter",
]
