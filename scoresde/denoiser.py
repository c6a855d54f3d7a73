"""The denoiser E[x_0 | x_t] with its process, the input of every algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.sde import SDE, derivative, floating, match, sent


@dataclass(frozen=True)
class Denoiser:
    """The posterior mean x0_hat = E[x_0 | x_t] of a process; gives noise, score and velocity.

    ``predict(x, t)`` maps a state (B, ...) at time ``t`` (0-dim or (B,)) to x0_hat (B, ...).
    Noise, score and velocity are linear functions of x and x0_hat, (4)-(6) of docs/theory.md.
    Likelihoods differentiate ``predict``; what it computes under torch.no_grad counts as constant.
    ``predict`` includes conditions and guidance; a guide maps one denoiser to another. A model
    with a learned reverse variance also has ``variance_mix(x, t)``, shaped like ``x``, the mix of
    ``Reverse``: 0 for the variance of the posterior, 1 for that of the forward transition. Where
    ``predict`` has a method ``both``, one network call gives x0_hat and the mix. Guidance and
    clipping set ``normalised=False``, because their result is not the score of a density;
    likelihoods raise ValueError for it. ``batch`` is the number of samples that its conditions
    belong to, one each; None if it takes any batch.
    """

    sde: SDE
    predict: Callable[[Tensor, Tensor], Tensor]
    variance_mix: Callable[[Tensor, Tensor], Tensor] | None = None
    normalised: bool = True
    batch: int | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat = E[x_0 | x_t]; integer states are converted to floats, here and below."""
        return self.predict(floating(x), t)

    def with_variance(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and the mix of the reverse variance. Raises ValueError where none is learned."""
        if self.variance_mix is None:
            raise ValueError("this denoiser has no learned variance; choose small or large")
        if (both := getattr(self.predict, "both", None)) is not None:
            found: tuple[Tensor, Tensor] = both(floating(x), t)
            return found
        return self(x, t), self.variance_mix(floating(x), t)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Expected noise, eps = (x - alpha x0_hat) / sigma, (4)."""
        x = floating(x)
        alpha, sigma = match(self.sde.alpha(t), x), match(self.sde.sigma(t), x)
        return (x - alpha * self(x, t)) / sigma

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of log p_t, (alpha x0_hat - x) / sigma^2, (5): Tweedie's formula."""
        x = floating(x)
        alpha, sigma = match(self.sde.alpha(t), x), match(self.sde.sigma(t), x)
        return (alpha * self(x, t) - x) / sigma**2

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Probability-flow velocity dx/dt = (log sigma)' x + alpha lam' x0_hat, (6).

        It equals f x - g^2 score / 2, without the cancellation of that form for small alpha.
        """
        sde, x = self.sde, floating(x)
        rate = match(derivative(sde.log_sigma, t).to(t), x)
        gain = match((sde.alpha(t) * derivative(sde.lam, t)).to(t), x)
        return rate * x + gain * self(x, t)

    def among(self, rows: Tensor, n: int) -> Denoiser:
        """The denoiser of the samples ``rows`` (M,) of a batch of n, each with its own condition.

        A prediction that cannot select conditions evaluates the whole batch, with zeros for the
        other samples. Raises ValueError if the conditions are those of another number of samples.
        """
        if self.batch is None:
            return self
        if n != self.batch:
            raise ValueError(f"conditions of {self.batch} samples, for a batch of {n}; give alike")
        if (select := getattr(self.predict, "among", None)) is not None:
            picked = select(rows)
            mix = None if self.variance_mix is None else getattr(picked, "variance_mix", None)
            return replace(self, predict=picked, variance_mix=mix, batch=len(rows))

        def predict(x: Tensor, t: Tensor) -> Tensor:
            whole = x.new_zeros(n, *x.shape[1:]).index_copy(0, rows, x)
            if t.ndim:
                t = t.new_full((n,), self.sde.t_max).index_copy(0, rows.to(t.device), t)
            return self(whole, t)[rows]

        return replace(self, predict=predict, variance_mix=None, batch=len(rows))


Guide = Callable[[Denoiser], Denoiser]


def compiled(denoiser: Denoiser, capture: bool = True) -> Denoiser:
    """The denoiser compiled by ``torch.compile``, at its first call with states of a shape.

    A time is an input of the compiled code, so that another time does not compile again. Where
    autograd records, as for a likelihood, the denoiser itself is evaluated. On a CUDA device
    ``capture`` also records the kernels as a graph, which replays without the host.
    """
    plain = torch.compile(denoiser.predict)
    graph = torch.compile(denoiser.predict, mode="reduce-overhead")

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():  # products v^T J do not compile
            return denoiser(x, t)
        t = sent(t, x.device)
        if not capture or x.device.type != "cuda":
            return plain(x, t)
        torch.compiler.cudagraph_mark_step_begin()
        return graph(x, t).clone()  # the next replay writes into the same memory

    return replace(denoiser, predict=predict)
