"""The head over levels: Bayes' rule for every number, whatever the network says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde import EDM, VE, VP, ScoreModel, SubVP, parameterization
from scoresde.data import Scaling
from scoresde.nn import LevelMean, UNet
from scoresde.nn import levels as module

SCALING = Scaling(17)
MIDDLES = SCALING.encode(torch.arange(17), dtype=torch.float64)


class Prior(nn.Module):
    """The same logits for every number of a channel."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)  # (C, K)

    def forward(self, x, noise, label=None, augment=None):
        flat = self.logits.reshape(1, -1, *[1] * (x.ndim - 2))
        return flat.expand(len(x), -1, *x.shape[2:])


def prior(channels=2):
    return torch.randn(channels, 17, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 3, 4)])
def test_independent_numbers_get_their_posterior_mean_under_every_process(sde, shape):
    """With the logits of a law of the levels it is that law's denoiser, at any noise."""
    logits = prior()
    model = ScoreModel(LevelMean(Prior(logits), MIDDLES), sde, parameterization.x0).double()
    g = torch.Generator().manual_seed(1)
    x0 = MIDDLES[torch.randint(0, 17, shape, generator=g)]
    t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64)
    x = sde.perturb(x0, t, torch.randn(shape, generator=g, dtype=torch.float64))
    alpha, sigma = (v.reshape(-1, *[1] * len(shape)) for v in (sde.alpha(t), sde.sigma(t)))
    law = logits.reshape(1, 2, *[1] * (len(shape) - 2), 17)
    seen = law - (x.unsqueeze(-1) - alpha * MIDDLES) ** 2 / (2 * sigma**2)
    expected = seen.softmax(-1) @ MIDDLES
    assert torch.allclose(model.denoiser()(x, t), expected, rtol=1e-6, atol=1e-9)


def test_no_images_have_no_means():
    net = LevelMean(Prior(prior()), MIDDLES)
    x = torch.zeros(0, 2, 3, 4, dtype=torch.float64)
    assert net(x, torch.zeros(0, dtype=torch.float64)).shape == x.shape


@pytest.mark.parametrize("half", [False, True])
def test_near_the_data_it_is_the_level_itself_in_single_precision(half):
    net = LevelMean(Prior(prior().float()), SCALING.encode(torch.arange(17))).eval()
    x0 = SCALING.encode(torch.randint(0, 17, (4, 2, 8, 8)))
    noise = torch.full((4,), -2.0)  # sigma / alpha = e^-8, a hundredth of half a level
    a = torch.sigmoid(torch.tensor(16.0)).sqrt()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = net(a * x0 + torch.exp(torch.tensor(-8.0)) * a * eps, noise)
    assert torch.allclose(found, x0, rtol=0, atol=1e-6)


def test_parts_are_the_whole(monkeypatch):
    torch.manual_seed(0)
    inner = UNet(2, width=4, multipliers=(1,), attention=(), embedding=8, outputs=34)
    net = LevelMean(inner, MIDDLES.float()).eval()
    x, noise = torch.randn(5, 2, 3, 4), torch.linspace(-1, 1, 5)
    with torch.no_grad():
        inner.head.weight.normal_()
        whole = net(x, noise)
        monkeypatch.setattr(module, "CHUNK", 1)
        assert torch.allclose(net(x, noise), whole, atol=1e-6)
    assert "middles" not in net.state_dict()
