"""Operators of measurements: exact adjoints, composition, shapes, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.posterior import (
    Blur,
    Crop,
    Downsample,
    Fourier,
    Grey,
    Linear,
    LinearOperator,
    Mask,
    Measurement,
    Nonlinear,
)

F64 = torch.float64
PICTURE = (3, 8, 6)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LINEAR = {
    "mask": Mask(random(8, 6) > 0),
    "mask of each channel": Mask((random(*PICTURE) > 0).int()),
    "downsample": Downsample(2),
    "blur": Blur(0.7),
    "blur wider than the picture": Blur(5.0),
    "grey": Grey(),
    "crop": Crop((1, 2, 5, 3), (8, 6)),
    "fourier": Fourier(random(8, 6) > 0),
    "matrix": Linear(random(5, 144), PICTURE),
    "chain": Downsample(2) @ Blur(1.0) @ Grey(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_an_adjoint_is_exact_and_shapes_are_those_announced(name: str):
    a = LINEAR[name]
    assert isinstance(a, LinearOperator)
    x = random(4, *PICTURE, seed=1)
    y = random(4, *a.outputs(PICTURE), seed=2)
    back = a.adjoint(y)
    assert a(x).shape == y.shape
    assert back.shape == x.shape
    assert a.inputs(y.shape[1:]) == PICTURE
    left, right = (a(x) * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    z = random(4, *PICTURE, seed=3)
    torch.testing.assert_close(a(2 * x - z), 2 * a(x) - a(z))
    torch.testing.assert_close(a.project(a(x)), a(x))
    torch.testing.assert_close(a.project(a.project(y)), a.project(y))
    assert a(x.float()).dtype == a.adjoint(y.float()).dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(a.adjoint(random(4, *y.shape[1:], seed=2)), back)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Fourier(random(4, 5) > 0), (4, 5)),
        (Fourier(random(6, 4, seed=1) > 0), (6, 4)),
        (Linear(random(6, 4)), (4,)),
        (Linear(torch.cat([random(2, 5), random(2, 5)])), (5,)),
        (Linear(1e-9 * random(3, 5)), (5,)),
        (Mask(random(7) > 0), (7,)),
    ],
)
def test_a_projection_leaves_what_samples_give(operator: LinearOperator, shape: tuple[int, ...]):
    numbers = math.prod(shape)
    a = operator(torch.eye(numbers, dtype=F64).reshape(-1, *shape)).flatten(1).T
    y = random(3, *operator.outputs(shape), seed=2)
    exact = y.flatten(1) @ (a @ torch.linalg.pinv(a)).T
    torch.testing.assert_close(operator.project(y).flatten(1), exact)


@pytest.mark.parametrize("name", LINEAR)
def test_a_sample_is_measured_by_itself(name: str):
    a, x = LINEAR[name], random(4, *PICTURE, seed=1)
    torch.testing.assert_close(a(x)[2:3], a(x[2:3]))
    y = a(x)
    torch.testing.assert_close(a.adjoint(y)[2:3], a.adjoint(y[2:3]))


def test_every_operator_computes_what_it_says():
    x = random(2, *PICTURE)
    kept = random(8, 6) > 0
    torch.testing.assert_close(Mask(kept)(x), torch.where(kept, x, 0))
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(Downsample(2)(x), pooled)
    torch.testing.assert_close(Grey((1, 2, -1))(x), x[:, :1] + 2 * x[:, 1:2] - x[:, 2:])
    torch.testing.assert_close(Crop((1, 2, 5, 3), (8, 6))(x), x[..., 1:6, 2:5])
    found = torch.view_as_complex(Fourier(kept)(x))
    full = torch.fft.fft2(x, norm="ortho")
    torch.testing.assert_close(found, torch.where(kept, full, 0))
    matrix = random(5, 144)
    torch.testing.assert_close(Linear(matrix, PICTURE)(x), x.flatten(1) @ matrix.T)
    torch.testing.assert_close((Grey() @ Blur(0.7))(x), Grey()(Blur(0.7)(x)))


def test_blur_keeps_a_constant_and_spreads_a_point_by_its_deviation():
    torch.testing.assert_close(Blur(2.0)(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 9, 9))
    point = torch.zeros(1, 1, 41, 41, dtype=F64)
    point[..., 20, 20] = 1
    spread = Blur(2.0)(point)[0, 0].sum(0)
    away = torch.arange(41) - 20
    assert float((spread * away**2).sum()) == pytest.approx(4, rel=0.01)
    edge = torch.zeros(1, 1, 41, 41, dtype=F64)
    edge[..., 0, 0] = 1
    assert float(Blur(2.0)(edge).sum()) == pytest.approx(1)  # the mirror image falls back in


def test_a_chain_is_linear_where_both_are():
    f = Nonlinear(lambda x: x.square())
    assert isinstance(Grey() @ Blur(1.0), LinearOperator)
    for chain in (f @ Grey(), Grey() @ f):
        assert not isinstance(chain, LinearOperator)
        assert chain.outputs(PICTURE) == (1, 8, 6)
    assert Nonlinear(lambda x: x.flatten(1).norm(dim=1)).outputs(PICTURE) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.tensor([0.0, 0.5])), "mask: need True or 1"),
        (lambda: Mask(torch.ones(3)), "keeps all numbers"),
        (lambda: Mask(torch.tensor([True, False])).outputs((3,)), r"\(2,\), that of a sample"),
        (lambda: Mask(random(1, 3, 2) > 0).outputs((3, 2)), r"\(1, 3, 2\), that of a sample"),
        (lambda: Downsample(1), "factor >= 2"),
        (lambda: Downsample(4).outputs((3, 6, 8)), "6 x 8 have no blocks of 4"),
        (lambda: Downsample(2).outputs((8,)), "need pictures"),
        (lambda: Blur(0.0), "std > 0"),
        (lambda: Grey().outputs((1, 8, 8)), "3 channels"),
        (lambda: Grey((0.0, 0.0)), "not all 0"),
        (lambda: Crop((4, 0, 5, 2), (8, 6)), "5 x 2 at .4, 0. is not in a picture of 8 x 6"),
        (lambda: Crop((0, 0, 2, 2), (8, 6)).outputs((3, 6, 8)), "made for pictures of"),
        (lambda: Fourier(torch.ones(3)), r"need \(H, W\)"),
        (lambda: Linear(torch.ones(3)), r"\(m, D\)"),
        (lambda: Linear(torch.ones(2, 6), (2, 2)), "not 6 numbers"),
        (lambda: Linear(torch.ones(2, 6)).outputs((2, 3)), "made for samples"),
        (lambda: Nonlinear(lambda x: x.sum()).outputs((3,)), "one result for each sample"),
        (lambda: Measurement(Grey(), torch.tensor([float("nan")])), "y: some"),
        (lambda: Measurement(Grey(), torch.ones(3), -1.0), "noise >= 0"),
        (lambda: Measurement(Grey(), torch.ones(3), float("inf")), "finite noise"),
        (lambda: Measurement(torch.relu, torch.ones(3)), "operator: need one of"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(make: object, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_measurement_is_one_for_all_samples_or_one_for_each():
    a = Linear(random(3, 4))
    x = random(5, 4, dtype=torch.float32)
    one, each = Measurement(a, random(3)), Measurement(a, random(5, 3), 0.1)
    assert one.residual(x).shape == each.residual(x).shape == (5, 3)
    torch.testing.assert_close(each.residual(x), each.y.float() - a(x))
    assert one.fit(x).batch is None
    assert each.fit(x).batch == 5
    torch.testing.assert_close(each.fit(x).among(slice(2, 4)).y, each.y[2:4])
    assert one.among(slice(2, 4)) is one
    with pytest.raises(ValueError, match=r"y: its shape is \(5, 3\); of 4 samples"):
        each.residual(x[:4])
    with pytest.raises(ValueError, match=r"made for samples \(4,\), got \(3,\)"):
        one.fit(x[:, :3])


def test_methods_ask_a_measurement_for_what_they_need():
    rounded = Nonlinear(lambda x: x.round())
    detached = Nonlinear(lambda x: x.detach())
    for operator in (rounded, detached):
        with pytest.raises(ValueError, match="dps: the operator has no gradient"):
            Measurement(operator, torch.ones(3)).require_gradient("dps", torch.ones(1, 3))
    smooth = Measurement(Nonlinear(torch.sin), torch.ones(3))
    smooth.require_gradient("dps", torch.ones(1, 3))
    with pytest.raises(ValueError, match="replacement: needs a linear operator"):
        smooth.require_linear("replacement")
    with pytest.raises(ValueError, match="daps: divides by the noise"):
        smooth.require_noise("daps")
