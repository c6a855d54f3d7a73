"""``torch.func.grad`` and ``vmap`` through the losses and the steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from scoresde import VP, ScoreModel
from scoresde import parameterization as parameterizations
from scoresde.nn import MLP
from scoresde.registry import SELF_PACED, STEPS, build_step
from scoresde.samplers import grids
from scoresde.training.losses import dsm_loss, edm, likelihood, min_snr, sigma2

F64 = torch.float64
N, D = 4, 2
ALONG = [name for name in STEPS if name not in SELF_PACED]


def made(sde) -> ScoreModel:
    torch.manual_seed(0)
    net = MLP(D, width=8, depth=1, embedding=4).double()
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return ScoreModel(net, sde, parameterizations.v).eval()


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


class Loss(torch.nn.Module):
    """The losses of a batch as a module, for ``functional_call``."""

    def __init__(self, model: ScoreModel, weight) -> None:
        super().__init__()
        self.model, self.weight = model, weight

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return dsm_loss(self.model, x0, t, eps, self.weight)


@pytest.mark.parametrize("weight", [None, sigma2, likelihood, min_snr(), edm()])
def test_gradients_per_sample_are_those_of_a_loop(sde, weight):
    loss = Loss(made(sde), weight)
    names, weights = zip(*loss.named_parameters(), strict=True)
    x0, eps = draws(2, N, D)
    t = torch.linspace(0.2, 0.8, N, dtype=F64) * sde.t_max

    def one(given, x0, t, eps):
        parts = (part.unsqueeze(0) for part in (x0, t, eps))
        return functional_call(loss, given, tuple(parts)).squeeze(0)

    given = dict(zip(names, (w.detach() for w in weights), strict=True))
    found = vmap(grad(one), in_dims=(None, 0, 0, 0))(given, x0, t, eps)
    for i, each in enumerate(loss(x0, t, eps)):
        want = torch.autograd.grad(each, weights, retain_graph=True, allow_unused=True)
        for name, g in zip(names, want, strict=True):
            expected = torch.zeros_like(found[name][i]) if g is None else g
            torch.testing.assert_close(found[name][i], expected)


def walk(name: str, sde, z: Tensor):
    """Three steps of a sampler from x (B, D), all with the same noise, recorded for gradients."""
    denoiser, step = made(sde).denoiser(), build_step(name, {}, 3)

    def run(x: Tensor) -> Tensor:
        state = None
        for t, s in grids.log_snr(sde, 3).unfold(0, 2, 1):
            x, state = step(denoiser, x, t, s, state, lambda x, t=None, s=None: z.expand_as(x))
        return x

    return run


@pytest.mark.parametrize("name", ALONG)
def test_steps_map_over_samples_and_differentiate(name):
    # A process of its own: what is cached must not belong to a transform that has ended.
    sde = VP(beta_max=19 + ALONG.index(name) / 100)
    x, v, z = draws(3, N, D)
    run = walk(name, sde, z[0])
    gradient = grad(lambda x: run(x).square().sum())(x)
    slope = jvp(run, (x,), (v,))[1]
    each = vmap(lambda x: run(x.unsqueeze(0)).squeeze(0))(x)
    u = x.clone().requires_grad_()
    value = run(u)
    (want,) = torch.autograd.grad(value.square().sum(), u)
    torch.testing.assert_close(each, value.detach())
    torch.testing.assert_close(gradient, want)
    torch.testing.assert_close((gradient * v).sum(), (2 * value.detach() * slope).sum())
