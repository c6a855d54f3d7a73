"""Data sets as tensors of pixel levels or real numbers, each with its scaling."""

from scoresde.data.arrays import arrays
from scoresde.data.avatars import avatars
from scoresde.data.columns import Captions, Column
from scoresde.data.dataset import DataError, Dataset, Examples, Split, View, holdout, views
from scoresde.data.digit_pairs import digit_pairs
from scoresde.data.digits import digits
from scoresde.data.emoji import emoji
from scoresde.data.foreign import examples
from scoresde.data.idx import idx_folder
from scoresde.data.images import cifar_subset, image_folder
from scoresde.data.scaling import Scaling
from scoresde.data.shuffle import batch_indices
from scoresde.data.sources import dataset_of, kind_at
from scoresde.data.toys import checkerboard, gaussians25, moons, swiss_roll

__all__ = [
    "Captions",
    "Column",
    "DataError",
    "Dataset",
    "Examples",
    "Scaling",
    "Split",
    "View",
    "arrays",
    "avatars",
    "batch_indices",
    "checkerboard",
    "cifar_subset",
    "dataset_of",
    "digit_pairs",
    "digits",
    "emoji",
    "examples",
    "gaussians25",
    "holdout",
    "idx_folder",
    "image_folder",
    "kind_at",
    "moons",
    "swiss_roll",
    "views",
]
