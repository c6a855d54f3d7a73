"""Mean and variance of a stochastic walk on 1-D Gaussian data, without drawing anything."""

import torch

from scoresde import sample

F64 = torch.float64


def affine(step, denoiser, ts):
    """The whole walk on 1-D Gaussian data as x -> a x + b + sum_j c_j z_j: a, b, sum_j c_j^2.

    One batch probes it all: row 0 without noise, row 1 from x = 1, row 2 + j with draw j alone.
    """
    width = 4 * len(ts) + 200
    x = torch.zeros(2 + width, 1, dtype=F64)
    x[1] = 1.0
    calls = iter(range(2, 2 + width))

    def noise(x, t=None, s=None):
        return torch.zeros_like(x).index_fill_(0, torch.tensor(next(calls)), 1.0)

    end = sample(denoiser, x, ts, step, noise, denoise=False).squeeze(1)
    b = float(end[0])
    return float(end[1]) - b, b, float((end[2:] - b).square().sum())


def bias(step, sde, ts, data):
    """Errors of the mean, and relative of the variance, from the exact marginal."""
    a, b, added = affine(step, data.denoiser(sde), ts)
    mean, var = [], []
    for t in (ts[0], ts[-1]):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        mean.append(alpha * float(data.mean))
        var.append(alpha**2 * float(data.cov) + sigma**2)
    return a * mean[0] + b - mean[1], (a * a * var[0] + added) / var[1] - 1
