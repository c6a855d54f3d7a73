"""The variational bound of a Markov chain of noise levels, as in DDPM.

    log p(x) >= E log p(x | z_0) - sum_t E KL(q(z_s | z_t, x) | p(z_s | z_t))
                - KL(q(z_T | x) | prior)

over neighbours t > s of a grid. Both conditionals of a transition are Gaussian,

    q = N(c z_t + gain x, v_0),          v_0 = sigma_s^2 v_1 / sigma_t^2
    p = N(c z_t + gain x0_hat, v_p),     log v_p = (1 - mix) log v_0 + mix log v_1

with v_1 the variance of the forward transition and gain = alpha_s v_1 / sigma_t^2.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from scoresde.arguments import Positive, Probability, Range, check
from scoresde.denoiser import Denoiser
from scoresde.likelihood.bounds import Bound, excess, strata, stratified_sum, terminal_gap
from scoresde.likelihood.dequantise import Quantisation
from scoresde.likelihood.divergence import sum_from
from scoresde.likelihood.flow import require_law
from scoresde.samplers.noise import Noise, white_noise
from scoresde.sde import SDE, log1mexp, match, sent
from scoresde.solvers import require_samples, time_of

SMALL, LARGE, LEARNED = 0.0, 1.0, None
"""``mix`` of the reverse variance: v_0, v_1, or learned by the denoiser."""


def discrete_elbo(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    mix: Probability | None = SMALL,
    levels: Quantisation | None = None,
    times: Annotated[int, Range(ge=2)] | None = None,
    decodes: Annotated[int, Range(ge=2)] = 8,
    std: Positive = 0.5,
    noise: Noise | None = None,
) -> Bound:
    """The variational bound of clean data for the chain along the grid ``ts``.

    Pixel levels are decoded from z_0 by a Gaussian integrated over each level, with the variance
    v_0 of the last transition, as in published code. Continuous data have the density of a
    Gaussian of variance (sigma / alpha)^2. A learned variance lies between these two.

    Args:
        denoiser: the model.
        x: clean data (B, ...); for discrete data, the middles of ``levels``.
        ts: decreasing times, at least 3; multiples of 1 / N are the chain of ``DiscreteVP``.
        mix: reverse variance, in [0, 1]; None takes the learned one.
        levels: pixel levels; None for continuous data.
        times: transitions drawn for each sample, with probabilities in proportion to their terms
            for Gaussian data; None evaluates all of them.
        decodes: draws of z_0, at least 2.
        std: standard deviation of the Gaussian data.
        noise: source of all randomness, as in ``elbo``.

    Raises ValueError for arguments out of range. DDPM, arXiv 2006.11239, eq. 5 and 13; Improved
    DDPM, arXiv 2102.09672, eq. 15.
    """
    check(discrete_elbo, locals())
    require_law(denoiser)
    require_samples(x)
    _check(denoiser, ts, mix)
    sde, clean, noise = denoiser.sde, x.double(), noise or white_noise()
    chain = _chain(sde, ts, mix, std)
    model = _Model(denoiser, mix)
    value, error, freedom = (
        _every_term(model, clean, chain, noise)
        if times is None
        else _some_terms(model, clean, chain, times, noise)
    )
    found = torch.stack([_decoded(model, clean, chain, levels, noise) for _ in range(decodes)])
    log_prob = found.mean(0) - value - terminal_gap(sde, clean, chain.t[0])
    decoding = found.var(0) / decodes
    both = error.square() + decoding
    # Satterthwaite's rule for a sum of estimated variances; with none, the freedom is of no use.
    parts = error.square().square() / freedom + decoding.square() / (decodes - 1)
    freedom = torch.where(parts > 0, both.square() / parts, freedom)
    calls = (len(chain.t) - 1 if times is None else times) + decodes
    return Bound(log_prob, both.sqrt(), calls, freedom)


class _Chain(NamedTuple):
    """Times (n + 1,) and constants of the transitions (n,); the last three for Gaussian data."""

    t: Tensor
    small: Tensor  # v_0
    large: Tensor  # v_1
    gain: Tensor
    slope: Tensor  # d x0_hat / d eps
    usual: Tensor  # v_p
    weight: Tensor  # of the term in the sum


class _Model(NamedTuple):
    denoiser: Denoiser
    mix: float | None

    def __call__(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and the mix of the reverse variance at a state."""
        with torch.no_grad():
            x0 = self.denoiser(z, t)
            if self.mix is not None or self.denoiser.variance_mix is None:
                return x0, torch.tensor(self.mix, dtype=torch.float64)
            return x0, self.denoiser.variance_mix(z, t).to(z)


