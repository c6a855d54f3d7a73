"""Levels and model units: the round trip, the Jacobian, the pictures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import Scaling
from scoresde.data.scaling import standardising

SCALINGS = [
    Scaling(2),
    Scaling(17),
    Scaling(256),
    Scaling(256, 0.0, 1.0),
    Scaling(65536),
    Scaling(256, 0.0, 256.0),
]
BELOW_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("u", [0.0, 1e-12, 0.5, 1 - 1e-9, BELOW_ONE])
def test_every_level_survives_the_round_trip(scaling, u, dtype):
    k = torch.arange(scaling.levels, dtype=torch.int32)
    x = scaling.encode(k, u, dtype)
    assert x.dtype == dtype
    assert torch.equal(scaling.decode(x).int(), k)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 70_000),
    st.floats(-100, 100),
    st.floats(0.5, 200),
    st.floats(0, 1, exclude_max=True),
)
def test_round_trip_for_any_interval(levels, low, width, u):
    scaling = Scaling(levels, low, low + width)
    k = torch.arange(0, levels, max(1, levels // 50))
    x = scaling.encode(k, u, torch.float64)
    assert torch.equal(scaling.decode(x).long(), k)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_encoding_is_affine_with_slope_step(scaling):
    k = torch.arange(scaling.levels - 1)
    x, above = (scaling.encode(k + i, 0.25, torch.float64) for i in (0, 1))
    torch.testing.assert_close(above - x, torch.full_like(x, scaling.step), rtol=1e-9, atol=0)
    assert scaling.encode(k[:1], 0.0, torch.float64).item() == scaling.low
    ends = scaling.encode(torch.tensor([0, scaling.levels - 1]), dtype=torch.float64)
    assert ends.mean().item() == pytest.approx((scaling.low + scaling.high) / 2, abs=1e-12)


def test_uniform_levels_and_noise_fill_the_interval_uniformly():
    generator = torch.Generator().manual_seed(0)
    k = torch.randint(17, (100_000,), generator=generator).to(torch.uint8)
    x = Scaling(17).encode(k, torch.rand(k.shape, generator=generator))
    assert x.min() >= -1
    assert x.max() < 1
    histogram = torch.histc(x, 10, -1, 1)
    assert (histogram - 10_000).abs().max() < 5 * 100


def test_values_outside_the_interval_are_clamped():
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0, torch.inf, -torch.inf])
    assert Scaling(17).decode(x).tolist() == [0, 0, 16, 16, 16, 0]


def test_levels_take_the_smallest_type():
    x = torch.zeros(3)
    assert Scaling(256).decode(x).dtype == torch.uint8
    assert Scaling(257).decode(x).dtype == torch.int32


def test_continuous_data_are_left_as_they_are():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Scaling(None).encode(x, 0.7), x)
    assert torch.equal(Scaling(None).decode(x), x)
    assert Scaling(None).step == 1.0


def test_pictures_span_black_to_white():
    k = torch.arange(17)
    picture = Scaling(17).to_uint8(Scaling(17).encode(k))
    assert picture.dtype == torch.uint8
    assert torch.equal(picture.double(), (k * 255 / 16).round().double())
    k = torch.arange(256)
    assert torch.equal(Scaling(256).to_uint8(Scaling(256).encode(k)).long(), k)
    assert Scaling(None).to_uint8(torch.tensor([-5.0, -1.0, 1.0, 5.0])).tolist() == [
        0,
        0,
        255,
        255,
    ]


@pytest.mark.parametrize(
    "bad", [{"levels": 1}, {"levels": 0}, {"levels": 17, "low": 1.0}, {"levels": None, "low": 2.0}]
)
def test_impossible_scalings_are_refused(bad):
    with pytest.raises(ValueError, match=r"levels|low"):
        Scaling(**bad)


# --- real numbers -----------------------------------------------------------------------------


def far(*shape, seed=0):
    """Numbers whose features or channels have means and deviations of many sizes."""
    x = torch.randn(500, *shape, generator=torch.Generator().manual_seed(seed)).double()
    size = torch.logspace(-3, 3, shape[0], dtype=torch.float64)
    ends = (-1, *(1,) * (len(shape) - 1))
    return (x * size.view(ends) + 5 * size.flip(0).view(ends)).float()


@pytest.mark.parametrize("shape", [(4,), (3, 6, 5), (2, 7), (2, 3, 4, 5)])
def test_standardised_examples_have_mean_0_and_deviation_1_in_every_feature(shape):
    x = far(*shape)
    scaling = standardising(x)
    encoded = scaling.encode(x, dtype=torch.float64).transpose(0, 1).flatten(1)
    zeros = torch.zeros(shape[0], dtype=torch.float64)
    torch.testing.assert_close(encoded.mean(1), zeros, rtol=0, atol=1e-9)
    torch.testing.assert_close(encoded.std(1, correction=0), zeros + 1, rtol=1e-9, atol=0)
    back = scaling.decode(scaling.encode(x, dtype=torch.float64)).float()
    torch.testing.assert_close(back, x, rtol=1e-6, atol=0)
    assert (scaling.low, scaling.high) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("scaling", [*SCALINGS, standardising(far(3, 4)), Scaling()], ids=str)
def test_log_volume_is_the_log_determinant_of_the_encoding(scaling):
    shape = (3, 4)
    k = torch.ones(1, *shape, dtype=torch.float64)

    def encode(x):
        if scaling.levels is None:
            return scaling.encode(x, dtype=torch.float64)
        return scaling.low + scaling.step * (x + 0.5)

    slopes = (encode(k + 1) - encode(k)).log().sum()
    assert scaling.log_volume(shape) == pytest.approx(float(slopes), rel=1e-6, abs=1e-9)


def test_a_density_keeps_its_value_in_units_of_the_data():
    """log N(y; mean, deviation) from log N(x; 0, 1) of the standardised x."""
    y = far(5)
    scaling = standardising(y)
    x = scaling.encode(y, dtype=torch.float64)
    unit = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1) + scaling.log_volume((5,))
    mean, deviation = torch.tensor([scaling.shift, scaling.scale], dtype=torch.float64)
    own = torch.distributions.Normal(mean, deviation).log_prob(y.double()).sum(1)
    torch.testing.assert_close(unit, own)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e20, -3e-30])
def test_a_constant_feature_is_only_shifted(value):
    x = torch.stack([torch.full((1000,), value), torch.randn(1000)], 1)
    scaling = standardising(x)
    assert scaling.scale[0] == 1
    assert scaling.encode(x)[:, 0].abs().max() <= 1e-6 * max(1, abs(value))


def test_a_scaling_comes_back_from_json_and_from_what_older_versions_wrote():
    for scaling in (Scaling(17), Scaling(), standardising(far(4))):
        assert Scaling(**json.loads(json.dumps(asdict(scaling)))) == scaling
    assert Scaling(**json.loads('{"levels": null, "low": -1.0, "high": 1.0}')) == Scaling()


def test_pictures_of_real_numbers_span_the_range_of_the_data():
    x = torch.linspace(5, 9, 64).view(1, 1, 8, 8)
    scaling = standardising(x)
    shades = scaling.to_uint8(scaling.encode(x)).flatten()
    assert (shades[0], shades[-1]) == (0, 255)
    assert (shades.diff() >= 0).all()


def test_very_many_examples_are_measured_at_evenly_spread_ones(monkeypatch):
    monkeypatch.setattr("scoresde.data.scaling.MEASURED", 2000)
    x = torch.arange(100_000.0).view(-1, 1)
    scaling = standardising(x)
    assert scaling.shift[0] == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert scaling.scale[0] == pytest.approx(x.double().std().item(), rel=1e-2)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"shift": (1.0,)}, "one of each"),
        ({"levels": 3, "shift": (1.0,), "scale": (1.0,)}, "of real numbers"),
        ({"shift": (0.0,), "scale": (0.0,)}, "scale > 0"),
        ({"shift": (math.nan,), "scale": (1.0,)}, "finite shift"),
    ],
)
def test_impossible_standardisations_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        Scaling(**bad)
    with pytest.raises(ValueError, match=r"examples \(3,\) do not fit a scale of 2 features"):
        Scaling(shift=(0, 0), scale=(1, 1)).encode(torch.zeros(5, 3))
