"""Twisted sequential Monte Carlo: weighted particles, exact as their number grows."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from scoresde.arguments import Probability, Range
from scoresde.denoiser import Denoiser
from scoresde.posterior.linearised import tangent
from scoresde.posterior.measurement import Measurement
from scoresde.posterior.method import Population, PopulationMethod
from scoresde.posterior.operators import RANK, LinearOperator
from scoresde.posterior.spread import Seen, Spread, nystrom, whole
from scoresde.samplers import ArctanGrid, Noise
from scoresde.samplers.kernels import flow_step, marginals, split
from scoresde.sde import SDE

LARGEST = 2**25
"""Most numbers of the matrix of an operator, for one particle or for all."""
WHOLE = 8
"""All of the covariance is computed for up to so many numbers for each direction."""
TINY = 1e-150
"""In the place of a length of 0."""
FEW = 4.0
"""With fewer independent ancestors than this the particles have collapsed."""


@final
@dataclass(frozen=True)
class TwistedSMC(PopulationMethod):
    """Particles that moment matching steers, and that weights correct.

    The chain of the particles takes p(x0 | x_t) for the Gaussian N(x0_hat, C) of moment matching.
    With (a, b, v) of p(x_s | x_t, x0) = N(a x_t + b x0, v), the prior, the proposal and the weight
    of a step are

        x0' ~ N(x0_hat, C),                x_s = a x_t + b x0' + sqrt(v) z
        x0' ~ N(x0_hat, C) given y,        x_s as before
        w = psi_s(x_s) / p(y | x_s, x_t),  psi_t(x_t) = N(y; A x0_hat, A C A* + noise^2)

    p(y | x_s, x_t) is what the Gaussian predicts for the next psi, so that the weights are 1 for
    Gaussian data at any number of calls. For other data they correct the proposal. The error that
    many particles leave is that of the chain, which falls with the number of calls. Particles are
    resampled, systematically, when the effective sample size falls below ``resample`` of their
    number. The share is small because the weights of some levels cancel those of earlier ones. The
    mean weight is an unbiased estimate of p(y) for the chain. Its error is taken from the weights
    of the descendants of each first particle (Chan and Lai, A General Theory of Particle Filters
    in Hidden Markov Models and Some Applications, arXiv 1312.5114), and does not contain the error
    of the chain. All particles have one condition. A nonlinear operator is linearised at x0_hat,
    and the last weight restores it. Wu and others, Practical and Asymptotically Exact Conditional
    Sampling in Diffusion Models, arXiv 2306.17775, with another twist, proposal and weight.

    Args:
        directions: vector-Jacobian products of a call. They give C along as many directions, those
            that the measurement asks for, and the trace of the rest; or all of C, for samples of
            up to 8 times as many numbers.
        resample: effective sample size, as a share of the particles, below which they are
            resampled.
    """

    directions: Annotated[int, Range(ge=1)] = 8
    resample: Probability = 0.02
    name: ClassVar[str] = "twisted_smc"

    def ready(self, measurement: Measurement, x: Tensor) -> Measurement:
        if len(x) < 2:
            raise ValueError(f"particles: need 2 or more, got {len(x)}")
        found = measurement.fit(x)
        if found.batch is not None:
            raise ValueError("y: twisted_smc takes one measurement for all particles")
        if not isinstance(found.operator, LinearOperator):
            found.require_gradient(self.name, x)
            found.require_noise(self.name)
        if found.y.numel() * x[0].numel() > LARGEST:
            raise ValueError(
                f"twisted_smc: a matrix of {found.y.numel()} x {x[0].numel()} numbers is too "
                "large; choose another method, such as moment_matching"
            )
        return found

    def populate(
        self, denoiser: Denoiser, measurement: Measurement, x: Tensor, noise: Noise, nfe: int
    ) -> Population:
        measurement, sde = self.ready(measurement, x), denoiser.sde
        view = _Matrix.of(measurement, x) if _linear(measurement) else _Linearised(measurement)
        ts = ArctanGrid(std=self.std)(sde, nfe - 1) if nfe > 1 else torch.tensor([sde.t_max])
        particles = _Particles.fresh(len(x), x.device)
        state, predicted = x.flatten(1).double(), particles.weights
        try:
            for k, t in enumerate(ts):
                near = self._near(denoiser, view, state, t, x, noise)
                particles = particles.weighted(near.log_psi - predicted)
                last = k == len(ts) - 1
                particles, picked = particles.resampled(1.0 if last else self.resample, noise)
                state, near = state[picked], near.among(picked)
                x0 = near.drawn(noise)
                if not last:
                    state, predicted = near.step(state, x0, sde, t, ts[k + 1], noise)
        # The stubs of torch do not know it.
        except torch.linalg.LinAlgError as failed:  # type: ignore[attr-defined]
            raise RuntimeError(
                "twisted_smc: the covariance of x0 is not finite or not positive at "
                f"t={float(t):.3g}, call {k + 1}; check the gradient of the model"
            ) from failed
        if not _linear(measurement):
            residual = measurement.residual(x0.to(x).reshape(x.shape))
            residual = residual.reshape(len(x), -1).double()
            guess = near.residual - near.seen(x0 - near.x0)
            better = (guess.square().sum(1) - residual.square().sum(1)) / (
                2 * measurement.noise**2
            )
            particles, picked = particles.weighted(better).resampled(1.0, noise)
            x0 = x0[picked]
        if (size := float(particles.size)) < min(FEW, len(x) / 2):
            warnings.warn(
                f"twisted_smc: the particles collapsed to an effective sample size of {size:.1f} "
                f"of {len(x)}; use more particles or calls, or a larger noise",
                RuntimeWarning,
                stacklevel=2,
            )
        evidence, error = float(particles.evidence), float(particles.error)
        return Population(x0.to(x).reshape(x.shape), evidence, error, size)

    def _near(
        self,
        denoiser: Denoiser,
        view: _Matrix | _Linearised,
        state: Tensor,
        t: Tensor,
        like: Tensor,
        noise: Noise,
    ) -> _Near:
        """The Gaussian of x0 given the states (N, D) of the particles, and its measurement."""
        x0, product = tangent(denoiser, state.to(like).reshape(like.shape), t)

        def covariance(v: Tensor) -> Tensor:
            return product(v.to(like).reshape(like.shape)).flatten(1).double()

        seen, residual = view(x0)
        d, eps = state.shape[1], torch.finfo(like.dtype).eps
        if d <= WHOLE * self.directions:
            axes = torch.eye(d, dtype=state.dtype, device=state.device)
            c = whole(torch.stack([covariance(axis.expand_as(state)) for axis in axes], 2))
            return _Near.of(x0.flatten(1).double(), c, seen, residual)
        probe = noise(state).sign()
        trace = (probe * covariance(probe)).sum(1)
        least = TINY**0.25  # of a network, whose trace may be negative
        weight = 1 / (seen.noise**2 + trace.mean().clamp(min=least) / d * seen.square)
        along, columns = state.new_zeros(*state.shape, 0), state.new_zeros(*state.shape, 0)
        u = residual
        for _ in range(min(self.directions, residual.shape[1])):
            v = seen.adjoint(weight * u)
            for _ in range(2):
                v = v - torch.einsum("ndk,nk->nd", along, torch.einsum("ndk,nd->nk", along, v))
                v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp(min=TINY)
            column = covariance(v)
            u = seen(column)
            along, columns = (
                torch.cat([old, new.unsqueeze(2)], 2)
                for old, new in ((along, v), (columns, column))
            )
        c = nystrom(along, columns, trace, eps)
        return _Near.of(x0.flatten(1).double(), c, seen, residual)


class _Near(NamedTuple):
    """N(x0, C) of x0 given x_t, its measurement, and the log-density of what was measured."""

    x0: Tensor
    c: Spread
    seen: Seen
    residual: Tensor
    log_psi: Tensor

    @classmethod
    def of(cls, x0: Tensor, c: Spread, seen: Seen, residual: Tensor) -> _Near:
        return cls(x0, c, seen, residual, seen.solve(c, residual)[0])

    def among(self, rows: Tensor) -> _Near:
        x0, residual, psi = self.x0[rows], self.residual[rows], self.log_psi[rows]
        return _Near(x0, self.c.among(rows), self.seen.among(rows), residual, psi)

    def drawn(self, noise: Noise) -> Tensor:
        """x0' ~ N(x0, C) given y: a draw of the prior, moved by what its measurement misses."""
        u = self.c(noise(self.x0), torch.sqrt)
        missed = self.residual - self.seen(u) - self.seen.noise * noise(self.residual)
        return self.x0 + u + self.c(self.seen.adjoint(self.seen.solve(self.c, missed)[1]))

    def step(
        self, state: Tensor, x0: Tensor, sde: SDE, t: Tensor, s: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """x_s given x_t and x0', and the log-density p(y | x_s, x_t) of the Gaussian."""
        at, to = marginals(sde, t, s)
        down, up = split(at, to, 1.0)
        mean = flow_step(state, x0, at, down)
        b = -down.alpha * math.expm1(at.lam - down.lam)
        # An observation of x0' with variance q, beside the Gaussian.
        q, z = (up / b) ** 2, noise(state, t, s)
        away = x0 - self.x0 + up / b * z
        shift = self.c(away, lambda c: c / (c + q))
        left = self.c.map(lambda c: c * (q / (c + q)))
        return mean.add_(z, alpha=up), self.seen.solve(left, self.residual - self.seen(shift))[0]


class _Particles(NamedTuple):
    """Log-weights (N,) of particles, their first ancestors, and estimates of the evidence."""

    weights: Tensor
    ancestors: Tensor
    evidence: Tensor
    error: Tensor
    size: Tensor

    @classmethod
    def fresh(cls, n: int, device: torch.device) -> _Particles:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero.expand(n), torch.arange(n, device=device), zero, zero, zero + n)

    def weighted(self, log_weights: Tensor) -> _Particles:
        return self._replace(weights=self.weights + log_weights)

    def resampled(self, below: float, noise: Noise) -> tuple[_Particles, Tensor]:
        """Equal weights, if the effective sample size is below this share, and who was taken.

        Without a decision of the host, which would wait for a device.
        """
        n, share = len(self.weights), self.weights.softmax(0)
        due = (1 / share.square().sum() <= below * n) | (below >= 1)
        uniform = torch.special.ndtr(noise(share.unsqueeze(1))[0])
        places = (torch.arange(n, device=share.device) + uniform) / n
        taken = torch.searchsorted(share.cumsum(0), places).clamp(max=n - 1)
        picked = torch.where(due, taken, torch.arange(n, device=share.device))
        mean = self.weights.logsumexp(0) - math.log(n)
        families = torch.zeros_like(share).index_add_(0, self.ancestors, share)
        return _Particles(
            torch.where(due, 0.0, self.weights),
            self.ancestors[picked],
            torch.where(due, self.evidence + mean, self.evidence),
            (families - 1 / n).square().sum().sqrt(),
            1 / families.square().sum(),
        ), picked