def _chain(sde: SDE, ts: Tensor, mix: float | None, std: float) -> _Chain:
    t = torch.stack([time_of(sde, each) for each in ts])
    alpha, sigma, lam = sde.alpha(t), sde.sigma(t), sde.lam(t)
    large = -(sigma[:-1] ** 2) * torch.expm1(2 * lam.diff().neg())
    small = large * (sigma[1:] / sigma[:-1]) ** 2
    gain = alpha[1:] * large / sigma[:-1] ** 2
    # Gaussian data: x0_hat = c z, c = alpha std^2 / (alpha^2 std^2 + sigma^2).
    unit = torch.sigmoid(2 * lam[:-1] + 2 * math.log(std))
    slope = unit * sigma[:-1] / alpha[:-1]
    usual = _between(small, large, torch.tensor(0.5 if mix is None else mix).double())
    term = _gap(small, usual) + gain**2 * std**2 * (1 - unit) / (2 * usual)
    return _Chain(t, small, large, gain, slope, usual, term / term.sum())


def _every_term(
    model: _Model, x: Tensor, chain: _Chain, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of all terms, with its error and freedom."""
    index = torch.arange(len(chain.weight)).unsqueeze(1).expand(-1, len(x))
    ratios = torch.stack([_ratio(model, x, chain, i, noise) for i in index])
    return stratified_sum(ratios, sent(chain.weight, x.device).unsqueeze(1))


def _some_terms(
    model: _Model, x: Tensor, chain: _Chain, times: int, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """An estimate of the sum from ``times`` transitions, stratified by their weights."""
    edges = chain.weight.cumsum(0)[:-1]
    ratios = [
        _ratio(model, x, chain, torch.searchsorted(edges, u, right=True), noise)
        for u in strata(x, times, noise)
    ]
    return stratified_sum(torch.stack(ratios), x.new_full((times, 1), 1 / times))


def _ratio(model: _Model, x: Tensor, chain: _Chain, i: Tensor, noise: Noise) -> Tensor:
    """KL(q | p) of transition i (B,) over its weight, minus its known dependence on |eps|^2."""
    eps, t = noise(x), chain.t[i]
    x0, mix = model(model.denoiser.sde.perturb(x, t, eps), t)
    small, large, gain, slope, usual = (match(part[i], x) for part in chain[1:6])
    variance = _between(small, large, mix)
    kl = _gap(small, variance) + (gain * (x - x0)).square() / (2 * variance)
    known = ((gain * slope).square() / (2 * usual)).flatten() * excess(eps)
    return (sum_from(1, kl) - known) / sent(chain.weight[i], x.device)


def _decoded(
    model: _Model, x: Tensor, chain: _Chain, levels: Quantisation | None, noise: Noise
) -> Tensor:
    """log p(x | z_0) (B,) for one draw of z_0."""
    sde, t = model.denoiser.sde, chain.t[-1]
    x0, mix = model(sde.perturb(x, t, noise(x)), t)
    if model.mix is not None:
        mix = torch.tensor(LARGE if levels is None else SMALL, dtype=torch.float64)
    large = (-2 * sde.lam(t)).exp()
    variance = _between(torch.minimum(chain.small[-1], large), large, mix)
    if levels is not None:
        return discretised_gaussian(x, x0, variance, levels)
    density = (x - x0).square() / variance + variance.log() + math.log(2 * math.pi)
    return -sum_from(1, density) / 2


def discretised_gaussian(
    x: Tensor, mean: Tensor, variance: Tensor, levels: Quantisation
) -> Tensor:
    """Log-probability under N(mean, variance) of the levels with middles ``x``, summed (B,).

        log(Phi((x + step / 2 - mean) / std) - Phi((x - step / 2 - mean) / std))

    The lowest and the highest level extend to infinity. DDPM, arXiv 2006.11239, eq. 13.
    """
    std, k = variance.sqrt(), torch.round((x - levels.low) / levels.step - 0.5)
    top = math.inf if levels.levels is None else levels.levels - 1
    low = ((x - levels.step / 2 - mean) / std).masked_fill(k <= 0, -math.inf)
    high = ((x + levels.step / 2 - mean) / std).masked_fill(k >= top, math.inf)
    # Reflect to the lower tail, where log_ndtr does not cancel.
    upper = low > 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    below, within = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    mass: Tensor = within + log1mexp(below - within)
    return sum_from(1, mass)


def _between(small: Tensor, large: Tensor, mix: Tensor) -> Tensor:
    """Interpolate log variance: log v = (1 - mix) log small + mix log large."""
    between: Tensor = small * (mix * (large / small).log()).exp()
    return between


def _gap(variance: Tensor, other: Tensor) -> Tensor:
    """KL(N(0, variance) | N(0, other))."""
    return (variance / other - 1 - (variance / other).log()) / 2


def _check(denoiser: Denoiser, ts: Tensor, mix: float | None) -> None:
    if ts.ndim != 1 or len(ts) < 3 or not bool((ts.diff() < 0).all()):
        raise ValueError(
            f"a chain needs at least 3 decreasing times in 1-D, got shape {tuple(ts.shape)}"
        )
    if mix is None and denoiser.variance_mix is None:
        raise ValueError(
            "mix=None, but this denoiser has no learned variance; pass SMALL or LARGE "
            "(likelihood.variance small or large)"
        )
