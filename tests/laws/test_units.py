"""Likelihoods of standardised data are those of the data in their own units."""

from __future__ import annotations

import pytest
import torch

from scoresde.data import Scaling
from scoresde.likelihood import FlowEstimator
from scoresde.likelihood.estimators import DiscreteBound, GridFlow, Variational
from scoresde.samplers import per_sample_noise
from scoresde.testing import Gaussian

F64 = torch.float64


@pytest.mark.parametrize(
    "estimator",
    [
        FlowEstimator(GridFlow(120, None)),
        Variational(times=64),
        DiscreteBound(steps=200, times=200),
    ],
    ids=lambda e: type(e).__name__,
)
def test_nats_are_those_of_the_data_in_their_own_units(sde, estimator):
    law = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.diag(torch.tensor([0.5, 1.5])))
    x = law.sample(4, torch.Generator().manual_seed(0))
    scaling = Scaling(shift=(5000.0, -3.0), scale=(1000.0, 0.01))
    own = scaling.decode(x)
    noise = per_sample_noise(range(4))
    plain = estimator(law.denoiser(sde), x, Scaling(), noise).log_prob
    found = estimator(law.denoiser(sde), own, scaling, per_sample_noise(range(4))).log_prob
    expected = plain - torch.tensor(1000.0 * 0.01, dtype=F64).log()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
