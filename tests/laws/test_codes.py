"""Latent codes: exact on Gaussian data, inverse to each other, great circles between them."""

import math

import pytest
import torch

from scoresde import EDM, VP
from scoresde.codes import Solved, Walked, decode, encode, interpolate, round_trip_error
from scoresde.samplers import Heun, ancestral, dpmpp_2m
from scoresde.samplers.grids import log_snr
from scoresde.testing import Gaussian, Mixture, grid25

F64 = torch.float64
TIGHT = Solved(1e-10, method="dopri8")


def ends(sde):
    return (torch.tensor(t, dtype=F64) for t in (sde.t_min, sde.t_max))


def exact_code(data, sde, x):
    """The linear map of the flow of Gaussian data, in units of the prior."""
    first, last = ends(sde)
    return data.flow(x, sde, first, last) / float(sde.prior().stddev)


def test_codes_of_a_gaussian_are_exact(sde, gaussian):
    x = gaussian.sample(5, torch.Generator().manual_seed(0))
    denoiser = gaussian.denoiser(sde)
    z = encode(denoiser, x, TIGHT)
    torch.testing.assert_close(z, exact_code(gaussian, sde, x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(decode(denoiser, z, TIGHT), x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("sde", [VP(), EDM()], ids=lambda sde: type(sde).__name__)
def test_between_two_points_of_a_gaussian(sde, gaussian):
    """Decoded great circles are the analytic map of the circles between analytic codes."""
    x0, x1 = gaussian.sample(2, torch.Generator().manual_seed(0)).unsqueeze(1)
    denoiser, (first, last) = gaussian.denoiser(sde), ends(sde)
    path = interpolate(encode(denoiser, x0, TIGHT), encode(denoiser, x1, TIGHT), 5)
    found = decode(denoiser, path.flatten(0, 1), TIGHT)
    a, b = (exact_code(gaussian, sde, x)[0] for x in (x0, x1))
    w = torch.arccos(a @ b / a.norm() / b.norm())
    u = torch.linspace(0, 1, 5, dtype=F64).unsqueeze(1)
    circle = (torch.sin((1 - u) * w) * a + torch.sin(u * w) * b) / torch.sin(w)
    exact = gaussian.flow(circle * float(sde.prior().stddev), sde, last, first)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found[[0, -1]], torch.cat([x0, x1]), rtol=0, atol=1e-7)


def test_round_trips_on_a_mixture_in_any_shape():
    plane, sde = grid25(std=0.1), VP()
    data = Mixture(plane.weights, plane.means.reshape(25, 1, 2, 1), plane.stds)
    x = data.sample(20, torch.Generator().manual_seed(1))
    error = round_trip_error(data.denoiser(sde), x, Solved(1e-9, method="dopri8"))
    assert error.shape == (20,)
    assert error.max() < 1e-5


@pytest.mark.parametrize(("step", "order"), [(Heun(), 2), (dpmpp_2m(), 2)], ids=["heun", "2m"])
def test_any_deterministic_step_walks_both_ways(step, order, gaussian):
    """The error of a round trip on a flipped grid falls at the order of the step."""
    sde, x = VP(t_min=1e-3), gaussian.sample(8, torch.Generator().manual_seed(2))
    errors = []
    for n in (20, 40):
        flow = Walked(log_snr(sde, n), step)
        errors.append(float(round_trip_error(gaussian.denoiser(sde), x, flow).max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.5


def test_great_circles_keep_the_size_of_codes():
    z0, z1 = torch.randn(2, 6, 1, 20, 20, generator=torch.Generator().manual_seed(0), dtype=F64)
    path = interpolate(z0, z1, 7)
    assert path.shape == (7, 6, 1, 20, 20)
    assert (path.flatten(2).square().mean(2) - 1).abs().max() < 0.25
    for end, z in ((path[0], z0), (path[-1], z1)):
        torch.testing.assert_close(end, z)


def test_parallel_codes_are_joined_by_a_line():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    for other in (z, 2 * z, -z):
        path = interpolate(z, other, 3)
        torch.testing.assert_close(path[1], (z + other) / 2, rtol=1e-9, atol=1e-9)


def test_bad_arguments(gaussian):
    sde, x = VP(), gaussian.sample(2)
    with pytest.raises(ValueError, match="n >= 2"):
        interpolate(x, x, 1)
    with pytest.raises(ValueError, match="codes alike"):
        interpolate(x, x[:1], 3)
    with pytest.raises(ValueError, match="batch is empty"):
        encode(gaussian.denoiser(sde), x[:0])
    with pytest.raises(ValueError, match="draws noise"):
        decode(gaussian.denoiser(sde), x, Walked(log_snr(sde, 4), ancestral()))


def test_float32_samples_have_float64_codes():
    data = Gaussian(torch.zeros(2), torch.tensor(0.25))
    assert encode(data.denoiser(VP()), data.sample(2), Solved(1e-3)).dtype == F64
