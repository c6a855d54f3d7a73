"""Ranks, coverage and scores: their exact laws, and draws that are wrong in known ways."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.evaluation.calibration import (
    LEVELS,
    Calibration,
    fair_crps,
    fair_energy,
    fractional_ranks,
    linear_quantities,
    proportion,
)

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trial(k=1000, draws=19, scale=1.0, shift=0.0, seed=0):
    """Truths N(m, 1) of two quantities, and draws of N(m + shift, scale^2)."""
    source = generator(seed)
    truth = torch.randn(k, 2, generator=source, dtype=F64)
    x = shift + scale * torch.randn(draws, k, 2, generator=source, dtype=F64)
    ranks = fractional_ranks(x, truth, source)
    crps = fair_crps(x, truth).mean(1)
    return Calibration(ranks, ("a", "b"), draws, k, crps, crps)


def test_exact_draws_have_uniform_ranks_and_nominal_coverage():
    found = trial()
    assert found.bins == 20
    assert found.histograms.sum(1).tolist() == [1000, 1000]
    assert found.p_value > 0.01
    for level in LEVELS:
        covered = found.coverage(level)
        assert abs(covered.value - level) < 4 * covered.error
        one = found.coverage(level, "b")
        assert one.error == pytest.approx(math.sqrt(level * (1 - level) / 1000), rel=0.15)


@pytest.mark.parametrize("draws", [2, 5, 40])
def test_the_p_value_is_uniform_for_any_number_of_draws(draws):
    p = torch.cat([trial(200, draws, seed=seed).p_values for seed in range(100)])
    assert float(p.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 200))
    assert float((p < 0.1).double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 200))


def test_wide_narrow_and_shifted_draws_are_told_apart():
    wide, narrow, shifted = trial(scale=2), trial(scale=0.5), trial(shift=1)
    for found in (wide, narrow, shifted):
        assert found.p_value < 1e-6
    # P(|truth| < 1.645 * scale), less or more by finitely many draws
    assert wide.coverage(0.9).value > 0.97
    assert narrow.coverage(0.9).value < 0.65
    ends = [found.histograms[:, [0, -1]].double().mean() / 50 for found in (wide, narrow)]
    assert ends[0] < 0.5
    assert ends[1] > 2
    rows = shifted.record()["quantities"]
    assert rows["a"]["mean_rank"] < 0.35


def test_ties_leave_ranks_uniform():
    """A law of three levels: most draws equal the truth."""
    source = generator()
    levels = torch.randint(3, (11, 4000), generator=source)
    u = fractional_ranks(levels[1:], levels[0], source)[:, None]
    found = Calibration(u, ("x",), 10, 4000, u[:, 0], u[:, 0])
    assert found.p_value > 0.01
    assert float(u.min()) > 0
    assert float(u.max()) < 1


def test_the_crps_of_a_gaussian_is_its_closed_form():
    """CRPS(N(0, 1), z) = z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = torch.tensor([-1.3, 0.0, 0.4, 2.0], dtype=F64)
    exact = z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi)
    x = torch.randn(60_000, 1, generator=generator(), dtype=F64)
    torch.testing.assert_close(fair_crps(x, z), exact, rtol=0, atol=0.01)


@pytest.mark.parametrize("draws", [2, 3, 10])
def test_fair_scores_do_not_depend_on_the_number_of_draws(draws):
    """E |x - z| - E |x - x'| / 2 = 1 / sqrt(pi) for three standard normals."""
    n = 40_000
    x = torch.randn(draws + 1, n, generator=generator(draws), dtype=F64)
    found = fair_crps(x[1:], x[0])
    assert abs(float(found.mean()) - 1 / math.sqrt(math.pi)) < 4 * float(found.std()) / n**0.5
    plane = torch.randn(2000, draws + 1, 2, generator=generator(draws), dtype=F64)
    energy = torch.stack([fair_energy(each[1:], each[0]) for each in plane])
    # E |z - z'| / 2 in the plane is sqrt(pi) / 2
    assert abs(float(energy.mean()) - math.sqrt(math.pi) / 2) < 4 * float(energy.std()) / 2000**0.5


def test_fair_scores_are_the_double_sum():
    x = torch.randn(7, 3, generator=generator(), dtype=F64)
    truth = torch.zeros(3, dtype=F64)
    pairs = (x[:, None] - x[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    torch.testing.assert_close(fair_crps(x, truth), x.abs().mean(0) - pairs)
    assert float(fair_energy(x[:, :1], truth[:1])) == pytest.approx(float(fair_crps(x, truth)[0]))
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        fair_crps(x[:1], truth)


def test_the_error_of_a_proportion_counts_examples_and_not_their_copies():
    hits = torch.rand(500, 1, generator=generator()) < 0.9
    one, copied = proportion(hits), proportion(hits.expand(-1, 10))
    assert copied.value == pytest.approx(one.value)
    assert copied.error == pytest.approx(one.error, rel=0.01)
    every = torch.rand(500, 10, generator=generator()) < 0.9
    assert proportion(every).error == pytest.approx(one.error / math.sqrt(10), rel=0.2)
    assert proportion(torch.ones(50, 1, dtype=torch.bool)).error > 0


def test_the_error_of_the_skill_is_its_spread():
    found = []
    for seed in range(200):
        c = torch.rand(50, generator=generator(seed), dtype=F64) + 0.5
        u = c[:, None] - 0.5
        prior = 2 * c + torch.rand(50, generator=generator(seed + 999), dtype=F64)
        found.append(Calibration(u, ("x",), 5, 50, c, c, prior_crps=prior).rows["skill"])
    spread = float(torch.tensor([row.value for row in found]).std())
    assert sum(row.error for row in found) / 200 == pytest.approx(spread, rel=0.15)


def test_the_quantities_are_hidden_coordinates_directions_and_the_mean():
    hidden = torch.zeros(1, 4, 5, dtype=torch.bool)
    hidden[0, 3, 2:] = True
    names, weights = linear_quantities((1, 4, 5), hidden)
    assert names[:3] == ("x[0,3,2]", "x[0,3,3]", "x[0,3,4]")
    assert names[-1] == "mean"
    x = torch.arange(20, dtype=F64)
    assert (weights[:3] @ x).tolist() == [17, 18, 19]
    assert float(weights[-1] @ x) == pytest.approx(9.5)
    torch.testing.assert_close(weights[3:-1].norm(dim=1), torch.ones(4, dtype=F64))
    assert linear_quantities((1,))[0] == ("x[0]",)
    names, weights = linear_quantities((100,))
    assert len(names) == len(set(names)) == len(weights) == 12


def test_few_examples_have_no_p_value_and_the_record_no_nan():
    found = trial(6)
    assert math.isnan(found.p_value)
    record = found.record()
    assert record["rows"]["p_value"]["value"] is None
    assert record["quantities"]["a"]["p_value"] is None
    assert sum(record["quantities"]["a"]["histogram"]) == 6


def test_the_plot_is_a_picture(tmp_path):
    from PIL import Image

    trial(100).plot(tmp_path / "calibration.png", "two quantities")
    with Image.open(tmp_path / "calibration.png") as image:
        assert min(image.size) > 400
