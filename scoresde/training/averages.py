"""Averages of the weights over training: exponential, and power-function ones of any width.

    theta_gamma(t) = (gamma + 1) / t^(gamma + 1) int_0^t tau^gamma theta(tau) dtau

is an average whose profile has the same width relative to t at every t, its deviation

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
"""The width at gamma = 0, where every step counts the same."""


def averaged(model: Model) -> Model:
    """A copy of the model to hold its average: in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def warmed_up(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), which forgets the initial weights of a young run.

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
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


class Profile(NamedTuple):
    """What an average at step ``step`` is made of: tau^gamma up to there."""

    step: float
    gamma: float


def width(gamma: float) -> float:
    """sigma_rel of a power."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power(sigma_rel: float) -> float:
    """gamma of a width: the largest root of

        gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2 = 0

    Raises ValueError unless 0 < sigma_rel <= 1 / sqrt(12), where gamma >= 0.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"need 0 < sigma_rel <= {WIDEST:.4f}, got sigma_rel={sigma_rel:g}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(gamma: float, step: int) -> float:
    """(1 - 1/t)^(gamma + 1) at update t = step + 1, ``step`` = 0 being the first.

    The first update replaces the initial weights. What it leaves of theta(tau) at t is the
    integral of the profile over [tau - 1, tau]. arXiv 2312.02696, section 3.1.
    """
    return float((step / (step + 1)) ** (gamma + 1))


def inner(a: Profile, b: Profile) -> float:
    """The inner product of two profiles, with t_a <= t_b in

        (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b

    arXiv 2312.02696, appendix C.2.
    """
    a, b = sorted((a, b))
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return float(scale * (a.step / b.step) ** b.gamma / b.step)


def combination(stored: Sequence[Profile], target: Profile) -> tuple[Tensor, float]:
    """The weights (n,) of stored averages whose sum is nearest to the target, and how near.

    Least squares over the profiles: A x = b of their inner products, the distance relative to the
    target's norm. A target among those stored is itself. Raises ValueError for none stored.
    arXiv 2312.02696, appendix C.2.
    """
    if not stored:
        raise ValueError("nothing stored to combine")
    if target in stored:
        return torch.eye(len(stored), dtype=torch.float64)[list(stored).index(target)], 0.0
    # Of unit norm: the products of early and late profiles differ by orders of magnitude.
    norms = torch.tensor([math.sqrt(inner(p, p)) for p in stored], dtype=torch.float64)
    length = math.sqrt(inner(target, target))
    gram = torch.tensor([[inner(p, q) for q in stored] for p in stored], dtype=torch.float64)
    onto = torch.tensor([inner(p, target) for p in stored], dtype=torch.float64) / norms / length
    gram = gram / norms / norms[:, None]
    found = torch.linalg.lstsq(gram, onto[:, None], driver="gelsd").solution[:, 0]
    left = 1 - 2 * found @ onto + found @ gram @ found
    return found * length / norms, math.sqrt(max(float(left), 0.0))