# The measurement as orthogonal rows --------------------------------------------------------------


def _linear(measurement: Measurement) -> bool:
    return isinstance(measurement.operator, LinearOperator)


@dataclass(frozen=True)
class _Matrix:
    """A linear measurement, rotated so that its rows are orthogonal."""

    seen: Seen
    y: Tensor

    @classmethod
    def of(cls, measurement: Measurement, x: Tensor) -> _Matrix:
        """Rows of 0, as of hidden pixels, are left out; without noise also dependent ones."""
        axes = torch.eye(x[0].numel(), dtype=torch.float64, device=x.device)
        h = measurement.operator(axes.reshape(-1, *x.shape[1:])).flatten(1).T
        y = measurement.y.to(h).flatten()
        measured = h.square().sum(1) > 0
        h, y = h[measured], y[measured]
        gram = h @ h.T
        square = gram.diagonal()
        if bool((gram - square.diag()).any()):
            square, u = torch.linalg.eigh(gram)
            kept = (square > RANK * square[-1]) | (measurement.noise > 0)
            square, h, y = square[kept], (u.T @ h)[kept], (u.T @ y)[kept]
        return cls(Seen(h.unsqueeze(0), square.unsqueeze(0), measurement.noise), y)

    def __call__(self, x0: Tensor) -> tuple[Seen, Tensor]:
        return self.seen, self.y - self.seen(x0.flatten(1).double())


@dataclass(frozen=True)
class _Linearised:
    """A nonlinear measurement, linearised at each particle and rotated."""

    measurement: Measurement

    def __call__(self, x0: Tensor) -> tuple[Seen, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            at = x0.clone().requires_grad_()
            value = self.measurement.operator(at)
            numbers = value.reshape(len(at), -1).sum(0)
            rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in numbers]
        h = torch.stack([row.flatten(1) for row in rows], 1).double()
        square, u = torch.linalg.eigh(h @ h.mT)
        residual = self.measurement.residual(x0, value.detach()).reshape(len(at), -1).double()
        seen = Seen(u.mT @ h, square.clamp(min=0), self.measurement.noise)
        return seen, torch.einsum("nmk,nm->nk", u, residual)
