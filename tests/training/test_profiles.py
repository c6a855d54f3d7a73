"""Power-function averages against their integrals, and reconstructions against tracking."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from scoresde.data import Scaling
from scoresde.training import Checkpoint, CheckpointError, DataDescription, averages
from scoresde.training.averages import Profile
from scoresde.training.snapshots import (
    CANDIDATES,
    WITHIN,
    Snapshot,
    reachable,
    save_snapshots,
    snapshots,
    synthesised,
)


def density(profile: Profile, tau: torch.Tensor) -> torch.Tensor:
    """The profile, of integral 1 over [0, step]."""
    scale = (profile.gamma + 1) / profile.step ** (profile.gamma + 1)
    return torch.where(tau <= profile.step, scale * tau**profile.gamma, 0.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94, 16.97, 300.0])
def test_width_is_the_relative_deviation_of_the_profile_and_power_its_inverse(gamma):
    tau = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    p = density(Profile(1.0, gamma), tau) / len(tau)
    deviation = (p * (tau - (p * tau).sum()) ** 2).sum().sqrt().item()
    assert averages.width(gamma) == pytest.approx(deviation, rel=1e-5)
    assert averages.power(averages.width(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-6)


def test_the_widths_of_the_paper():
    # arXiv 2312.02696, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94.
    assert averages.power(0.05) == pytest.approx(16.97, abs=5e-3)
    assert averages.power(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, math.nan])
def test_widths_out_of_range(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel"):
        averages.power(sigma_rel)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Profile(3.0, 6.94), Profile(5.0, 16.97)),
        (Profile(5.0, 1.0), Profile(2.0, 3.0)),
        (Profile(4.0, 2.0), Profile(4.0, 2.0)),
    ],
)
def test_inner_products_are_integrals(a, b):
    n = 400_000
    tau = (torch.arange(n, dtype=torch.float64) + 0.5) * 6 / n
    integral = (density(a, tau) * density(b, tau)).sum().item() * 6 / n
    assert averages.inner(a, b) == pytest.approx(integral, rel=2e-5)
    assert averages.inner(a, b) == averages.inner(b, a)


def test_the_update_averages_over_the_profile():
    # What is left of step tau at t is the integral of the profile over [tau - 1, tau].
    gamma, steps = averages.power(0.1), 50
    left = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        left *= averages.decay(gamma, step)
        left[step] += 1 - averages.decay(gamma, step)
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (gamma + 1)
    torch.testing.assert_close(left, edges.diff(), rtol=1e-10, atol=1e-16)


def walk(widths, steps=600, every=50, dim=200):
    """Averages of a random walk by width: those at the end, and snapshots with their profiles."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(dim, 1, bias=False).double()
    kept = {width: averages.averaged(model) for width in widths}
    taken = []
    for step in range(steps):
        with torch.no_grad():
            model.weight += torch.randn(1, dim, generator=generator, dtype=torch.float64)
        for width, average in kept.items():
            averages.update(average, model, averages.decay(averages.power(width), step))
            if (step + 1) % every == 0:
                at = Profile(step + 1, averages.power(width))
                taken.append((width, at, average.weight.detach().clone()))
    return {width: a.weight.detach() for width, a in kept.items()}, taken


def test_a_width_from_snapshots_is_the_one_tracked():
    tracked, taken = walk([0.05, 0.07, 0.1, 0.13, 0.2])
    stored = [(at, value) for width, at, value in taken if width in (0.05, 0.1)]
    last = stored[-1][0].step
    for width, tolerance in ((0.07, 0.02), (0.13, 0.02), (0.2, 0.06)):
        target = Profile(last, averages.power(width))
        shares, error = averages.combination([at for at, _ in stored], target)
        made = sum(x * value for x, (_, value) in zip(shares, stored, strict=True))
        # The widths differ by far more than the reconstruction is off.
        apart = (tracked[width] - tracked[0.05]).norm()
        off = (made - tracked[width]).norm()
        assert off < tolerance * apart, width
        assert error < 0.05
    assert torch.equal(stored[-1][1], tracked[0.1])


def test_more_snapshots_come_nearer():
    target = Profile(1000.0, averages.power(0.15))
    powers = [averages.power(0.05), averages.power(0.1)]
    errors = [
        averages.combination(
            [Profile(1000 * (k + 1) / n, g) for k in range(n) for g in powers], target
        )[1]
        for n in (3, 9, 27)
    ]
    assert all(finer < coarser / 2 for coarser, finer in pairwise(errors))


def test_a_stored_profile_is_taken_as_it_is():
    stored = [Profile(k, averages.power(w)) for k in (10, 20) for w in (0.05, 0.1)]
    shares, error = averages.combination(stored, stored[3])
    assert shares.tolist() == [0, 0, 0, 1]
    assert error == 0


# --- in files ---------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A folder with three snapshots of two widths, and the averages in them."""
    generator, data = torch.Generator().manual_seed(0), DataDescription("toy", (2,), Scaling(None))
    kept = {}
    for step in (10, 20, 30):
        averages = {
            name: {"w": torch.randn(3, generator=generator), "n": torch.tensor(step)}
            for name in ("0.05", "0.1")
        }
        kept[step] = averages
        save_snapshots(tmp_path, Checkpoint({}, data, step, {}, {}, {}, averages=averages))
    return tmp_path, kept


def test_the_last_snapshot_comes_back_exactly_with_its_buffers(stored):
    folder, kept = stored
    found = snapshots(folder)
    assert [(s.step, s.sigma_rel) for s in found] == [
        (step, width) for step in (10, 20, 30) for width in (0.05, 0.1)
    ]
    for name in ("0.05", "0.1"):
        made = synthesised(found, float(name), ["w"])
        assert torch.equal(made.weights.tensors["w"], kept[30][name]["w"])
        assert made.files == 1
    made = synthesised(found, 0.07, ["w"])
    assert (made.files, int(made.weights.tensors["n"]), made.weights.step) == (6, 30, 30)
    shares, _ = averages.combination([s.profile for s in found], Profile(30, averages.power(0.07)))
    values = [kept[s.step][f"{s.sigma_rel:g}"]["w"].double() for s in found]
    expected = sum(x * v for x, v in zip(shares, values, strict=True)).float()
    torch.testing.assert_close(made.weights.tensors["w"], expected)


def test_damaged_and_missing_snapshots_are_named(stored):
    folder, _ = stored
    with pytest.raises(CheckpointError, match=r"train\.posthoc"):
        synthesised([], 0.07, ["w"])
    other = replace(
        Checkpoint({}, DataDescription("toy", (2,), Scaling(None)), 20, {}, {}, {}),
        averages={"0.05": {"w": torch.zeros(4)}},
    )
    save_snapshots(folder, other)
    with pytest.raises(CheckpointError, match=r"step-00000020-width-0\.05.*another network"):
        synthesised(snapshots(folder), 0.07, ["w"])
    file = snapshots(folder)[0].path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=file.name):
        synthesised(snapshots(folder), 0.07, ["w"])


def test_the_widths_that_can_be_had_are_those_that_are_near():
    found = [Snapshot(step, width, Path()) for step in range(10, 101, 10) for width in (0.05, 0.1)]
    ranges = reachable(found)
    assert any(low <= 0.05 and high >= 0.1 for low, high in ranges)
    for width in CANDIDATES:
        target = averages.Profile(100, averages.power(width))
        error = averages.combination([s.profile for s in found], target)[1]
        assert any(low <= width <= high for low, high in ranges) == (error <= WITHIN)
    assert reachable([]) == []
