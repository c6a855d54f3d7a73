"""A model of parameters, told measurements, learns the posterior of a linear-Gaussian law."""

import pytest
import torch

import scoresde as ss
from scoresde.conditions import Vector
from scoresde.nn import MLP
from scoresde.parameterization import edm
from scoresde.progress import silent

NOISE = 0.5
A = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.8, -0.6]])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_vector_condition_learns_the_posterior_within_three_percent():
    """theta ~ N(0, I), y = A theta + noise: N(S A^T y / s^2, S), S = (I + A^T A / s^2)^-1."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(100_000, 2, generator=generator)
    y = theta @ A.T + NOISE * torch.randn(len(theta), 3, generator=generator)
    condition = Vector(**Vector.measured(y), dropout=0.0)
    torch.manual_seed(0)
    net = MLP(2, width=96, depth=2, embed=condition.embed)
    model = ss.ScoreModel(net, ss.EDM(), edm(1.0), conditions={"y": condition})
    run = ss.train(
        model,
        (theta, {"y": y}),
        steps=5000,
        batch=512,
        lr=2e-3,
        warmup=100,
        schedule="cosine",
        ema=0.999,
        times="lognormal",
        progress=silent,
    )
    covariance = torch.linalg.inv(torch.eye(2) + A.T @ A / NOISE**2)
    at = torch.tensor([[0.5, 1.0, -0.5], [-1.5, 0.2, 0.8], [0.0, 0.0, 0.0], [2.0, -1.0, 2.0]])
    n = 20_000
    drawn = ss.draw(run.model, num=n * len(at), cond={"y": at}, nfe=25, batch=n).x
    deviation = covariance.diagonal().sqrt()
    for value, x in zip(at, drawn.split(n), strict=True):
        exact = covariance @ (A.T @ value) / NOISE**2
        # 3% of the scale of theta, which is 1; the error of n draws is 0.7% of a deviation.
        assert (x.mean(0) - exact).abs().max() < 0.03
        assert ((x.mean(0) - exact) / deviation).abs().max() < 0.05
        assert (x.std(0) / deviation - 1).abs().max() < 0.03
        assert (torch.corrcoef(x.T)[0, 1] - covariance[0, 1] / deviation.prod()).abs() < 0.03
