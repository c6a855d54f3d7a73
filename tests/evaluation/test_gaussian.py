"""The Frechet distance: closed forms, invariances, scipy, and files of other tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde.evaluation import Moments, frechet_distance, load_moments, moments, save_moments


def normal(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def rotation(d, seed=9):
    return torch.linalg.qr(normal(d, d, seed)).Q


def covariance(d, rank, seed=0):
    factor = normal(d, rank, seed)
    return factor @ factor.T


def test_commuting_gaussians_in_closed_form():
    """|m|^2 + sum (s_a - s_b)^2 in a common basis."""
    q, a, b = rotation(5), torch.arange(5.0).double(), torch.tensor([2.0, 0, 3, 1, 5]).double()
    mean = normal(2, 5, 1)
    pair = (Moments(m, q * s.square() @ q.T) for m, s in zip(mean, (a, b), strict=True))
    found = frechet_distance(*pair)
    expected = (mean[0] - mean[1]).square().sum() + (a - b).square().sum()
    assert found == pytest.approx(float(expected), abs=1e-10)


def test_two_dimensions_in_closed_form():
    """tr (S_a S_b)^1/2 = sqrt(tr S_a S_b + 2 sqrt(det S_a S_b)) for 2 x 2 matrices."""
    a, b = covariance(2, 2, 1), covariance(2, 2, 2)
    product = a @ b
    common = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = a.trace() + b.trace() - 2 * common
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet_distance(Moments(zero, a), Moments(zero, b)) == pytest.approx(float(expected))


def test_no_distance_to_itself_and_symmetry():
    a, b = moments(normal(50, 20)), moments(2 * normal(30, 20, 1) + 1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_rotations_and_shifts_change_nothing():
    x, y, q = normal(80, 12), 2 * normal(60, 12, 1) + 0.5, rotation(12)
    before = frechet_distance(moments(x), moments(y))
    after = frechet_distance(moments(x @ q + 7), moments(y @ q + 7))
    assert after == pytest.approx(before, rel=1e-10)


@pytest.mark.parametrize(("ranks", "d"), [((30, 30), 30), ((10, 30), 30), ((7, 12), 40)])
def test_it_agrees_with_the_root_of_scipy(ranks, d):
    """Singular ones are nudged for scipy, whose root of them is not reliable."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (covariance(d, rank, seed) for seed, rank in enumerate(ranks))
    zero = torch.zeros(d, dtype=torch.float64)
    nudge = 0 if min(ranks) == d else 1e-16
    root = linalg.sqrtm((a @ b).numpy() + nudge * np.eye(d))
    expected = float(a.trace() + b.trace()) - 2 * np.trace(root).real
    assert frechet_distance(Moments(zero, a), Moments(zero, b)) == pytest.approx(
        expected, rel=1e-6
    )


def test_fewer_features_than_dimensions():
    """Two sets on lines at an angle: S = v v^T, so tr (S_a S_b)^1/2 = |v_a . v_b|."""
    u, v = normal(2, 50, 3)
    zero = torch.zeros(50, dtype=torch.float64)
    a, b = (Moments(zero, torch.outer(w, w)) for w in (u, v))
    expected = u @ u + v @ v - 2 * (u @ v).abs()
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-9)


def test_moments_are_those_of_numpy():
    x = normal(40, 6).numpy()
    found = moments(torch.from_numpy(x))
    assert np.allclose(found.mean, x.mean(0))
    assert np.allclose(found.covariance, np.cov(x, rowvar=False))


def test_statistics_come_back_and_other_tools_can_read_them(tmp_path):
    found = moments(normal(9, 4), "pixels")
    save_moments(tmp_path / "a.npz", found)
    again = load_moments(tmp_path / "a.npz")
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.covariance, found.covariance)
    assert again.features == "pixels"
    with np.load(tmp_path / "a.npz") as plain:
        assert plain["mu"].shape == (4,)
        assert plain["sigma"].shape == (4, 4)


def test_statistics_of_other_tools(tmp_path):
    np.savez(tmp_path / "b.npz", mu=np.zeros(3, "f4"), sigma=np.eye(3, dtype="f4"))
    found = load_moments(tmp_path / "b.npz")
    assert found.features is None
    assert found.mean.dtype == torch.float64


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(4)},
        {"mu": np.full(2, np.nan), "sigma": np.eye(2)},
        {"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [-0.5, 1.0]])},
        {"mu": np.array([None, None]), "sigma": np.eye(2)},
    ],
)
def test_statistics_that_are_none(tmp_path, arrays):
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(ValueError, match=r"c\.npz: no statistics \("):
        load_moments(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"d\.npz: no statistics"):
        load_moments(tmp_path / "d.npz")
    with pytest.raises(ValueError, match="no such file"):
        load_moments(tmp_path / "e.npz")


def test_moments_that_do_not_fit():
    with pytest.raises(ValueError, match="at least 2"):
        moments(normal(1, 3))
    with pytest.raises(ValueError, match="4 and 5 features"):
        frechet_distance(moments(normal(9, 4)), moments(normal(9, 5)))
