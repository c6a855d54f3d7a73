"""The features of the noise level."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde.nn import Conditioning, gaussian_fourier, sinusoidal

BUILDERS = [sinusoidal, gaussian_fourier]
each = pytest.mark.parametrize("build", BUILDERS)


@each
def test_features_are_sines_and_cosines_of_unit_size(build):
    c = torch.linspace(-3, 3, 301, dtype=torch.float64)
    features = build(64).double()(c)
    assert features.shape == (301, 64)
    sines, cosines = features.chunk(2, dim=1)
    assert torch.allclose(sines**2 + cosines**2, torch.ones_like(sines))
    assert torch.allclose(sines, -sines.flip(0))
    assert torch.allclose(cosines, cosines.flip(0))


@each
def test_features_tell_one_percent_of_noise_apart_and_far_levels_more(build):
    c = torch.linspace(-3, 3, 61, dtype=torch.float64)
    embed = build(64).double()
    near = (embed(c + math.log(1.01) / 4) - embed(c)).norm(dim=1)
    assert near.min() > 0.05
    distance = torch.cdist(embed(c), embed(c)) + 100 * torch.eye(61)
    assert distance.min() > 10 * near.max()


@each
def test_frequencies_are_saved_and_not_trained(build):
    embed = build(8)
    assert list(embed.state_dict()) == ["frequencies"]
    assert not list(embed.parameters())


def test_random_frequencies_have_their_scale_and_seed_and_leave_the_global_stream_alone():
    before = torch.random.get_rng_state()
    frequencies = gaussian_fourier(20000, scale=3.0, seed=1).frequencies
    assert torch.equal(torch.random.get_rng_state(), before)
    assert abs(frequencies.std() / (2 * math.pi * 3) - 1) < 0.03
    assert torch.equal(frequencies, gaussian_fourier(20000, scale=3.0, seed=1).frequencies)
    assert not torch.equal(frequencies, gaussian_fourier(20000, scale=3.0, seed=2).frequencies)


@each
@pytest.mark.parametrize("width", [0, 7, -2])
def test_a_width_that_is_not_even_and_positive_is_an_error(build, width):
    with pytest.raises(ValueError, match="even"):
        build(width)


def test_no_augmentation_is_one_of_zeros_and_others_are_told_apart():
    condition = Conditioning(8, 16, augments=3).double()
    noise = torch.linspace(-1, 1, 5, dtype=torch.float64)
    zeros = torch.zeros(5, 3, dtype=torch.float64)
    assert torch.equal(condition(noise), condition(noise, augment=zeros))
    assert not torch.allclose(condition(noise), condition(noise, augment=zeros + 1))


def test_an_augmentation_that_the_network_was_not_built_for_is_an_error():
    with pytest.raises(ValueError, match="augments"):
        Conditioning(8, 16)(torch.zeros(2), augment=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="augments"):
        Conditioning(8, 16, augments=0)
