"""Distances between pictures and their originals, against their definitions."""

import math

import pytest
import torch

from scoresde.evaluation import frechet_of_patches, psnr, ssim


def pictures(n: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, side, side, generator=generator, dtype=torch.float64)


def test_a_constant_error_has_its_decibels_by_picture():
    x = pictures() * 0.5
    by = torch.tensor([0.1, 0.01, 0.3], dtype=torch.float64)
    expected = [-20 * math.log10(e) for e in by.tolist()]
    assert psnr(x, x + by.view(-1, 1, 1, 1)).tolist() == pytest.approx(expected)
    assert psnr(x, x).tolist() == [100.0] * 3


def test_the_similarity_is_that_of_the_definition_at_one_window():
    """A picture of the size of the window has one value, here from the weights in plain sums."""
    x, y = pictures(1, 11), pictures(1, 11, 1)
    place = torch.arange(11, dtype=torch.float64) - 5
    w = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    w = w / w.sum()
    total = 0.0
    for a, b in zip(x[0], y[0], strict=True):
        ma, mb = float((w * a).sum()), float((w * b).sum())
        va, vb = float((w * (a - ma) ** 2).sum()), float((w * (b - mb) ** 2).sum())
        cov = float((w * (a - ma) * (b - mb)).sum())
        top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
        total += top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert float(ssim(x, y)) == pytest.approx(total / 3, rel=1e-9)


def test_the_similarity_is_one_of_equals_symmetric_and_local():
    x, y = pictures(), pictures(seed=1)
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert bool((ssim(x, y) < ssim(x, (x + y) / 2)).all())
    with pytest.raises(ValueError, match="10 x 10 pixels are smaller than the window"):
        ssim(x[..., :10, :10], y[..., :10, :10])


def test_the_distance_of_patches_sees_a_shift_of_the_mean_exactly_and_blur_as_well():
    x = pictures(200)
    shifted = frechet_of_patches(x, x + 0.1)
    assert shifted == pytest.approx(3 * 64 * 0.1**2, rel=1e-6)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert frechet_of_patches(x, x) < 1e-9 < 1e-2 < frechet_of_patches(x, blurred)
