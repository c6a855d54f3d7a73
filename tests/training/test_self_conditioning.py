"""Self-conditioning: an evaluation is two network calls, a function of x and t alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import VP, ScoreModel
from scoresde.conditions import Label, Picture, sizes
from scoresde.config import build_model, load_config
from scoresde.data import Scaling, Split, dataset_of
from scoresde.guidance import free
from scoresde.nn import MLP, LevelMean, UNet
from scoresde.parameterization import v
from scoresde.runs.cost import flops
from scoresde.runs.load import load_run
from scoresde.runs.log import Quiet
from scoresde.training import DataDescription, Plan, TrainState, dsm_loss
from scoresde.training.checkpoint import CheckpointError
from scoresde.training.loop import update
from scoresde.training.losses import predicted

F64 = torch.float64
T = torch.tensor(0.5, dtype=F64)
SIZE = (2, 4, 4)


def drawn(net: nn.Module) -> nn.Module:
    """The network with weights that are not zero, so that the estimate has an effect."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2, generator=generator)
    return net


def unet(**told: int | None) -> nn.Module:
    return drawn(UNet(2, width=4, heads=1, attention=(), **told))


def model(dropout: float = 0.1) -> ScoreModel:
    """A model of a class and a small picture, with channels for its estimate."""
    conditions = {
        "kind": Label(["cat", "dog"], dropout=dropout),
        "small": Picture(SIZE, of="low", factor=2),
    }
    told = sizes(conditions)
    net = unet(**{**told, "concat": told["concat"] + 2})
    return ScoreModel(net, VP(), v, self_conditioning=True, conditions=conditions).double().eval()


def plain() -> ScoreModel:
    return ScoreModel(unet(concat=2), VP(), v, self_conditioning=True)


def states(n: int = 3) -> torch.Tensor:
    return torch.randn(n, *SIZE, generator=torch.Generator().manual_seed(1), dtype=F64)


@torch.no_grad()
def test_the_prediction_is_two_calls_of_the_network_and_the_pictures_come_first():
    m, x = model(), states()
    said = {"kind": "dog", "small": torch.linspace(-1, 1, 8).reshape(2, 2, 2)}
    c = m.parameterization(m.sde, T)
    told = m.told_of(x, m.read(**said))
    pictures = told.pop("concat")
    assert pictures.shape[1] == 3

    def by_hand(estimate: torch.Tensor) -> torch.Tensor:
        beside = torch.cat([pictures, estimate], 1)
        found = m.net(c.inp * x, c.noise.expand(3), **told, concat=beside)
        return c.skip * x + c.out * found

    once = by_hand(torch.zeros_like(x))
    twice = by_hand(once)
    torch.testing.assert_close(m.denoiser(**said)(x, T), twice)
    assert (twice - once).abs().max() > 1e-3
    raw = m(x, T.expand(3), **m.read(**said))
    torch.testing.assert_close(c.skip * x + c.out * raw, twice)


@torch.no_grad()
def test_samples_do_not_depend_on_their_batch():
    m, x = model(), states()
    for denoiser in (m.denoiser(kind="cat"), m.denoiser(kind=["cat", "dog", "dog"])):
        whole = denoiser(x, T)
        for k in range(3):
            rows = torch.tensor([k])
            torch.testing.assert_close(denoiser.among(rows, 3)(x[rows], T), whole[rows])
    m = plain().eval()
    few, many = (ss.draw(m, seeds=range(4), shape=SIZE, nfe=3, batch=b) for b in (1, 4))
    torch.testing.assert_close(few.x, many.x)


@torch.no_grad()
def test_all_conditions_of_guidance_are_two_calls():
    m, x, calls = model(), states(), []
    m.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    guided = free(m, {"kind": "dog"}, scale=2.0)(x, T)
    assert calls == [6, 6]
    torch.testing.assert_close(guided, 2 * m.denoiser(kind="dog")(x, T) - m.denoiser()(x, T))


def test_a_likelihood_differentiates_both_calls():
    m, x = plain().double().eval(), states(1)
    jacobian = torch.autograd.functional.jacobian(lambda x: m.denoiser()(x, T), x).reshape(32, 32)
    step = 1e-5 * torch.eye(32, dtype=F64).reshape(32, *SIZE)
    with torch.no_grad():
        up, down = (m.denoiser()(x + s * step, T).reshape(32, 32) for s in (1, -1))
    torch.testing.assert_close(jacobian, (up - down).T / 2e-5, atol=1e-8, rtol=1e-6)


def test_an_example_is_trained_with_its_estimate_held_constant_or_with_zeros():
    m, x0 = plain().double().eval(), states()
    t, eps = torch.tensor([0.1, 0.5, 0.9], dtype=F64), states().flip(0)
    without = ScoreModel(m.net, VP(), v)  # the same network, told zeros
    zeros, ones = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    own = list(m.net.parameters())

    def gradient(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss.sum(), own, allow_unused=True))

    plainly = dsm_loss(without, x0, t, eps)
    none = predicted(m, x0, t, eps, {}, estimated=zeros).loss(None)
    torch.testing.assert_close(none, plainly)
    torch.testing.assert_close(gradient(none), gradient(plainly))
    each = predicted(m, x0, t, eps, {}, estimated=ones).loss(None)
    torch.testing.assert_close(each, dsm_loss(m, x0, t, eps))
    x = m.sde.perturb(x0, t, eps)
    c = m.parameterization(m.sde, t)
    wide = {k: y.view(3, 1, 1, 1) for k, y in c._asdict().items()}
    estimate = (wide["skip"] * x + wide["out"] * without(x, t)).detach()
    held = dsm_loss(without, x0, t, eps, concat=estimate)
    torch.testing.assert_close(each, held)
    torch.testing.assert_close(gradient(each), gradient(held))
    mixed = predicted(m, x0, t, eps, {}, estimated=torch.tensor([True, False, True])).loss(None)
    torch.testing.assert_close(mixed, torch.stack([each[0], none[1], each[2]]))


