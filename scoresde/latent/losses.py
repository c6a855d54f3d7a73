"""The loss of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.arguments import NonNegative, check_fields
from scoresde.data import Scaling
from scoresde.latent.autoencoder import Autoencoder, Passed
from scoresde.latent.codec import wide
from scoresde.likelihood.divergence import sum_from


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The weights of the terms of the loss of an autoencoder, each a mean over D numbers.

        -log p(x | z) / D + l1 |x - x_hat| / D + l2 (x - x_hat)^2 / D + kl KL / D

    The first term is that of an autoencoder with a law, which has nats per dimension: with kl 1
    the loss is then the negative evidence lower bound.

    Args:
        l1: weight of the absolute error; null is 1, or 0 for an autoencoder with a law
        l2: weight of the squared error; null is 1, or 0 for an autoencoder with a law
        kl: weight of the KL divergence of the latents from a standard normal law; null is 1e-6
    """

    l1: NonNegative | None = None
    l2: NonNegative | None = None
    kl: NonNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def weights(self, codec: Autoencoder) -> dict[str, float]:
        """The weights by term for an autoencoder.

        Raises ValueError for a weight that has no effect on it, or if nothing reconstructs.
        """
        error = 0.0 if codec.law is not None else 1.0
        found = {"nll": 1.0 - error}
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            found[name] = error if value is None else value
        if not any(found.values()):
            raise ValueError("loss: l1=0 and l2=0 reconstruct nothing; raise one of them")
        if codec.penalty not in PENALTIES:
            raise ValueError(
                f"codec: its penalty {codec.penalty!r} has no weight; call it one of "
                f"{', '.join(PENALTIES)}"
            )
        for name, default in PENALTIES.items():
            value = getattr(self, name)
            if name == codec.penalty:
                found[name] = default if value is None else value
            elif value is not None:
                raise ValueError(
                    f"loss.{name}={value:g} has no effect on latents with a penalty "
                    f"{codec.penalty}; leave it out"
                )
        return {name: weight for name, weight in found.items() if weight}


PENALTIES = {"kl": 1e-6}
"""The default weights of what the law of the latents costs."""


class Criterion:
    """The loss of an autoencoder on pictures of a scaling. Raises ValueError as ``Loss`` does."""

    def __init__(self, loss: Loss, codec: Autoencoder, scaling: Scaling) -> None:
        self.weights = loss.weights(codec)
        self._codec, self._scaling = codec, scaling

    def terms(self, passed: Passed, x: Tensor, data: Tensor) -> dict[str, Tensor]:
        """The terms (B,) by name, without their weights, in float32 at least.

        ``x`` are the pictures in model units, ``data`` the same in units of the data.
        """
        output = wide(passed.output)[..., : x.shape[-2], : x.shape[-1]]  # without the padding
        law, each = self._codec.law, x[0].numel()
        picture = output if law is None else law.mean(output)
        found: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "nll":
                assert law is not None
                found[name] = -law.log_prob(output, data, self._scaling) / each
            elif name == "l1":
                found[name] = sum_from(1, (picture - x).abs()) / each
            elif name == "l2":
                found[name] = sum_from(1, (picture - x).square()) / each
            else:
                found[name] = wide(passed.penalty) / each
        return found

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss (B,): the sum of the terms with their weights."""
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum(0)
