"""Evaluation of samples: distances to real data, classifiers, copies, and figures."""

from scoresde.evaluation.attributes import Accuracy, Judge, attribute_judge, halves_judge
from scoresde.evaluation.calibration import (
    Calibration,
    fair_crps,
    fair_energy,
    fractional_ranks,
)
from scoresde.evaluation.classifier import Classifier, fit_classifier
from scoresde.evaluation.copying import copies, copy_rate, nearest
from scoresde.evaluation.features import (
    Extractor,
    classifier_features,
    lite0_features,
    raw_features,
    torchscript_features,
)
from scoresde.evaluation.figures import (
    captioned,
    image_grid,
    loss_curve,
    neighbour_grid,
    sample_grid,
    save_film,
    save_gif,
    save_png,
    scatter,
)
from scoresde.evaluation.gaussian import (
    Moments,
    frechet_distance,
    load_moments,
    moments,
    save_moments,
)
from scoresde.evaluation.kernels import gaussian_mmd2, kid, kid_blocks, mmd2
from scoresde.evaluation.neighbours import coverage, density, precision, recall
from scoresde.evaluation.reconstruction import frechet_of_patches, psnr, ssim
from scoresde.evaluation.resampling import Estimate, by_halves, share
from scoresde.evaluation.transport import directions, sliced_wasserstein, wasserstein
from scoresde.evaluation.two_sample import two_sample_test

__all__ = [
    "Accuracy",
    "Calibration",
    "Classifier",
    "Estimate",
    "Extractor",
    "Judge",
    "Moments",
    "attribute_judge",
    "by_halves",
    "captioned",
    "classifier_features",
    "copies",
    "copy_rate",
    "coverage",
    "density",
    "directions",
    "fair_crps",
    "fair_energy",
    "fit_classifier",
    "fractional_ranks",
    "frechet_distance",
    "frechet_of_patches",
    "gaussian_mmd2",
    "halves_judge",
    "image_grid",
    "kid",
    "kid_blocks",
    "lite0_features",
    "load_moments",
    "loss_curve",
    "mmd2",
    "moments",
    "nearest",
    "neighbour_grid",
    "precision",
    "psnr",
    "raw_features",
    "recall",
    "sample_grid",
    "save_film",
    "save_gif",
    "save_moments",
    "save_png",
    "scatter",
    "share",
    "sliced_wasserstein",
    "ssim",
    "torchscript_features",
    "two_sample_test",
    "wasserstein",
]
