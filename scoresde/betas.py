"""Variance tables of discrete chains: each maps a number of levels n to the betas of DiscreteVP.

    alpha_bar_i = prod_{j <= i} (1 - beta_j),     q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x, beta_i)

A function alpha_bar(t) gives beta_i = 1 - alpha_bar((i + 1) / n) / alpha_bar(i / n),
at most ``largest``, for i = 0..n-1. All are computed in float64. DDPM, arXiv 2006.11239, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from scoresde.arguments import Open, Positive, Range, check
from scoresde.sde import linear_betas

Betas = Callable[[int], tuple[float, ...]]
"""A variance table for any number of levels, from the least noise to the most."""
Warm = Annotated[float, Range(gt=0, le=1)]
F64 = torch.float64


def linear(start: Open = 1e-4, end: Open = 0.02) -> Betas:
    """Equal steps of beta. DDPM, arXiv 2006.11239, section 4.

    Args:
        start: first beta.
        end: last beta.
    """
    check(linear, locals())
    _rising(start, end)
    return lambda n: linear_betas(n, start, end)


def scaled_linear(start: Open = 0.00085, end: Open = 0.012) -> Betas:
    """Equal steps of sqrt(beta), as in latent diffusion, arXiv 2112.10752, whose code says linear.

    Args:
        start: first beta.
        end: last beta.
    """
    check(scaled_linear, locals())
    _rising(start, end)
    return lambda n: _tuple(torch.linspace(start**0.5, end**0.5, n, dtype=F64) ** 2)


def quadratic(start: Open = 1e-4, end: Open = 0.02) -> Betas:
    """The table scaled_linear between the ends of DDPM.

    Args:
        start: first beta.
        end: last beta.
    """
    return scaled_linear(start, end)


def cosine(s: Positive = 0.008, largest: Open = 0.999) -> Betas:
    """alpha_bar = cos((t + s) / (1 + s) pi / 2)^2; diffusers' squaredcos_cap_v2.

    Improved DDPM, arXiv 2102.09672, eq. 17.

    Args:
        s: offset of t.
        largest: largest beta.
    """
    check(cosine, locals())
    return _of(lambda t: torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2, largest)


def sigmoid(start: Open = 1e-4, end: Open = 0.02, width: Positive = 6.0) -> Betas:
    """beta is a sigmoid of equal steps, as in GeoDiff, arXiv 2203.02923.

    Args:
        start: lower limit of beta.
        end: upper limit of beta.
        width: the steps run from -width to width.
    """
    check(sigmoid, locals())
    _rising(start, end)

    def table(n: int) -> tuple[float, ...]:
        steps = torch.linspace(-width, width, n, dtype=F64).sigmoid()
        return _tuple(steps * (end - start) + start)

    return table


def sigmoid_alpha_bar(
    low: float = -3.0, high: float = 3.0, tau: Positive = 1.0, largest: Open = 0.999
) -> Betas:
    """alpha_bar is a sigmoid of t, scaled to run from 1 to 0.

        alpha_bar = (S(high) - S(low + t (high - low))) / (S(high) - S(low)),
        S(x) = sigmoid(x / tau)

    Scalable Adaptive Computation for Iterative Generation, arXiv 2212.11972, figure 8.

    Args:
        low: argument of the sigmoid at t = 0.
        high: argument of the sigmoid at t = 1.
        tau: temperature.
        largest: largest beta.
    """
    check(sigmoid_alpha_bar, locals())
    if low >= high:
        raise ValueError(f"need low < high, got low={low:g}, high={high:g}")
    top, span = torch.tensor([high / tau, low / tau], dtype=F64).sigmoid(), (high - low) / tau
    return _of(
        lambda t: (top[0] - torch.sigmoid(low / tau + t * span)) / (top[0] - top[1]), largest
    )


def const(beta: Open = 0.02) -> Betas:
    """The same beta for every level.

    Args:
        beta: the beta.
    """
    check(const, locals())
    return lambda n: (beta,) * n


def exponential(rate: Positive = 12.0) -> Betas:
    """alpha_bar = exp(-rate t), which is a constant beta; diffusers' exp.

    Args:
        rate: minus the logarithm of the last alpha_bar.
    """
    check(exponential, locals())
    return lambda n: (-math.expm1(-rate / n),) * n


def jsd() -> Betas:
    """beta_i = 1 / (n - i), so that alpha_bar falls in equal steps; its last level has no signal.

    Deep Unsupervised Learning using Nonequilibrium Thermodynamics, arXiv 1503.03585, section 2.4.1
    (for binomial diffusion there).
    """
    return lambda n: tuple(1 / (n - i) for i in range(n))


def warm_up(fraction: Warm = 0.1, start: Open = 1e-4, end: Open = 0.02) -> Betas:
    """Equal steps of beta over the first levels, then the last beta: warmup10 in DDPM's code.

    Args:
        fraction: fraction of the levels with steps; 0.5 is DDPM's warmup50.
        start: first beta.
        end: last beta.
    """
    check(warm_up, locals())
    _rising(start, end)

    def table(n: int) -> tuple[float, ...]:
        warm = max(int(n * fraction), 1)
        return linear_betas(warm, start, end) + (end,) * (n - warm)

    return table


def laplace(
    mean: float = 0.0, scale: Positive = 0.5, largest: Open = 0.999, published: bool = False
) -> Betas:
    """The log-SNR, 2 lam, of a uniform time has a Laplace distribution.

        log SNR = mean - scale sgn(1/2 - t) log(1 - 2 |t - 1/2|)

    Improved Noise Schedule for Diffusion Training, arXiv 2407.03297, table 1.

    Args:
        mean: mean of the log-SNR.
        scale: scale of the Laplace distribution.
        largest: largest beta.
        published: take the square root of alpha_bar, as diffusers does, whose noisiest level
            then has sigma / alpha = 5.5.
    """
    check(laplace, locals())
    offset = 1e-6 if published else 0.0

    def alpha_bar(t: Tensor) -> Tensor:
        away = torch.log(1 - 2 * (0.5 - t).abs() + offset)
        log_snr = torch.where(t < 0.5, mean - scale * away, mean + scale * away)
        return log_snr.sigmoid().sqrt() if published else log_snr.sigmoid()

    return _of(alpha_bar, largest)


def given(betas: tuple[Warm, ...]) -> Betas:
    """The betas of a list, one for each level.

    Args:
        betas: the betas, from the least noise to the most; only the last one may be 1.
    """
    check(given, locals())
    found = tuple(map(float, betas))

    def table(n: int) -> tuple[float, ...]:
        if n != len(found):
            raise ValueError(f"levels={n}, but betas has {len(found)} entries; give both the same")
        return found

    return table


def zero_terminal(betas: Sequence[float]) -> tuple[float, ...]:
    """The table scaled so that its last level has no signal; the first level is unchanged.

        a_i <- (a_i - a_n) a_1 / (a_1 - a_n),     a = sqrt(alpha_bar)

    Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891, algorithm 1.
    """
    a = torch.cumprod(1 - torch.tensor(betas, dtype=F64), 0).sqrt()
    a = (a - a[-1]) * (a[0] / (a[0] - a[-1]))
    square = torch.nn.functional.pad(a.square(), (1, 0), value=1.0)
    return _tuple(1 - square[1:] / square[:-1])


def _of(alpha_bar: Callable[[Tensor], Tensor], largest: float) -> Betas:
    """The table of a function alpha_bar on [0, 1]."""

    def table(n: int) -> tuple[float, ...]:
        at = alpha_bar(torch.arange(n + 1, dtype=F64) / n)
        return _tuple((1 - at[1:] / at[:-1]).clamp(max=largest))

    return table


def _rising(start: float, end: float) -> None:
    if start > end:
        raise ValueError(f"need start <= end, got start={start:g}, end={end:g}")


def _tuple(betas: Tensor) -> tuple[float, ...]:
    return tuple(betas.tolist())
