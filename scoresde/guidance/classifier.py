"""Guidance by a classifier of noisy states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.conditions.label import Label
from scoresde.denoiser import Denoiser, Guide
from scoresde.sde import FAINTEST, SDE, match, sent

FAINT = 1000.0  # the largest sigma / alpha at which a classifier is asked
LogProb = Callable[[Tensor, Tensor], Tensor]


def classifier(log_prob: LogProb, scale: float = 1.0) -> Guide:
    """The guide of log p(y | x_t): score + scale d log p / dx.

        x0_hat = u + scale sigma^2 / alpha  d log p(y | x_t) / d x_t

    ``log_prob(x, t)`` of the noisy state (B, ...) at a time of the process, 0-dim or (B,), is
    (B,), in nats; row i depends on sample i alone, or the gradients mix. With the exact classifier
    scale 1 is the exact conditional, and 0 is the unconditional. Labels of its own, one a sample,
    it may announce by ``batch``, and select by ``among(rows)``. Beyond sigma / alpha = 1000, where
    the gradient vanishes with alpha, the state is read as one of that level. Raises ValueError
    for a scale that is not finite, another number of samples, or a ``log_prob`` that is not (B,).
    Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, eq. 14.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale: need a finite number, got {scale}")

    def guide(denoiser: Denoiser) -> Denoiser:
        if scale == 0:
            return denoiser
        sde, batch = denoiser.sde, getattr(log_prob, "batch", None)
        if None not in (batch, denoiser.batch) and batch != denoiser.batch:
            raise ValueError(
                f"classifier: labels of {batch} samples, for conditions of {denoiser.batch}"
            )
        end = torch.tensor(sde.t_max, dtype=torch.float64)
        last = None
        if float(sde.lam(end)) < -math.log(FAINT):
            last = float(sde.time(torch.tensor(-math.log(FAINT), dtype=torch.float64)))
        predict: Any = Classified(denoiser, log_prob, float(scale), last)
        return replace(
            denoiser,
            # A method has no ``among``: what cannot select labels evaluates the whole batch.
            predict=predict if hasattr(log_prob, "among") else predict.__call__,
            normalised=False,
            batch=denoiser.batch if batch is None else batch,
        )

    return guide


@dataclass(frozen=True)
class Classified:
    """The prediction of a denoiser, guided by the gradient of ``log_prob``."""

    denoiser: Denoiser
    log_prob: Any
    scale: float
    last: float | None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        sde, z, s = self.denoiser.sde, x, t
        if self.last is not None:
            s = t.clamp(max=self.last)
            z = x * match(sde.norm(s) / sde.norm(t), x)
        gain = match(self.scale * sde.sigma(s) ** 2 / sde.alpha(s), x)
        return self.denoiser(x, t) + gain * gradient(self.log_prob, z, s)

    @property
    def variance_mix(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """That of the denoiser."""
        return self.denoiser.variance_mix

    def among(self, rows: Tensor) -> Classified:
        """The prediction for some samples of the batch."""
        denoiser = self.denoiser.among(rows, self.denoiser.batch or 0)
        return replace(self, denoiser=denoiser, log_prob=self.log_prob.among(rows))


def gradient(log_prob: LogProb, x: Tensor, t: Tensor) -> Tensor:
    """d log p / dx (B, ...) of samples that do not mix; differentiable where autograd records."""

    def total(x: Tensor) -> Tensor:
        found = log_prob(x, t)
        if found.shape != x.shape[:1]:
            raise ValueError(
                f"classifier: log_prob returns {tuple(found.shape)} for {len(x)} samples; it has "
                f"to return ({len(x)},)"
            )
        return found.sum()

    with torch.inference_mode(False):  # the clone of an inference tensor is none
        # torch.func.grad works inside the transforms of torch.func, and under no_grad.
        found: Tensor = torch.func.grad(total)(x.clone())
        return found


class NoisyClassifier(nn.Module):
    """A network that reads the class of a noisy state, with its process.

    ``net(x, noise)`` takes the state scaled to unit size (B, ...) and the noise coordinate (B,) of
    ``ScoreModel``, and returns logits (B, K) of the ``classes``. Raises ValueError for fewer than
    two classes.
    """

    def __init__(self, net: nn.Module, sde: SDE, classes: Sequence[str]) -> None:
        super().__init__()
        if len(classes) < 2:
            raise ValueError(f"classes: need the names of two or more, got {list(classes)}")
        self.net, self.sde, self.classes = net, sde, tuple(map(str, classes))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits (B, K) of states (B, ...) at a time, 0-dim or (B,)."""
        noise = (-self.sde.lam(t.double()).clamp(min=FAINTEST) / 4).expand(len(x))
        scale = match(1 / self.sde.norm(t.double()), x)
        dtype = next((p.dtype for p in self.net.parameters()), x.dtype)
        logits: Tensor = self.net((scale * x).to(dtype), sent(noise, x.device, dtype))
        return logits

    def log_prob(self, label: Any) -> ClassLogProb:
        """log p(y | x_t) for ``classifier``; ``label`` is a class, or one a sample, by name or
        place from 0.

        Raises ValueError for a class that is not there.
        """
        read = Label(self.classes).read(label)
        place = next(self.parameters(), torch.empty(0)).device
        return ClassLogProb(self, sent(read, place))


@dataclass(frozen=True)
class ClassLogProb:
    """log p(y | x_t) (B,) of labels (1,), for all samples, or (B,)."""

    model: NoisyClassifier
    label: Tensor

    @property
    def batch(self) -> int | None:
        """The number of samples that the labels belong to; None for any."""
        return len(self.label) if len(self.label) > 1 else None

    def among(self, rows: Tensor) -> ClassLogProb:
        """The same for some samples of the batch."""
        return self if self.batch is None else replace(self, label=self.label[rows])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        label = self.label.expand(len(x)).unsqueeze(1)
        logits: Tensor = self.model(x, t)
        return logits.log_softmax(1).gather(1, label).squeeze(1).to(x)
