"""Levels and model units: the round trip, the Jacobian, the pictures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import Scaling

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
