"""A denoiser is one graph for all times, and compiled sampling is sampling."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from scoresde import VP, ScoreModel, compiled, draw, guidance
from scoresde import denoiser as denoisers
from scoresde import parameterization as parameterizations
from scoresde.nn import MLP, UNet
from scoresde.registry import PARAMETERIZATIONS

F64 = torch.float64
TIMES = torch.linspace(0.02, 0.9, 10, dtype=F64)


@pytest.fixture(autouse=True)
def _forgetful():
    """Compiled code of one test is none of another's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(sde, parameterization) -> ScoreModel:
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1, embedding=4, classes=3)
    torch.nn.init.normal_(net.head.weight)
    return ScoreModel(net, sde, parameterization).eval()


@pytest.fixture
def counter(monkeypatch) -> CompileCounter:
    """Counts the graphs in place of a compiler."""
    found, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(
        denoisers.torch, "compile", lambda f, mode=None: compile(f, backend=found, fullgraph=True)
    )
    return found


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_denoiser_is_one_graph_for_all_times(sde, counter, per_sample):
    x = torch.randn(3, 2)
    denoiser = made(sde, parameterizations.v).denoiser(label=torch.tensor([0, 1, 2]))
    fast = compiled(denoiser)
    with torch.no_grad():
        for t in TIMES:
            t = t.expand(3) * torch.tensor([1, 0.9, 0.8]) if per_sample else t
            torch.testing.assert_close(fast(x, t), denoiser(x, t))
    assert counter.frame_count == 1


def nearest_origin(x, t):
    return -(x**2).sum(1)


GUIDED = {
    "scale": {},
    "interval": {"interval": (0.2, 3.0)},
    "schedule": {"scale": lambda ratio: 1 + ratio / (1 + ratio)},
    "variants": {"rescale": 0.5, "parallel": 0.2, "norm": 1.0},
    "negative": {"negative": {"label": 1}},
}


@pytest.mark.parametrize("name", [*GUIDED, "classifier", "clip", "dynamic_threshold"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_guided_denoiser_is_one_graph_for_all_times(counter, name, per_sample):
    model, own = made(VP(), parameterizations.v), {"label": torch.tensor([0, 1, 2])}
    if name in GUIDED:
        denoiser = guidance.free(model, own, **{"scale": 2.0} | GUIDED[name])
    else:
        guide = {
            "classifier": guidance.classifier(nearest_origin),
            "clip": guidance.clip(),
            "dynamic_threshold": guidance.dynamic_threshold(0.9),
        }[name]
        denoiser = guide(model.denoiser(**own))
    fast, x = compiled(denoiser), torch.randn(3, 2)
    with torch.no_grad():
        for t in TIMES:
            t = t.expand(3) * torch.tensor([1, 0.9, 0.8]) if per_sample else t
            torch.testing.assert_close(fast(x, t), denoiser(x, t))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_parameterization_is_one_graph(counter, name):
    fast = compiled(made(VP(), PARAMETERIZATIONS[name]()).denoiser())
    with torch.no_grad():
        for t in TIMES:
            fast(torch.randn(3, 2), t)
    assert counter.frame_count == 1


def test_a_velocity_is_one_graph(sde):
    counter, x = CompileCounter(), torch.randn(3, 2)
    field = made(sde, parameterizations.v).denoiser().velocity
    fast = torch.compile(field, backend=counter, fullgraph=True)
    with torch.no_grad():
        for t in TIMES:
            torch.testing.assert_close(fast(x, t), field(x, t))
    assert counter.frame_count == 1


def test_drawing_compiles_once(counter):
    """The last batch is smaller, and is filled up."""
    model = made(VP(), parameterizations.v)
    ask = partial(draw, model, 7, shape=(2,), nfe=6, label=[0, 1, 2], batch=2)
    want, got = ask(), ask(compile=True)
    torch.testing.assert_close(got.x, want.x)
    assert got.nfe == want.nfe
    assert counter.frame_count == 1


@pytest.mark.slow
def test_samples_of_a_compiled_network():
    """By the compiler itself."""
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=1, dropout=0.0)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    model = ScoreModel(net, VP(), parameterizations.edm(0.5)).eval()
    ask = partial(draw, model, 2, shape=(1, 4, 4), nfe=6, step="heun")
    torch.testing.assert_close(ask(compile=True).x, ask().x, rtol=1e-3, atol=1e-4)