PLAN = Plan(steps=4, batch=8, lr=1e-3, seed=3)
DATA = Split(torch.randint(0, 17, (20, *SIZE), generator=torch.Generator().manual_seed(2)).byte())


def test_half_of_the_examples_are_trained_with_it_by_seed_and_step(monkeypatch):
    seen = []

    def spy(*args, estimated=None, **named):
        seen.append(estimated)
        return outputs(*args, estimated=estimated, **named)

    state = TrainState.of(plain(), PLAN)
    outputs = state.model.outputs
    monkeypatch.setattr(state.model, "outputs", spy)
    plan = replace(PLAN, batch=200)
    for step in (0, 0, 1):
        state.step = step
        update(state, plan, DATA, Scaling(17))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert all(60 < int(each.sum()) < 140 for each in seen)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_weight_has_a_gradient(precision):
    m = plain()
    state = TrainState.of(m, replace(PLAN, precision=precision))
    update(state, replace(PLAN, precision=precision), DATA, Scaling(17))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())


NETWORK = {"kind": "unet", "width": 4, "heads": 1, "attention": [], "dropout": 0.1}
RUN = {
    "network": NETWORK,
    "self_conditioning": True,
    "data": {"kind": "digits"},
}
SETTINGS = {"batch": 8, "log_every": 1, "checkpoint_every": 2, "holdout": 0}


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def train(steps, out, **more):
        named = {"steps": steps, "out": tmp_path / out, "listener": Quiet(), **SETTINGS, **more}
        return ss.train(RUN, dataset_of(DATA.x, layout="NCHW"), **named)

    whole = train(4, "whole")
    train(2, "parts")
    resumed = train(4, "parts", resume=True)
    assert whole.model.self_conditioning
    own, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(own[k], theirs[k]) for k in own)
    loaded = load_run(tmp_path / "whole").model
    x = torch.zeros(1, *SIZE)
    assert torch.equal(loaded.denoiser()(x, T), whole.model.denoiser()(x, T))


def test_a_model_of_ones_own_is_loaded_as_it_was_trained(tmp_path):
    m = ss.train(
        plain(),
        dataset_of(DATA.x, layout="NCHW"),
        steps=1,
        out=tmp_path,
        listener=Quiet(),
        **SETTINGS,
    ).model
    with pytest.raises(CheckpointError, match="trained with self_conditioning=true"):
        load_run(tmp_path, model=ScoreModel(unet(concat=2), VP(), v))
    assert load_run(tmp_path, model=plain()).model.self_conditioning
    assert m.self_conditioning


@pytest.mark.parametrize("head", ["value", "levels", "variance"])
@pytest.mark.parametrize("kind", ["unet", "ddpmpp", "dit", "edm2"])
def test_it_works_with_every_head_of_every_network_for_images(kind, head):
    small = {
        "unet": {"width": 4, "heads": 1},
        "ddpmpp": {"width": 4, "multipliers": [1, 2], "blocks": 1, "attention": []},
        "dit": {"width": 16, "depth": 1, "heads": 2},
        "edm2": {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": []},
    }[kind]
    more = {
        "levels": {"parameterization": "x0", "train.dither": False},
        "variance": {"train.objective": "hybrid", "train.times.kind": "levels"},
    }.get(head, {})
    keys = {f"network.{key}": value for key, value in small.items()}
    named = {"self_conditioning": True, "network.kind": kind, "network.head": head}
    config = load_config(None, {**named, **keys, **more})
    m = build_model(config, DataDescription("toy", SIZE, Scaling(5))).eval()
    drawn(m.net)
    calls = []
    m.net.register_forward_pre_hook(lambda net, args, named: calls.append(named["concat"]),
                                    with_kwargs=True)  # fmt: skip
    x = states().float()
    with torch.no_grad():
        found = m.denoiser().predict.both(x, T)
    assert found[0].shape == x.shape
    assert (found[1] is None) == (head != "variance")
    assert not calls[0].any()
    assert calls[1].any()
    assert len(calls) == 2


def test_operations_are_of_two_passes_forward_and_one_backward():
    of = [
        flops(ScoreModel(unet(concat=2), VP(), v, self_conditioning=told), SIZE, None)
        for told in (False, True)
    ]
    assert 1.3 < of[1] / of[0] < 1.4


def test_networks_that_cannot_be_told_are_refused():
    for net in (UNet(2, width=4, heads=1), MLP(2), LevelMean(MLP(2), torch.zeros(3))):
        with pytest.raises(ValueError, match="self_conditioning: this network takes no estimate"):
            ScoreModel(net, VP(), v, self_conditioning=True)
    with pytest.raises(ValueError, match="takes pictures"):  # of another number of channels
        ScoreModel(unet(concat=1), VP(), v, self_conditioning=True)(states().float(), T.expand(3))
    with pytest.raises(ValueError, match="self_conditioning=true is for images"):
        load_config(None, {"self_conditioning": True, "network": "mlp"})
