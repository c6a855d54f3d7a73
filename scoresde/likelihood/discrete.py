"""The variational bound of a Markov chain of noise levels, as in DDPM.

    log p(x) >= E log p(x | z_0) - sum_t E KL(q(z_s | z_t, x) | p(z_s | z_t))
                - KL(q(z_T | x) | prior)

over neighbours t > s of a grid. q and p are the Gaussian ``Reverse`` and its model, with x and
x0_hat, and with the variance ``small`` and one between ``small`` and ``large``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from scoresde.sde import SDE, Reverse, log1mexp, sent
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
    if times is None:
        terms = bound_terms(
            denoiser, x, ts, mix=mix, levels=levels, decodes=decodes, std=std, noise=noise
        )
        log_prob = terms.decoder - terms.transitions.sum(0) - terms.prior
        calls = len(terms.transitions) + decodes
        return Bound(log_prob, terms.standard_error, calls, terms.freedom)
    model, chain, clean, noise = _prepared(denoiser, x, ts, mix, std, min(times, decodes), noise)
    value, error, freedom = _some_terms(model, clean, chain, times, noise)
    decoder, spread = _decoded(model, clean, chain, levels, decodes, noise)
    log_prob = decoder - value - terminal_gap(denoiser.sde, clean, chain.t[0])
    error, freedom = _with_decoder(error, freedom, spread, decodes)
    return Bound(log_prob, error, times + decodes, freedom)


class Terms(NamedTuple):
    """The terms of the variational bound of each sample: log p >= decoder - transitions - prior.

    ``prior`` and ``decoder`` are (B,), ``transitions`` (n, B) from the most noise to the least, in
    nats; ``standard_error`` (B,) is that of the bound, and ``freedom`` its degrees of freedom.
    """

    prior: Tensor
    transitions: Tensor
    decoder: Tensor
    standard_error: Tensor
    freedom: Tensor

    def bits_per_dim(self, shape: Sequence[int]) -> Terms:
        """The terms in bits per number of a sample of this shape."""
        nats = math.prod(shape) * math.log(2)
        return self._replace(**{name: getattr(self, name) / nats for name in self._fields[:4]})


def bound_terms(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    mix: float | None = SMALL,
    levels: Quantisation | None = None,
    decodes: int = 8,
    std: float = 0.5,
    noise: Noise | None = None,
) -> Terms:
    """The terms of ``discrete_elbo``, all transitions of it; the arguments are explained there.

    In the mean over draws a transition is L_{t-1} of DDPM, arXiv 2006.11239, eq. 5, prior is L_T
    and minus the decoder L_0. From each transition a known function of |noise|^2 of mean zero is
    subtracted.
    """
    model, chain, clean, noise = _prepared(denoiser, x, ts, mix, std, decodes, noise)
    transitions, error, freedom = _every_term(model, clean, chain, noise)
    decoder, spread = _decoded(model, clean, chain, levels, decodes, noise)
    prior = terminal_gap(denoiser.sde, clean, chain.t[0])
    error, freedom = _with_decoder(error, freedom, spread, decodes)
    return Terms(prior, transitions, decoder, error, freedom)


def _with_decoder(
    error: Tensor, freedom: Tensor, spread: Tensor, decodes: int
) -> tuple[Tensor, Tensor]:
    """The error of the terms with that of the decoder, and its freedom by Satterthwaite's rule."""
    both = error.square() + spread
    parts = error.square().square() / freedom + spread.square() / (decodes - 1)
    # Without any error the freedom is of no use.
    return both.sqrt(), torch.where(parts > 0, both.square() / parts, freedom)


def _prepared(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    mix: float | None,
    std: float,
    draws: int,
    noise: Noise | None,
) -> tuple[_Model, _Chain, Tensor, Noise]:
    """The model, its chain, the data in float64 and the noise. Raises ValueError."""
    require_law(denoiser)
    require_samples(x)
    if ts.ndim != 1 or len(ts) < 3 or not bool((ts.diff() < 0).all()):
        raise ValueError(
            f"a chain needs at least 3 decreasing times in 1-D, got shape {tuple(ts.shape)}"
        )
    if draws < 2:
        raise ValueError(f"need times and decodes >= 2, got {draws}")
    if mix is None and denoiser.variance_mix is None:
        raise ValueError(
            "mix=None, but this denoiser has no learned variance; pass SMALL or LARGE "
            "(likelihood.variance small or large)"
        )
    if mix is not None and not 0 <= mix <= 1:
        raise ValueError(f"need 0 <= mix <= 1, got {mix:g}")
    chain = _chain(denoiser.sde, ts, mix, std)
    return _Model(denoiser, mix), chain, x.double(), noise or white_noise()


