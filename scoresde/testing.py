"""Problems with exact solutions: denoiser, density and flow in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.latent import laws
from scoresde.latent.codec import Codec, Encoded
from scoresde.posterior.operators import LinearOperator
from scoresde.sde import SDE, match


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Gaussian data N(mean, cov): every marginal is Gaussian and the probability flow is linear.

    ``mean`` has the shape of a sample, with D numbers; ``cov`` is (D, D), or variances shaped like
    ``mean``, or one variance. Raises ValueError for another shape or a covariance that is not
    positive definite.
    """

    mean: Tensor
    cov: Tensor

    def __post_init__(self) -> None:
        if not (self._spectrum[0] > 0).all():
            raise ValueError("the covariance of a Gaussian must be positive definite")

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,) and eigenvectors (D, D) of the covariance."""
        dim, cov = self.mean.numel(), torch.as_tensor(self.cov).to(self.mean)
        if cov.shape == self.mean.shape or cov.ndim == 0:
            return cov.expand(self.mean.shape).flatten(), torch.eye(dim).to(cov)
        if cov.shape != (dim, dim):
            raise ValueError(
                f"a mean of {dim} numbers needs a ({dim}, {dim}) covariance, "
                f"got {tuple(cov.shape)}"
            )
        values, vectors = torch.linalg.eigh(cov)
        return values, vectors

    def denoiser(self, sde: SDE) -> Denoiser:
        """x0_hat = mean + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha mean)."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, z, total = self._coordinates(x, sde, t)
            return self._from(alpha * self._spectrum[0].to(x) / total * z, x)

        return Denoiser(sde, predict)

    def flow(self, x: Tensor, sde: SDE, t: Tensor, s: Tensor) -> Tensor:
        """The exact probability-flow map of x (B, ...) from time t to time s."""
        _, z, total = self._coordinates(x, sde, t)
        alpha, _, total_s = self._coordinates(x, sde, s)
        moved = (total_s / total).sqrt() * z
        return self._from(moved, x) + (alpha - 1).reshape(
            -1, *[1] * self.mean.ndim
        ) * self.mean.to(x)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *mean.shape)."""
        values, vectors = self._spectrum
        z = torch.randn(
            n, len(values), generator=generator, dtype=values.dtype, device=values.device
        )
        return (z * values.sqrt() @ vectors.T).reshape(n, *self.mean.shape) + self.mean

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Tensor | None = None) -> Tensor:
        """log p_t(x) (B,) in nats, or the log-density of the data without a process."""
        _, z, total = self._coordinates(x, sde, t)
        return -0.5 * (z**2 / total + total.log() + math.log(2 * math.pi)).sum(1)

    def posterior(self, operator: LinearOperator, y: Tensor, noise: float) -> Gaussian:
        """p(x0 | y) of one measurement y = A x0 + noise eps with noise > 0."""
        (mean,), (cov,), _ = _conditioned(self.mean[None], self._covariance, operator, y, noise)
        return Gaussian(mean, cov)

    def log_evidence(self, operator: LinearOperator, y: Tensor, noise: float) -> float:
        """log p(y) in nats of one measurement."""
        return float(_conditioned(self.mean[None], self._covariance, operator, y, noise)[2])

    @property
    def _covariance(self) -> Tensor:
        """The covariance as (1, D, D)."""
        values, vectors = self._spectrum
        return (vectors * values @ vectors.T)[None]

    def _coordinates(
        self, x: Tensor, sde: SDE | None, t: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, x - alpha mean (B, D) and alpha^2 C + sigma^2 in the eigenbasis."""
        values, vectors = (part.to(x) for part in self._spectrum)
        flat = x.flatten(1)
        alpha, sigma = _marginal(flat, sde, t)
        z = (flat - alpha * self.mean.to(x).flatten()) @ vectors
        return alpha, z, (alpha**2 * values + sigma**2).expand_as(z)

    def _from(self, z: Tensor, x: Tensor) -> Tensor:
        """The inverse map from the eigenbasis, plus the mean, in the shape of x."""
        return (z @ self._spectrum[1].to(x).T).reshape(x.shape) + self.mean.to(x)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians.

    ``weights`` are (K,), ``means`` (K, ...). ``stds`` are (K,) or shaped like ``means``; or in
    place of them ``covs`` are full covariances (K, D, D). Raises ValueError for other shapes, or
    weights, deviations and covariances that are not positive.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor | None = None
    covs: Tensor | None = None

    def __post_init__(self) -> None:
        k, dim = len(self.means), self.means[0].numel()
        given = self.stds if self.covs is None else self.covs
        shapes = ((k,), self.means.shape) if self.covs is None else ((k, dim, dim),)
        if given is None or self.weights.shape != (k,) or given.shape not in shapes:
            raise ValueError(
                f"{k} means need weights ({k},), and stds ({k},) or {tuple(self.means.shape)} or "
                f"covs ({k}, {dim}, {dim}), got {tuple(self.weights.shape)} and "
                f"{None if given is None else tuple(given.shape)}"
            )
        positive = given if self.covs is None else self._components[2]
        if not ((self.weights > 0).all() and (positive > 0).all()):
            raise ValueError("the weights, stds and covs of a mixture must be positive")

    @cached_property
    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), means (K, D) and variances (K, D) along the axes."""
        means = self.means.flatten(1)
        if self.stds is not None:
            variances = self.stds.to(means).reshape(len(means), -1).expand_as(means) ** 2
        else:
            variances = torch.linalg.eigvalsh(self.covs)
        return (self.weights / self.weights.sum()).log(), means, variances

    @cached_property
    def _axes(self) -> Tensor | None:
        """The principal axes (K, D, D), None for those of the coordinates."""
        return None if self.covs is None else torch.linalg.eigh(self.covs).eigenvectors

    def denoiser(self, sde: SDE) -> Denoiser:
        """x0_hat = sum_k p(k | x) [m_k + alpha C_k (alpha^2 C_k + sigma^2)^-1 (x - alpha m_k)]."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, gap, total, joint = self._joint(x, sde, t)
            _, means, variances = (part.to(x) for part in self._components)
            posterior = joint.softmax(1).unsqueeze(2)
            moved = alpha * variances * gap / total
            if self._axes is not None:
                moved = torch.einsum("kde,bke->bkd", self._axes.to(x), moved)
            return (posterior * (means + moved)).sum(1).reshape(x.shape)

        return Denoiser(sde, predict)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *means.shape[1:])."""
        _, means, variances = self._components
        probabilities = (self.weights / self.weights.sum()).double()
        k = torch.multinomial(probabilities, n, replacement=True, generator=generator)
        z = torch.randn(
            n, means.shape[1], generator=generator, dtype=means.dtype, device=means.device
        )
        z = variances[k].sqrt() * z
        if self._axes is not None:
            z = torch.einsum("bde,be->bd", self._axes[k], z)
        return (means[k] + z).reshape(n, *self.means.shape[1:])

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Tensor | None = None) -> Tensor:
        """log p_t(x) (B,) in nats, or the log-density of the data without a process."""
        return self._joint(x, sde, t)[3].logsumexp(1)

    def posterior(self, operator: LinearOperator, y: Tensor, noise: float) -> Mixture:
        """p(x0 | y) of one measurement y = A x0 + noise eps with noise > 0."""
        means, covs, joint = self._conditioned(operator, y, noise)
        weights = joint.softmax(0).clamp(min=torch.finfo(joint.dtype).tiny)
        return Mixture(weights, means, covs=covs)

    def log_evidence(self, operator: LinearOperator, y: Tensor, noise: float) -> float:
        """log p(y) in nats of one measurement."""
        return float(self._conditioned(operator, y, noise)[2].logsumexp(0))

    def _conditioned(
        self, operator: LinearOperator, y: Tensor, noise: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means and covariances of the components after a measurement, and log p(k) p(y | k)."""
        log_weights, _, variances = self._components
        covs = variances.diag_embed() if self.covs is None else self.covs.to(variances)
        means, covs, log_normal = _conditioned(self.means, covs, operator, y, noise)
        return means, covs, log_weights + log_normal

    def _joint(
        self, x: Tensor, sde: SDE | None, t: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, x - alpha m_k and its variances (B, K, D), and log p(k) p_t(x | k) (B, K).

        x - alpha m_k is in the axes of component k.
        """
        log_weights, means, variances = (part.to(x) for part in self._components)
        flat = x.flatten(1).unsqueeze(1)
        alpha, sigma = _marginal(flat, sde, t)
        gap, total = flat - alpha * means, alpha**2 * variances + sigma**2
        if self._axes is not None:
            gap = torch.einsum("kde,bkd->bke", self._axes.to(x), gap)
        log_normal = -0.5 * (gap**2 / total + total.log() + math.log(2 * math.pi)).sum(2)
        return alpha, gap, total, log_weights + log_normal


@dataclass(frozen=True)
class PixelScale:
    """Level k covers low + step [k, k + 1)."""

    levels: int
    low: float
    step: float


@dataclass(frozen=True, eq=False)
class Pixels:
    """Independent pixels at level k with probability ``p[k]``, at the middles of K equal parts of
    [-1, 1). Raises ValueError unless ``p`` (K,) is positive and normalised.
    """

    p: Tensor

    def __post_init__(self) -> None:
        if self.p.ndim != 1 or not (self.p > 0).all() or abs(float(self.p.sum()) - 1) > 1e-9:
            raise ValueError("the probabilities of levels must be positive and add up to 1")

    @property
    def scale(self) -> PixelScale:
        """Intervals of the levels."""
        return PixelScale(len(self.p), -1.0, 2 / len(self.p))

    @property
    def middles(self) -> Tensor:
        """Middles (K,) of the levels in model units."""
        k = torch.arange(len(self.p), dtype=torch.float64)
        return self.scale.low + self.scale.step * (k + 0.5)

    @property
    def entropy(self) -> float:
        """Entropy of one pixel in bits."""
        return float(-(self.p * self.p.log2()).sum())

    def sample(self, n: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
        """Levels (n, dim)."""
        drawn = torch.multinomial(self.p, n * dim, replacement=True, generator=generator)
        return drawn.reshape(n, dim)

    def log_prob(self, k: Tensor) -> Tensor:
        """log P (B,) of levels (B, ...) in nats."""
        return self.p.log()[k].flatten(1).sum(1)

    def denoiser(self, sde: SDE) -> Denoiser:
        """x0_hat = sum_k m_k p(k | x),   p(k | x) ~ p_k N(x; alpha m_k, sigma^2)."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (f(t).reshape(-1, *[1] * x.ndim).to(x) for f in (sde.alpha, sde.sigma))
            away = (x.unsqueeze(-1) - alpha * self.middles.to(x)) / sigma
            return (self.p.log().to(x) - away**2 / 2).softmax(-1) @ self.middles.to(x)

        return Denoiser(sde, predict)


@final
class LinearCodec(Codec):
    """z = A x + b + std eps and x = W z + c + scale eps, with exact densities of x.

    Pictures (B, C, H, H) are flattened to D real numbers, and latents (B, d, 1, 1) to d.

    Args:
        encoder: A (d, D).
        decoder: W (D, d).
        std: deviations (d,) of the latents given a picture; 0 for a map without noise.
        scale: deviation of a picture given its latent.
        channels: C.
        shift: b (d,); 0 by default.
        offset: c (D,); 0 by default.
    """

    def __init__(
        self,
        encoder: Tensor,
        decoder: Tensor,
        std: Tensor,
        scale: float,
        *,
        channels: int = 1,
        shift: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        size = math.isqrt(len(decoder) // channels)
        super().__init__(channels, len(encoder), size, law=laws.Gaussian())
        self.encoder, self.decoder, self.std, self.scale = encoder, decoder, std, scale
        self.shift = encoder.new_zeros(len(encoder)) if shift is None else shift
        self.offset = decoder.new_zeros(len(decoder)) if offset is None else offset
        self.to(encoder.dtype)

    def encode(self, x: Tensor) -> Encoded:
        mean = (x.flatten(1) @ self.encoder.T + self.shift)[..., None, None]
        return Encoded(mean, self.std[:, None, None].expand_as(mean))

    def output(self, z: Tensor) -> Tensor:
        mean = z.flatten(1) @ self.decoder.T + self.offset
        shaped = mean.reshape(len(z), self.channels, self.factor, self.factor)
        # The inverse of what the law makes of it.
        log_scale = laws.SMALLEST + math.log(math.expm1(math.log(self.scale) - laws.SMALLEST))
        return torch.cat([shaped, torch.full_like(shaped, log_scale)], 1)

    def pictures(self, latents: Gaussian) -> Gaussian:
        """The law of pictures (D,) whose latents (d,) have this law."""
        spread = self.decoder @ latents.cov @ self.decoder.T
        noise = self.scale**2 * torch.eye(len(spread)).to(spread)
        return Gaussian(self.decoder @ latents.mean + self.offset, spread + noise)

    def bound(self, x: Tensor, latents: Gaussian) -> Tensor:
        """The bound (17) of pictures (B,), with the expectations of quadratics over q(z | x)."""
        mean = self.encode(x).mean.flatten(1)
        away = x.flatten(1) - mean @ self.decoder.T - self.offset
        squares = away.square().sum(1) + (self.decoder * self.std).square().sum()
        decoded = -squares / (2 * self.scale**2) - len(self.decoder) * (
            math.log(self.scale) + math.log(2 * math.pi) / 2
        )
        spread = (torch.linalg.inv(latents.cov).diagonal() * self.std.square()).sum() / 2
        entropy = (self.std.log() + (1 + math.log(2 * math.pi)) / 2).sum()
        found: Tensor = decoded + latents.log_prob(mean) - spread + entropy
        return found


def mostly_black(black: float = 0.8, levels: int = 256) -> Pixels:
    """Pixels at level 0 with probability ``black``, otherwise on a falling ramp, as in digits."""
    ramp = torch.linspace(2, 0.5, levels - 1, dtype=torch.float64)
    return Pixels(torch.cat([ramp.new_tensor([black]), (1 - black) * ramp / ramp.sum()]))


def grid25(std: float = 0.05, total: float = 0.5) -> Mixture:
    """25 equal Gaussians on a 5 x 5 grid in the plane, with deviation ``total`` per dimension."""
    ticks = torch.linspace(-1, 1, 5, dtype=torch.float64)
    means = torch.cartesian_prod(ticks, ticks)
    spread = math.sqrt((total**2 - std**2) / float(means[:, 0].var(unbiased=False)))
    return mixture([1.0] * 25, means * spread, [std] * 25)


def mixture(weights: Sequence[float], means: Tensor, stds: Sequence[float]) -> Mixture:
    """A Mixture from Python numbers, in the dtype of ``means``."""
    return Mixture(torch.tensor(weights).to(means), means, torch.tensor(stds).to(means))


def _conditioned(
    means: Tensor, covs: Tensor, operator: LinearOperator, y: Tensor, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians N(m_k, C_k) (K, ...) given y = A x0 + noise eps: means, covariances, log p(y).

    G = C A* (A C A* + noise^2)^-1,   m + G (y - A m),   (1 - G A) C (1 - G A)* + noise^2 G G*
    """
    if not noise > 0:
        raise ValueError(f"an exact posterior needs noise > 0, got {noise:g}")
    dim = means[0].numel()
    eye = torch.eye(dim, dtype=means.dtype, device=means.device)
    a = operator(eye.reshape(dim, *means.shape[1:])).flatten(1).T
    gap = y.to(means).flatten() - means.flatten(1) @ a.T
    spread = torch.linalg.cholesky(a @ covs @ a.T + noise**2 * torch.eye(len(a)).to(eye))
    gain = torch.cholesky_solve(a @ covs, spread).mT
    kept = eye - gain @ a
    away = torch.linalg.solve_triangular(spread, gap[..., None], upper=False)[..., 0]
    log_det = spread.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_normal = -0.5 * (away.square() + math.log(2 * math.pi)).sum(-1) - log_det
    found = means + (gain @ gap[..., None])[..., 0].reshape(means.shape)
    return found, kept @ covs @ kept.mT + noise**2 * gain @ gain.mT, log_normal


def _marginal(x: Tensor, sde: SDE | None, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """alpha and sigma shaped to multiply x; 1 and 0 without a process."""
    if sde is None or t is None:
        return x.new_ones(1), x.new_zeros(1)
    alpha, sigma = match(sde.alpha(t), x), match(sde.sigma(t), x)
    return alpha.to(x), sigma.to(x)
