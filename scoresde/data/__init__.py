"""Data sets as tensors of pixel levels or real numbers, each with its scaling."""

from scoresde.data.arrays import arrays
from scoresde.data.dataset import DataError, Dataset, Split, batch_indices, holdout
from scoresde.data.digits import digits
from scoresde.data.examples import examples
from scoresde.data.idx import idx_folder
from scoresde.data.images import cifar_subset, image_folder
from scoresde.data.scaling import Scaling
from scoresde.data.toys import checkerboard, gaussians25, moons, swiss_roll

__all__ = [
    "DataError",
    "Dataset",
    "Scaling",
    "Split",
    "arrays",
    "batch_indices",
    "checkerboard",
    "cifar_subset",
    "digits",
    "examples",
    "gaussians25",
    "holdout",
    "idx_folder",
    "image_folder",
    "moons",
    "swiss_roll",
]