class _Chain(NamedTuple):
    """Times (n + 1,) and constants of the transitions (n,); the last three for Gaussian data."""

    t: Tensor
    reverse: Reverse
    slope: Tensor  # d x0_hat / d eps
    usual: Tensor  # variance of the model
    weight: Tensor  # of the term in the sum


class _Model(NamedTuple):
    denoiser: Denoiser
    mix: float | None

    def __call__(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and the mix of the reverse variance at a state."""
        with torch.no_grad():
            if self.mix is not None:
                return self.denoiser(z, t), torch.tensor(self.mix, dtype=torch.float64)
            x0, mix = self.denoiser.with_variance(z, t)
            return x0, mix.to(z)


def _chain(sde: SDE, ts: Tensor, mix: float | None, std: float) -> _Chain:
    t = torch.stack([time_of(sde, each) for each in ts])
    reverse, lam = sde.reverse(t[:-1], t[1:]), sde.lam(t[:-1])
    # Gaussian data: x0_hat = c z, c = alpha std^2 / (alpha^2 std^2 + sigma^2).
    unit = torch.sigmoid(2 * lam + 2 * math.log(std))
    # unit sigma / alpha, which is finite where alpha vanishes.
    slope = unit.sqrt() * torch.sigmoid(-2 * lam - 2 * math.log(std)).sqrt() * std
    middle = torch.tensor(0.5 if mix is None else mix, dtype=torch.float64)
    term = reverse.kl(std * (1 - unit).sqrt(), middle)
    return _Chain(t, reverse, slope, reverse.variance(middle), term / term.sum())


def _every_term(
    model: _Model, x: Tensor, chain: _Chain, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """All terms (n, B), and the error and freedom of their sum."""
    index = torch.arange(len(chain.weight)).unsqueeze(1).expand(-1, len(x))
    ratios = torch.stack([_ratio(model, x, chain, i, noise) for i in index])
    weight = sent(chain.weight, x.device).unsqueeze(1)
    _, error, freedom = stratified_sum(ratios, weight)
    return weight * ratios, error, freedom


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
    reverse = Reverse(*(coef[i] for coef in chain.reverse))
    known = (reverse.gain * chain.slope[i]).square() / (2 * chain.usual[i])
    kl = sum_from(1, reverse.to(x).kl(x - x0, mix)) - sent(known, x.device) * excess(eps)
    return kl / sent(chain.weight[i], x.device)


def _decoded(
    model: _Model,
    x: Tensor,
    chain: _Chain,
    levels: Quantisation | None,
    decodes: int,
    noise: Noise,
) -> tuple[Tensor, Tensor]:
    """The mean (B,) of log p(x | z_0) over draws of z_0, and the variance of the mean."""
    draws = [_decoded_once(model, x, chain, levels, noise) for _ in range(decodes)]
    found = torch.stack(draws)
    return found.mean(0), found.var(0) / decodes


def _decoded_once(
    model: _Model, x: Tensor, chain: _Chain, levels: Quantisation | None, noise: Noise
) -> Tensor:
    """log p(x | z_0) (B,) for one draw of z_0."""
    sde, before, t = model.denoiser.sde, *chain.t[-2:]
    x0, mix = model(sde.perturb(x, t, noise(x)), t)
    return decoded(sde, x, x0, t, before, None if model.mix is not None else mix, levels)


def decoded(
    sde: SDE,
    x: Tensor,
    x0: Tensor,
    t: Tensor,
    before: Tensor,
    mix: Tensor | None,
    levels: Quantisation | None,
) -> Tensor:
    """log p(x | z) (B,) of data, given x0_hat at the lowest time ``t`` of a chain.

    ``mix`` (B, ...) is between the small variance of the transition from ``before`` to ``t`` and
    (sigma / alpha)^2; None takes the former for pixel ``levels``, the latter for real numbers.
    """
    if mix is None:
        mix = torch.tensor(LARGE if levels is None else SMALL, dtype=torch.float64)
    large = (-2 * sde.lam(t)).exp()
    small = torch.minimum(sde.reverse(before, t).small, large)
    variance = Reverse(small, large, large).to(x).variance(mix)
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
