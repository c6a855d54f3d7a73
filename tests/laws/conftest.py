"""The seven processes, and a correlated Gaussian, for every law."""

from dataclasses import dataclass

import pytest
import torch

from scoresde import EDM, SDE, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP
from scoresde.testing import Gaussian

PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), LinearFlow(), DiscreteVP()]


@dataclass(frozen=True)
class WholeFlow(LinearFlow):
    """The linear flow from pure noise, alpha = 0, as a process of a user's own may be."""

    t_max: float = 1.0

    def __post_init__(self) -> None:
        pass


@pytest.fixture(params=PROCESSES, ids=lambda sde: type(sde).__name__)
def sde(request) -> SDE:
    return request.param


@pytest.fixture
def gaussian() -> Gaussian:
    """A correlated 4-D Gaussian with deviations from 0.2 to 1."""
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0]
    stds = torch.tensor([0.2, 0.4, 0.7, 1.0], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.5, 0.0, 0.8], dtype=torch.float64)
    return Gaussian(mean, basis @ torch.diag(stds**2) @ basis.T)
