"""Forward processes, each defined by two functions of time, log alpha and log sigma.

    dx = f(t) x dt + g(t) dw,        p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)            (1)
    lam = log alpha - log sigma      the half log-SNR, strictly decreasing in t              (2)
    f = (log alpha)',   g^2 = -2 sigma^2 lam'                                                (3)

Time grows with noise; ``sigma`` is the true standard deviation, not ``sigma / alpha``.
The equation numbers are those of ``docs/theory.md``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, TypeVar, final

import torch
from torch import Tensor
from torch.distributions import Normal

from scoresde.arguments import Open, Positive

FAINTEST = -20.0
"""The lam below which x carries no signal in float32; to a network all of it is one level."""


def match(coef: Tensor, x: Tensor) -> Tensor:
    """Shape a coefficient, one number or one per sample (B,), to multiply ``x`` (B, ...).

    A 0-dim coefficient stays a host scalar: it neither changes the dtype of ``x`` nor moves to
    its device.
    """
    if coef.ndim == 0:
        return coef
    coef = sent(coef, x.device, x.dtype if x.is_floating_point() else coef.dtype)
    return coef.reshape(-1, *[1] * (x.ndim - 1))


def sent(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The value on a device. The host does not wait for what it sends there."""
    # A copy to the host has no values before it is waited for, and one to MPS reads them later.
    wait = value.device.type != "cpu" or device.type == "mps"
    return value.to(device, dtype or value.dtype, non_blocking=not wait)


def floating(x: Tensor) -> Tensor:
    """The state, with integers converted to the default float dtype."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


Number = TypeVar("Number", float, Tensor)


def unit_alpha(lam: Number) -> Number:
    """a(lam) = (1 + exp(-2 lam))^(-1/2) of (8): alpha at unit variance, where sigma is a(-lam)."""
    if isinstance(lam, Tensor):
        return torch.sigmoid(2 * lam).sqrt()
    return math.sqrt(math.exp(min(2 * lam, 0.0)) / (1 + math.exp(-2 * abs(lam))))


def derivative(schedule: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Elementwise derivative of a schedule at ``t``, in float64."""
    with torch.inference_mode(False), torch.enable_grad():
        # vjp, unlike autograd.grad, also works inside the transforms of torch.func.
        y, pull, *_ = torch.func.vjp(schedule, t.detach().clone().double())
        slope: Tensor = pull(torch.ones_like(y))[0]
        return slope.detach()


