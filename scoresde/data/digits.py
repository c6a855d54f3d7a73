"""The default data set: the handwritten digits of scikit-learn, 8 x 8 pixels of 17 levels."""

from __future__ import annotations

import numpy as np
import torch

from scoresde.data.dataset import DataError, Dataset, Split
from scoresde.data.scaling import Scaling

TEST = 360


def digits() -> Dataset:
    """1797 digits (1, 8, 8), levels 0 .. 16, ten classes: 1437 for training, 360 for testing.

    The test images are the first 360 of ``RandomState(0).permutation(1797)``, which numpy keeps
    stable; scikit-learn's ``train_test_split(test_size=360, random_state=0)`` is the same. Raises
    DataError if scikit-learn is missing. Source: UCI "Optical Recognition of Handwritten Digits".
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        message = (
            "the digits come with scikit-learn, which is missing; pip install 'scoresde[digits]'"
        )
        raise DataError(message) from None
    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    every = Split(x, torch.from_numpy(bunch.target.astype(np.int64)))
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(every)))
    train, test = every.take(order[TEST:]), every.take(order[:TEST])
    return Dataset("digits", train, test, Scaling(17), tuple("0123456789"))
