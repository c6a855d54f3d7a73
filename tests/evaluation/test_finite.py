"""Every metric refuses NaN and infinity, with their number."""

import math

import pytest
import torch

from scoresde.evaluation import (
    copy_rate,
    coverage,
    density,
    directions,
    fit_classifier,
    gaussian_mmd2,
    kid,
    kid_blocks,
    mmd2,
    moments,
    nearest,
    precision,
    raw_features,
    recall,
    sliced_wasserstein,
    two_sample_test,
    wasserstein,
)
from scoresde.evaluation.kernels import cubic
from scoresde.evaluation.metrics import METRICS, Sets, rows

LINES = directions(8, 3, torch.Generator().manual_seed(0))
OF_TWO = {
    "precision": precision,
    "recall": recall,
    "density": density,
    "coverage": coverage,
    "kid": kid,
    "kid_blocks": lambda x, y: kid_blocks(x, y, 8),
    "gaussian_mmd2": gaussian_mmd2,
    "mmd2": lambda x, y: mmd2(x, y, cubic),
    "wasserstein": wasserstein,
    "sliced_wasserstein": lambda x, y: sliced_wasserstein(x, y, LINES),
    "two_sample_test": lambda x, y: two_sample_test(x, y, torch.Generator().manual_seed(0)),
    "copy_rate": copy_rate,
    "nearest": nearest,
}
POISON = [math.nan, math.inf, -math.inf]


def points(seed: int) -> torch.Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OF_TWO)
@pytest.mark.parametrize("poison", POISON)
def test_one_number_in_either_set_is_found(name, poison):
    metric, clean, bad = OF_TWO[name], points(0), points(1)
    metric(clean, bad)
    bad[[3, 17], 1] = poison
    bad[3, 2] = poison
    for pair in ((bad, clean), (clean, bad)):
        with pytest.raises(ValueError, match=r"^2 of 40 .* are not finite"):
            metric(*pair)


def test_the_spoilt_set_is_named():
    clean, bad = points(0), points(1)
    bad[0, 0] = math.nan
    for metric in (precision, recall, two_sample_test):
        more = (torch.Generator(),) if metric is two_sample_test else ()
        with pytest.raises(ValueError, match="1 of 40 samples are"):
            metric(bad, clean, *more)
        with pytest.raises(ValueError, match="1 of 40 references are"):
            metric(clean, bad, *more)


@pytest.mark.parametrize("name", METRICS)
def test_no_row_of_a_report_hides_it(name):
    clean, bad = points(0), points(1)
    bad[5] = math.nan
    for sets in (Sets(bad, clean), Sets(clean, bad), Sets(clean, clean, bad)):
        with pytest.raises(ValueError, match=r"1 of 40 .* not finite"):
            list(rows([name], sets, sets, resamples=0))


def test_features_of_spoilt_data():
    bad, images = points(0), torch.rand(12, 1, 8, 8)
    judge = fit_classifier(images, torch.arange(12) % 2, 2, steps=1, batch=4)
    bad[1, 1], spoilt = math.inf, images.clone()
    spoilt[4:6] = math.nan
    for of, expected in (
        (lambda: moments(bad), "1 of 40"),
        (lambda: raw_features(bad, "data"), "1 of 40"),
        (lambda: judge.predict(spoilt), "2 of 12"),
        (lambda: judge.features(spoilt), "2 of 12"),
        (lambda: fit_classifier(spoilt, torch.arange(12) % 2, 2, steps=1), "2 of 12"),
    ):
        with pytest.raises(ValueError, match=f"^{expected} .* are not finite"):
            of()