def _like(value: Tensor, t: Tensor) -> Tensor:
    """The value in the dtype of ``t``, float32 for a shorter one, float64 for an integer."""
    if not t.is_floating_point():
        return value
    return value.to(t.device, torch.promote_types(t.dtype, torch.float32))


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0 without cancellation."""
    return torch.log(-torch.expm1(a))


class Reverse(NamedTuple):
    """The Gaussian p(x_s | x_t, x_0) = N(c x_t + gain x_0, small), s < t, and its models.

        large = sigma_t^2 - (alpha_t sigma_s / alpha_s)^2,   the variance of p(x_t | x_s)
        small = large sigma_s^2 / sigma_t^2,   gain = alpha_s large / sigma_t^2

    A model has x0_hat in place of x_0, and a variance between the two: 1 is the ``mix`` of large.
    Improved DDPM, arXiv 2102.09672, eq. 15.
    """

    small: Tensor
    large: Tensor
    gain: Tensor

    def to(self, x: Tensor) -> Reverse:
        """The coefficients, one or one per sample, shaped to multiply ``x`` (B, ...)."""
        return Reverse(*(match(coef, x) for coef in self))

    def variance(self, mix: Tensor) -> Tensor:
        """The variance of a model: log v = (1 - mix) log small + mix log large."""
        return self.small * (mix * (self.large / self.small).log()).exp()

    def kl(self, error: Tensor, mix: Tensor) -> Tensor:
        """KL of a model with ``error`` = x_0 - x0_hat, in nats per number, shaped like it."""
        wider = mix * (self.large / self.small).log()
        miss = (self.gain * error).square() / self.small
        return (torch.expm1(-wider) + wider + miss * (-wider).exp()) / 2


class SDE(ABC):
    """A linear diffusion (1), defined by two schedules.

    Times run over ``(0, t_max]``. Training and likelihoods stop at ``t_min``, samplers at
    ``t_eps`` (then one denoising step). Times are tensors, 0-dim or (B,), of any float dtype; the
    number to which a dtype rounds ``t_max`` is ``t_max``. Derived quantities are evaluated in
    float64 and returned in the dtype of ``t``, or in float32 if that is shorter.
    """

    t_min: float
    t_eps: float
    t_max: float

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the mean coefficient, in the dtype of ``t``."""

    @abstractmethod
    def log_sigma(self, t: Tensor) -> Tensor:
        """Logarithm of the standard deviation, in the dtype of ``t``."""

    def alpha(self, t: Tensor) -> Tensor:
        """Mean coefficient alpha(t) of (1)."""
        return _like(self.log_alpha(self._read(t)).exp(), t)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation sigma(t) of (1)."""
        return _like(self.log_sigma(self._read(t)).exp(), t)

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR lam(t) = log alpha - log sigma, (2)."""
        return _like(self._lam(self._read(t)), t)

    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient f(t) = (log alpha)', (3)."""
        return _like(derivative(self.log_alpha, self._read(t)), t)

    def g2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient g(t)^2 = -2 sigma^2 lam', (3)."""
        t64 = self._read(t)
        sigma = self.log_sigma(t64).exp()
        return _like(-2 * sigma**2 * derivative(self._lam, t64), t)

    def norm(self, t: Tensor) -> Tensor:
        """sqrt(alpha^2 + sigma^2), the standard deviation of x for data of unit variance."""
        t64 = self._read(t)
        return _like(torch.hypot(self.log_alpha(t64).exp(), self.log_sigma(t64).exp()), t)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Forward drift f(t) x, shaped like ``x`` (B, ...)."""
        return match(self.f(t), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """Forward diffusion g(t), shaped like ``t``."""
        return self.g2(t).sqrt()

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean alpha x0 (B, ...) and standard deviation sigma (broadcastable) of p(x_t | x_0)."""
        return match(self.alpha(t), x0) * x0, match(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        mean, std = self.marginal(x0, t)
        return mean + std * eps

    def time(self, lam: Tensor) -> Tensor:
        """Inverse of ``lam`` on (0, t_max], clamped to ``t_max`` below lam(t_max).

        A table brackets the root. Regula falsi in log t with the Illinois rule refines it; every
        fourth iteration is a bisection, for schedules that bend sharply. All of it is on the host,
        which waits once for a ``lam`` of another device.
        """
        if lam.device.type != "cpu":
            return sent(self.time(lam.cpu()), lam.device)
        log_t, values = self._knots
        target = lam.double().clamp(values[-1], values[0])
        i = torch.searchsorted(-values, -target).clamp(1, len(values) - 1)
        a, b, fa, fb = log_t[i - 1], log_t[i], values[i - 1] - target, values[i] - target
        for k in range(60):
            close = 4e-16 * (1 + target.abs() + b.abs())
            done = (fb.abs() <= close) | ((b - a).abs() <= 2e-16 * b.abs())
            if bool(done.all()):
                break
            chord = torch.where(fa == fb, 1.0, fb - fa)
            c = (a + b) / 2 if k % 4 == 2 else b - fb * (b - a) / chord
            c = torch.where(done, b, c)
            fc = self._lam(c.exp()) - target
            same_side = fb * fc > 0
            a, fa = torch.where(same_side, a, b), torch.where(same_side, fa / 2, fb)
            b, fb = c, fc
        return b.exp().clamp(max=self.t_max).to(lam)

    def reverse(self, t: Tensor, s: Tensor) -> Reverse:
        """The coefficients, float64, of p(x_s | x_t, x_0) for s < t, both shaped like ``t``."""
        t64, s64 = self._read(t), self._read(s)
        sigma_t, sigma_s = self.log_sigma(t64).exp(), self.log_sigma(s64).exp()
        large = -(sigma_t**2) * torch.expm1(2 * (self._lam(t64) - self._lam(s64)))
        gain = self.log_alpha(s64).exp() * large / sigma_t**2
        return Reverse(large * (sigma_s / sigma_t) ** 2, large, gain)

    def span(self, stop: float) -> tuple[Tensor, Tensor]:
        """The range of lam, float64: lam at t_max, at least ``FAINTEST``, and at ``stop``."""
        first, last = self.lam(torch.tensor([self.t_max, stop], dtype=torch.float64))
        return first.clamp(min=FAINTEST), last

    def prior(self) -> Normal:
        """The approximation N(0, sigma(t_max)^2) of p(x_{t_max}), elementwise."""
        std = float(self.sigma(torch.tensor(self.t_max, dtype=torch.float64)))
        return Normal(0.0, std, validate_args=False)  # to validate is to wait for the device

    def _read(self, t: Tensor) -> Tensor:
        """A time in float64; beyond ``t_max`` by rounding to its dtype only, it is ``t_max``."""
        t64 = t.double()
        if not t.is_floating_point():
            return t64
        rounded = self.t_max * (1 + torch.finfo(t.dtype).eps)
        return torch.where((t64 > self.t_max) & (t64 <= rounded), self.t_max, t64)

    def _lam(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) - self.log_sigma(t)

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """A table of log t and lam, which brackets the roots of ``time``.

        It is dense near t = 0 and near t_max, because alpha may vanish just beyond.
        """
        with torch.inference_mode(False), torch.no_grad():
            deepest = min(-60.0, math.log2(self.t_min / self.t_max) - 1)
            low = torch.linspace(deepest, 0, 4096, dtype=torch.float64) * math.log(2)
            high = torch.log1p(-(2.0 ** torch.linspace(-48, -1, 512, dtype=torch.float64)))
            log_t = math.log(self.t_max) + torch.cat([low, high]).unique()
            return log_t, self._lam(log_t.exp())


@final
@dataclass(frozen=True)
class Until(SDE):
    """A process up to an earlier ``t_max``, from whose noise samplers then start.

    Raises ValueError unless t_min < t_max <= t_max of the process.
    """

    sde: SDE
    t_max: float
    t_min: float = field(init=False)
    t_eps: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.sde.t_min < self.t_max <= self.sde.t_max:
            low, high = self.sde.t_min, self.sde.t_max
            raise ValueError(f"need {low:g} < t_max <= {high:g}, got t_max={self.t_max:g}")
        object.__setattr__(self, "t_min", self.sde.t_min)
        middle = math.sqrt(self.sde.t_min * self.t_max)
        object.__setattr__(self, "t_eps", min(self.sde.t_eps, middle))

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.sde.log_alpha(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return self.sde.log_sigma(t)


def _ordered(**values: float) -> None:
    """Raise ValueError unless the values are positive and strictly increasing, in this order."""
    names, numbers = list(values), list(values.values())
    if not all(a < b for a, b in pairwise([0.0, *numbers, math.inf])):
        found = ", ".join(f"{k}={v:g}" for k, v in values.items())
        raise ValueError(f"need 0 < {' < '.join(names)} < inf, got {found}")


def _cutoffs(sde: SDE) -> None:
    """Raise ValueError unless the cut-offs are ordered and x at t_max contains signal."""
    if not 0 < sde.t_min <= sde.t_eps < sde.t_max < math.inf:
        found = f"t_min={sde.t_min:g}, t_eps={sde.t_eps:g}, t_max={sde.t_max:g}"
        raise ValueError(f"need 0 < t_min <= t_eps < t_max < inf, got {found}")
    _signal(sde)


def _signal(sde: SDE) -> None:
    """Raise ValueError unless alpha / sigma at t_max and its inverse fit in float32."""
    end = sde.lam(torch.tensor(sde.t_max, dtype=torch.float64))
    if not end > math.log(1e-30):
        raise ValueError(
            f"no signal is left at t_max in floating point, alpha / sigma < 1e-30: {sde}; "
            "lower t_max"
        )
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    for name in ("alpha", "sigma", "norm", "f", "g2"):
        values = getattr(sde, name)(ends)
        held, least = values.float(), torch.finfo(torch.float32).tiny
        lost = ~held.isfinite() | ((held < least) & (name in ("alpha", "sigma")))
        if bool(lost.any()):
            where, value = float(ends[lost][0]), float(values[lost][0])
            raise ValueError(
                f"need {name} that float32 can hold, got {name}={value:g} at t={where:g}: {sde}"
            )


def linear_beta_log_alpha(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """-1/2 of the integral from 0 to t of beta = beta_min + t (beta_max - beta_min)."""
    return -t * (t * (beta_max - beta_min) / 4 + beta_min / 2)


@dataclass(frozen=True)
class VP(SDE):
    """Variance-preserving process with linear beta(t) = beta_min + t (beta_max - beta_min).

        log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,   sigma^2 = 1 - alpha^2

    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 32-33.

    Args:
        beta_min: noise rate beta at time 0.
        beta_max: noise rate beta at time 1.
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-3
    t_max: Positive = 1.0

    def __post_init__(self) -> None:
        _ordered(beta_min=self.beta_min, beta_max=self.beta_max)
        _cutoffs(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return linear_beta_log_alpha(t, self.beta_min, self.beta_max)

    def log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2 * self.log_alpha(t)) / 2


@dataclass(frozen=True)
class SubVP(SDE):
    """Sub-variance-preserving process: alpha as in VP, and sigma = 1 - alpha^2 (not its root).

    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 28-29.

    Args:
        beta_min: noise rate beta at time 0.
        beta_max: noise rate beta at time 1.
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-3
    t_max: Positive = 1.0

    def __post_init__(self) -> None:
        _ordered(beta_min=self.beta_min, beta_max=self.beta_max)
        _cutoffs(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return linear_beta_log_alpha(t, self.beta_min, self.beta_max)

    def log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2 * self.log_alpha(t))


@dataclass(frozen=True)
class VE(SDE):
    """Variance-exploding process, alpha = 1 and sigma = sigma_min (sigma_max / sigma_min)^t.

    Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 30-31.

    Args:
        sigma_min: standard deviation of the noise at time 0.
        sigma_max: standard deviation of the noise at time 1.
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts.
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-5
    t_max: Positive = 1.0

    def __post_init__(self) -> None:
        _ordered(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _cutoffs(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(SDE):
    """The process of EDM: alpha = 1 and sigma = t.

    Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, table 1.

    Args:
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts.
    """

    t_min: Positive = 0.002
    t_eps: Positive = 0.002
    t_max: Positive = 80.0

    def __post_init__(self) -> None:
        _cutoffs(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)


@dataclass(frozen=True)
class Cosine(SDE):
    """Variance-preserving process with a cosine alpha, whose lam may be shifted.

        alpha = cos(a) / cos(b),   sigma^2 = 1 - alpha^2 = sin(a + b) sin(a - b) / cos(b)^2,
        a = (t + s) / (1 + s) pi / 2,   b = s / (1 + s) pi / 2,
        lam = log(alpha / sigma) + (1 - t) log shift + t log shift_end

    Images of d x d pixels have the noise of m x m pixels with a shift of m / d; two different
    shifts interpolate between two such sizes (simple diffusion, arXiv 2301.11093, section 2.1).
    The default ``t_max`` keeps lam above -5.1, as DPM-Solver does (arXiv 2206.00927, appendix
    D.4). Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672, eq. 17.

    Args:
        s: offset of the schedule.
        shift: factor on alpha / sigma; below 1 there is more noise at every time.
        shift_end: the factor at t = 1, at most shift, if it is another one than at t = 0.
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts; alpha vanishes at 1.
    """

    s: Positive = 0.008
    shift: Positive = 1.0
    shift_end: Positive | None = None
    t_min: Positive = 1e-5
    t_eps: Positive = 1e-3
    t_max: Open = 0.9946

    def __post_init__(self) -> None:
        _ordered(s=self.s)
        _ordered(shift=self.shift)
        if not 0 < (end := self._end) <= self.shift:
            raise ValueError(
                f"need 0 < shift_end <= shift, got shift_end={end:g}, shift={self.shift:g}"
            )
        if self.t_max >= 1:
            raise ValueError(f"need t_max < 1 (alpha vanishes at 1), got t_max={self.t_max:g}")
        _cutoffs(self)

    @property
    def _end(self) -> float:
        return self.shift if self.shift_end is None else self.shift_end

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(2 * self._log_snr(t)) / 2

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(-2 * self._log_snr(t)) / 2

    def _log_snr(self, t: Tensor) -> Tensor:
        """lam, from log cos(a) and sin(a + b) sin(a - b), plus the shift."""
        scale = math.pi / 2 / (1 + self.s)
        # cos(a) as the sine of the complement, which stays accurate as t approaches 1.
        log_cos = torch.log(torch.sin((1 - t) * scale))
        square = torch.sin((t + 2 * self.s) * scale) * torch.sin(t * scale)
        late = math.log(self._end) - math.log(self.shift)
        return log_cos - torch.log(square) / 2 + math.log(self.shift) + t * late


@dataclass(frozen=True)
class LinearFlow(SDE):
    """The straight path of flow matching and rectified flow, alpha = 1 - t and sigma = t.

    Flow Matching for Generative Modeling, arXiv 2210.02747, eq. 20-21 (with time reversed).

    Args:
        t_min: smallest time of training and likelihoods.
        t_eps: time at which samplers stop.
        t_max: largest time, at which sampling starts; alpha vanishes at 1.
    """

    t_min: Positive = 1e-3
    t_eps: Positive = 1e-3
    t_max: Open = 0.999

    def __post_init__(self) -> None:
        if self.t_max >= 1:
            raise ValueError(f"need t_max < 1 (alpha vanishes at 1), got t_max={self.t_max:g}")
        _cutoffs(self)

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)


def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """The linear variance table of DDPM, arXiv 2006.11239, section 4."""
    return tuple(torch.linspace(start, end, n, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DiscreteVP(SDE):
    """A discrete DDPM table in continuous time: log alpha is linear between its entries.

        log alpha((i + 1) / N) = sum_{j <= i} log(1 - beta_j) / 2,   sigma^2 = 1 - alpha^2

    Entry i of the table has time (i + 1) / N, so the multiples of 1 / N are the original chain.
    A last beta of 1 leaves no signal (zero terminal SNR): alpha(1) is then 2^-96, which adds
    nothing to noise in float64, and lam(1) = -66.5 is finite. ``scoresde.betas`` has more tables.
    Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 4.
    """

    betas: tuple[float, ...] = linear_betas()

    def __post_init__(self) -> None:
        *before, last = self.betas or (0.0,)
        if not before or not all(0 < beta < 1 for beta in before) or not 0 < last <= 1:
            raise ValueError("need at least two betas between 0 and 1, of which the last may be 1")
        _signal(self)
        if not self._table[-1] < self._table[-2]:
            raise ValueError("no signal is left before the last level; take smaller betas")

    def __str__(self) -> str:
        return f"DiscreteVP of {len(self.betas)} betas, {self.betas[0]:g} to {self.betas[-1]:g}"

    def __hash__(self) -> int:
        return self._hash  # of the whole table, asked for in every step

    @cached_property
    def _hash(self) -> int:
        return hash(self.betas)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / len(self.betas)

    @property
    def t_eps(self) -> float:  # type: ignore[override]
        return 1 / len(self.betas)

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    @cached_property
    def _table(self) -> Tensor:
        with torch.inference_mode(False):
            betas = torch.tensor(self.betas, dtype=torch.float64)
            table = torch.nn.functional.pad(torch.log1p(-betas).cumsum(0) / 2, (1, 0))
            return table.nan_to_num(neginf=-96 * math.log(2))

    def log_alpha(self, t: Tensor) -> Tensor:
        i, low, high = self._interval(t, 2**-46 * t.detach())
        return torch.lerp(low.to(t), high.to(t), t * len(self.betas) - i)

    def log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2 * self.log_alpha(t)) / 2

    def f(self, t: Tensor) -> Tensor:
        # A time equal to that of an entry, to the precision of its dtype, has the entry's beta.
        # A float32 grid may come in float64; 2^-22 is far below a step of any table.
        eps = torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0
        t64 = self._read(t)
        _, low, high = self._interval(t64, (2 * eps * t64).clamp(min=2**-22))
        return _like((high - low) * len(self.betas), t)

    def g2(self, t: Tensor) -> Tensor:
        return -2 * self.f(t)

    def _interval(self, t: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The interval of the table that contains t, and the table at both of its ends.

        An entry belongs to the interval below it.
        """
        n, table = len(self.betas), sent(self._table, t.device)
        place = t.detach() * n
        entry = place.round()
        entry = torch.where((entry - place).abs() <= n * rounding, entry, place.ceil())
        i = entry.long().clamp(1, n) - 1
        # A 0-dim index would be read by the host.
        low, high = (table[j.unsqueeze(0)].squeeze(0) for j in (i, i + 1))
        return i, low, high
