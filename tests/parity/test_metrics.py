"""Against POT and torchmetrics, on the same features, to 1e-6 of the value.

    pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity

torchmetrics measures in features that a module gives it; here they are the features themselves.
"""

import warnings

import pytest
import torch
from torch import nn

from scoresde.evaluation import (
    directions,
    frechet_distance,
    kid,
    moments,
    sliced_wasserstein,
    ssim,
    wasserstein,
)

pytestmark = pytest.mark.parity


def normal(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


class Itself(nn.Module):
    """Features that are the images."""

    def __init__(self, dimensions):
        super().__init__()
        self.num_features = dimensions

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def ot():
    """POT; without it these tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("ot")


@pytest.fixture(scope="module")
def image():
    """The image metrics of torchmetrics; without it these tests are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchmetrics")
        from torchmetrics.image import fid, kid

        return fid, kid


def test_the_exact_distance_is_that_of_pot(ot):
    x, y = normal(200, 3, 0), 2 * normal(200, 3, 1) + 1
    cost = ot.dist(x.numpy(), y.numpy())
    weight = ot.unif(200)
    assert wasserstein(x, y) ** 2 == pytest.approx(ot.emd2(weight, weight, cost), rel=1e-6)


@pytest.mark.parametrize("m", [300, 170])
def test_the_sliced_distance_is_that_of_pot(ot, m):
    x, y = normal(300, 5, 0), 2 * normal(m, 5, 1) + 1
    lines = directions(40, 5, torch.Generator().manual_seed(2))
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=lines.T.numpy())
    assert sliced_wasserstein(x, y, lines) == pytest.approx(float(expected), rel=1e-6)


def test_the_frechet_distance_is_that_of_torchmetrics(image):
    x, y = normal(400, 12, 0), 2 * normal(300, 12, 1) + 1
    peer = image[0].FrechetInceptionDistance(feature=Itself(12), input_img_size=(12,))
    peer.set_dtype(torch.float64)
    peer.update(y, real=True)
    peer.update(x, real=False)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(
        float(peer.compute()), rel=1e-6
    )


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_the_kernel_distance_is_that_of_torchmetrics(image):
    x, y = normal(300, 12, 0), 2 * normal(300, 12, 1) + 1
    peer = image[1].KernelInceptionDistance(feature=Itself(12), subsets=1, subset_size=300)
    peer.update(y, real=True)
    peer.update(x, real=False)
    assert kid(x, y) == pytest.approx(float(peer.compute()[0]), rel=1e-6)


def test_the_similarity_of_pictures_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = (normal(2 * 3 * 20, 24, seed).view(2, 3, 20, 24).sigmoid() for seed in (0, 1))
    _, peer = functional.structural_similarity_index_measure(
        y, x, data_range=1.0, reduction="none", return_full_image=True
    )
    whole = peer[..., 5:-5, 5:-5]  # it pads by reflection; Wang and others take whole windows
    torch.testing.assert_close(ssim(x, y), whole.flatten(1).mean(1), rtol=1e-6, atol=1e-9)
