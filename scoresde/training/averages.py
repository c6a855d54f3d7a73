"""Averages of the weights over training: exponential averages and power-function averages.

    theta_gamma(t) = (gamma + 1) / t^(gamma + 1) int_0^t tau^gamma theta(tau) dtau

is the power-function average. The width of its profile relative to t is the same at every t:

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))

Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scoresde.training.fsdp import parts

Model = TypeVar("Model", bound=nn.Module)
WIDEST = 1 / math.sqrt(12)
"""The width for gamma = 0, where all steps have equal weight."""


def averaged(model: Model) -> Model:
    """A copy of the model for its average, in evaluation mode and without gradients.

    It shares the codec of a model of latents.
    """
    codec = getattr(model, "codec", None)
    return copy.deepcopy(model, {id(codec): codec}).eval().requires_grad_(False)


def warmed_up(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), which forgets the initial weights sooner.

    ``step`` = 0 is the first update. TensorFlow, tf.train.ExponentialMovingAverage (num_updates).
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model, in place; buffers are copied.

    Raises ValueError unless 0 <= decay <= 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"need 0 <= decay <= 1, got decay={decay:g}")
    get_ema_multi_avg_fn(decay)(parts(average.parameters()), parts(model.parameters()), 0)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)


class Profile(NamedTuple):
    """The profile of an average, proportional to tau^gamma for tau <= ``step``."""

    step: float
    gamma: float


def width(gamma: float) -> float:
    """sigma_rel as a function of gamma."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power(sigma_rel: float) -> float:
    """gamma as a function of sigma_rel: the largest root of

        gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2 = 0

    Raises ValueError unless 0 < sigma_rel <= 1 / sqrt(12), where gamma >= 0.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"need 0 < sigma_rel <= {WIDEST:.4f}, got sigma_rel={sigma_rel:g}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(gamma: float, step: int) -> float:
    """(1 - 1/t)^(gamma + 1) at update t = step + 1; ``step`` = 0 is the first update.

    The first update replaces the initial weights. The weight of theta(tau) at t is the integral of
    the profile over [tau - 1, tau]. arXiv 2312.02696, section 3.1.
    """
    return float((step / (step + 1)) ** (gamma + 1))


def inner(a: Profile, b: Profile) -> float:
    """The inner product of two profiles; for t_a <= t_b

        (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b

    arXiv 2312.02696, appendix C.2.
    """
    a, b = sorted((a, b))
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return float(scale * (a.step / b.step) ** b.gamma / b.step)


def combination(stored: Sequence[Profile], target: Profile) -> tuple[Tensor, float]:
    """Coefficients (n,) of the stored averages that best reproduce the target, and the error.

    Least squares over the profiles: A x = b with the inner products of profiles. The error is
    relative to the norm of the target. Raises ValueError if nothing is stored. arXiv 2312.02696,
    appendix C.2.
    """
    if not stored:
        raise ValueError("nothing stored to combine")
    if target in stored:
        return torch.eye(len(stored), dtype=torch.float64)[list(stored).index(target)], 0.0
    # Normalised, because products of early and late profiles differ by orders of magnitude.
    norms = torch.tensor([math.sqrt(inner(p, p)) for p in stored], dtype=torch.float64)
    length = math.sqrt(inner(target, target))
    gram = torch.tensor([[inner(p, q) for q in stored] for p in stored], dtype=torch.float64)
    onto = torch.tensor([inner(p, target) for p in stored], dtype=torch.float64) / norms / length
    gram = gram / norms / norms[:, None]
    found = torch.linalg.lstsq(gram, onto[:, None], driver="gelsd").solution[:, 0]
    left = 1 - 2 * found @ onto + found @ gram @ found
    return found * length / norms, math.sqrt(max(float(left), 0.0))
