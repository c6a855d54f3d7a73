"""Everything runs with the state and the network on another device, and hardly waits for it.

The device is that of ``tests/elsewhere.py``. Its values are those of the host, so a result has to
be that of the host as well.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchsde
from torch import Tensor

from scoresde import VP, DiscreteVP, ScoreModel, draw, guidance, sample
from scoresde import parameterization as parameterizations
from scoresde.data import Scaling, Split
from scoresde.evaluation.metrics import METRICS
from scoresde.likelihood import (
    Exact,
    Hutchinson,
    adaptive_log_likelihood,
    discrete_elbo,
    elbo,
    log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood.dequantise import Decoder, TruncatedNormal, Uniform
from scoresde.likelihood.estimators import (
    AdaptiveFlow,
    DecodedVariational,
    DiscreteBound,
    Estimator,
    FlowEstimator,
    HutchPlusPlusTrace,
    Variational,
)
from scoresde.likelihood.path import Orthogonal
from scoresde.nn import MLP
from scoresde.posterior import GuideMethod, Linear, Mask, Measurement, Nonlinear, TwistedSMC
from scoresde.registry import POSTERIORS, SELF_PACED, STEPS, build_step
from scoresde.samplers import BrownianPath, ddpm, grids, per_sample_noise, solve_adaptive
from scoresde.samplers.adaptive import DORMAND_PRINCE, EXPONENTIAL
from scoresde.sde import sent
from scoresde.solvers import FIXED_STEP_METHODS, SDE_METHODS, solve_ode, solve_sde
from scoresde.training import Plan, TrainState, fit, loop, losses
from scoresde.training.loss_by_noise import LossByNoise
from scoresde.training.times import LogSNR, LossAware
from scoresde.training.vlb import Hybrid, Vlb
from tests.elsewhere import Elsewhere, Mixed, host

B, D = 3, 2
GRAY, LABELS = Scaling(8), torch.arange(12) % 3
ALONG = [name for name in STEPS if name not in SELF_PACED]


def made(sde=None, seed: int = 0) -> ScoreModel:
    """A small network with random weights, also in its last layer."""
    torch.manual_seed(seed)
    net = MLP(D, width=8, depth=1, embedding=4, classes=3)
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return ScoreModel(net, sde or VP(), parameterizations.edm(0.5)).eval()


def states(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1))


def both(run, *tensors: Tensor, sde=None, close: float = 1e-6):
    """``run(model, *tensors)`` on the host and on the device: the waits, and equal results."""
    want = run(made(sde), *tensors)
    with Elsewhere() as device:
        got = run(device.put(made(sde)), *(device.put(x) for x in tensors))
        waits = device.waits.copy()
        got = host(got)
    torch.testing.assert_close(got, want, rtol=close, atol=close)
    return waits


# The stand-in itself -----------------------------------------------------------------------------


def test_the_stand_in_raises_and_counts_as_a_gpu_does():
    x, y = states(), states()
    with Elsewhere() as device:
        away = device.put(x)
        assert away.device.type != "cpu"
        assert torch.equal(host(away * torch.tensor(2.0) + 1), x * 2 + 1)  # a scalar of the host
        assert torch.equal(host(away[torch.tensor(1)]), x[1])
        with pytest.raises(Mixed):
            away + y
        with pytest.raises(Mixed):
            torch.tensor([1.0, 2.0], device=away.device) + 1
        with pytest.raises(Mixed):
            torch.randn(3, device=away.device, generator=torch.Generator())
        with pytest.raises(Mixed):
            away.to("cpu", non_blocking=True)
        device.waits.clear()
        y.to(away.device, non_blocking=True)
        torch.zeros(3, device=away.device).add_(away[:, 0])
        assert device.waits == []
        for count, wait in enumerate(
            [
                lambda: float(away.sum()),
                lambda: bool((away > 0).all()),
                lambda: away.cpu(),
                lambda: y.to(away.device),
                lambda: away[away > 0],
                lambda: away.nonzero(),
                lambda: torch.equal(away, away),
                lambda: int(away[0, 0]),
                lambda: away.unique(),
            ],
            1,
        ):
            wait()
            assert len(device.waits) >= count


# Samplers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALONG)
def test_no_step_waits(name):
    def run(model, x):
        step = build_step(name, {}, 4)
        ts = grids.log_snr(model.sde, 4)
        return sample(model.denoiser(label=1), x, ts, step, per_sample_noise(range(B)))

    assert both(run, states()) == []


def test_no_step_waits_under_a_table_with_labels_and_one_path():
    def run(model, x):
        ts = grids.log_snr(model.sde, 4)
        denoiser = model.denoiser(label=torch.tensor([0, 1, 2]))
        return sample(denoiser, x, ts, build_step("dpmpp_sde", {}, 4), BrownianPath(range(B)))

    assert both(run, states(), sde=DiscreteVP()) == []


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interval": (0.5, 5.0)},
        {"scale": lambda ratio: 1 + ratio / (1 + ratio)},
        {"rescale": 0.5, "parallel": 0.2, "norm": 1.0},
        {"negative": {"label": 2}},
    ],
    ids=["scale", "interval", "schedule", "variants", "negative"],
)
def test_no_guide_waits(settings, per_sample):
    def run(model, x):
        denoiser = guidance.free(model, {"label": [0, 1, 2]}, **{"scale": 2.0} | settings)
        denoiser = guidance.classifier(lambda x, t: -(x**2).sum(1), 0.3)(denoiser)
        denoiser = guidance.clip(-3, 3)(guidance.dynamic_threshold(0.9)(denoiser))
        if per_sample:
            with torch.no_grad():
                return denoiser(x, sent(torch.tensor([0.1, 0.5, 0.9]), x.device))
        ts = grids.log_snr(model.sde, 4)
        return sample(denoiser, x, ts, build_step("dpmpp_2m", {}, 4))

    assert both(run, states()) == []


def test_drawing_waits_at_the_end_of_a_batch():
    """For its check and for the samples, whatever the number of steps."""
    want = draw(made(), 4, shape=(D,), nfe=12, label=[0, 2], batch=2)
    with Elsewhere() as device:
        model, waits = device.put(made()), []
        for nfe in (6, 12):
            device.waits.clear()
            got = draw(model, 4, shape=(D,), nfe=nfe, label=[0, 2], batch=2)
            waits.append(len(device.waits))
    assert waits == [4, 4]
    torch.testing.assert_close(got.x, want.x)


@pytest.mark.parametrize("pair", [DORMAND_PRINCE, EXPONENTIAL, None])
def test_an_adaptive_solver_waits_once_a_step(pair):
    calls = []

    def run(model, x):
        noise = BrownianPath(range(B)) if pair is None else None
        tol = 0.2 if pair is None else 1e-2
        end = solve_adaptive(
            model.denoiser(), x, 1.0, 0.1, tol, tol, noise=noise, pair=pair or DORMAND_PRINCE
        )
        assert end.finished.all()
        calls.append(end.nfe)
        return end.x

    waits = both(run, states())
    each = 2 if pair is None else pair.calls
    assert len(waits) == calls[-1] // each > 2


def test_dpm_adaptive_waits_once_a_step():
    calls = []

    def run(model, x):
        denoiser, made_calls = model.denoiser(), SimpleNamespace(n=0)

        def predict(x, t):
            made_calls.n += 1
            return denoiser(x, t)

        counted = replace(denoiser, predict=predict)
        end = sample(counted, x, grids.log_snr(model.sde, 1), build_step("dpm_adaptive", {}, 1))
        calls.append(made_calls.n)
        return end

    assert len(both(run, states())) == (calls[-1] - 2) // 6


@pytest.mark.parametrize("method", [m for m in FIXED_STEP_METHODS if "adams" not in m])
def test_a_fixed_step_of_torchdiffeq_waits_a_few_times_a_call(method):
    """It keeps its times beside the state, so ``float(lam)`` waits. Its Adams and adaptive methods
    make constants by ``torch.tensor(..., device=...)``, which waits and which is refused here.
    """
    calls = []

    def run(model, x):
        found = solve_ode(model.denoiser(), x, 1.0, 0.1, method=method, steps=5)
        calls.append(found.nfe)
        return found.x

    waits = both(run, states(), close=1e-5)
    assert len(waits) <= 3 * calls[-1] + 10


@pytest.mark.parametrize("method", SDE_METHODS)
def test_a_step_of_torchsde_does_not_wait(method, monkeypatch):
    def draw(size, dtype, device, seed):  # its own makes a generator of the device
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randn(size, dtype=dtype, generator=generator).to(device, non_blocking=True)

    monkeypatch.setattr(torchsde._brownian.brownian_interval, "_randn", draw)

    def run(model, x):
        return solve_sde(model.denoiser(), x, 1.0, 0.1, 5, method=method, seed=1)

    waits = both(run, states())
    assert len(waits) == 1  # the check of the end


# Likelihoods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("probing", ["exact", "orthogonal"])
def test_a_path_likelihood_waits_once(probing):
    def run(model, x):
        signs = torch.sign(per_sample_noise(range(B))(x.double()))
        probes = Exact() if probing == "exact" else Orthogonal(signs.unsqueeze(0))
        found = path_log_likelihood(model.denoiser(), x, probes, nodes=12, between=2)
        return found.log_prob

    assert len(both(run, states())) <= 1


@pytest.mark.parametrize("probing", ["exact", "hutchinson"])
def test_an_adaptive_likelihood_waits_once_a_step(probing):
    calls = []

    def run(model, x):
        signs = torch.sign(per_sample_noise(range(B))(x.double()))
        divergence = Exact() if probing == "exact" else Hutchinson(signs.unsqueeze(0))
        found = adaptive_log_likelihood(model.denoiser(), x, divergence, rtol=1e-2, atol=1e-2)
        calls.append(found.nfe)
        return found.log_prob

    assert len(both(run, states())) == calls[-1] // 6


def test_a_likelihood_by_torchdiffeq_runs_elsewhere():
    def run(model, x):
        return log_likelihood(model.denoiser(), x, method="rk4", steps=4).log_prob

    both(run, states(), close=1e-5)


@pytest.mark.parametrize("sde", [VP(), DiscreteVP()], ids=["VP", "DiscreteVP"])
def test_a_bound_waits_once(sde):
    def run(model, x):
        noise = per_sample_noise(range(B))
        return torch.stack(elbo(model.denoiser(), x, times=4, noise=noise)[:2])

    assert len(both(run, states(), sde=sde)) == 1


@pytest.mark.parametrize("times", [None, 3])
@pytest.mark.parametrize("levels", [None, Scaling(8)], ids=["continuous", "levels"])
def test_a_discrete_bound_waits_once(times, levels):
    def run(model, x):
        ts = torch.linspace(1, 0.2, 5, dtype=torch.float64)
        noise = per_sample_noise(range(B))
        found = discrete_elbo(
            model.denoiser(), x, ts, levels=levels, times=times, decodes=2, noise=noise
        )
        return torch.stack(found[:2])

    x = states() if levels is None else Scaling(8).encode(torch.arange(B * D).reshape(B, D))
    assert len(both(run, x)) == (0 if times is None else 1)


@pytest.mark.parametrize(
    ("estimator", "most"),
    [
        (Variational(times=4, dequantisation=Uniform()), 1),
        (DecodedVariational(times=4), 1),
        (DiscreteBound(steps=8, times=4), 1),
        (FlowEstimator(AdaptiveFlow(1e-2, 1e-2, HutchPlusPlusTrace()), Decoder()), 12),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Estimator) else "",
)
def test_estimators_wait_for_their_solver_only(estimator, most):
    def run(model, k):
        noise = per_sample_noise(range(B))
        return estimator(model.denoiser(), k, Scaling(8), noise).log_prob

    assert len(both(run, torch.arange(B * D).reshape(B, D), close=1e-5)) <= most


@pytest.mark.parametrize("law", [Uniform(), TruncatedNormal(), Decoder()])
def test_no_dequantisation_waits(law):
    def run(model, k):
        u = torch.special.ndtr(per_sample_noise(range(B))(k.double()))
        drawn = law.draw(k, u, Scaling(8), model.sde, 0.01)
        return torch.cat([drawn.x, drawn.weight.unsqueeze(1)], 1)

    assert both(run, torch.arange(B * D).reshape(B, D)) == []


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, losses.likelihood, losses.min_snr(), losses.edm()])
def test_no_loss_waits(weight):
    def run(model, x0, eps):
        t = torch.linspace(0.1, 0.9, B, dtype=torch.float64)
        loss = losses.dsm_loss(model, x0, t, eps, weight)
        gradients = torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True)
        return torch.cat([loss.detach(), *(g.flatten() for g in gradients if g is not None)])

    assert both(run, states(), states() ** 2) == []


class Twice(torch.nn.Module):
    """A network with a second output, for a variance."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        y = self.inner(x, noise, label)
        return torch.cat([y, y.tanh()], 1)


def varied(model: ScoreModel) -> ScoreModel:
    """The model with a learned variance."""
    return ScoreModel(Twice(model.net), model.sde, model.parameterization, variance=True)


@pytest.mark.parametrize("levels", [None, Scaling(8)], ids=["numbers", "levels"])
@pytest.mark.parametrize("learned", [False, True])
def test_no_bound_as_a_loss_waits(learned, levels):
    def run(model, x0, eps):
        model = varied(model) if learned else model
        t = torch.tensor([1 / 20, 0.3, 1.0], dtype=torch.float64)
        found = losses.predicted(model, x0, t, eps, {}, 0.1 * eps)
        loss = Hybrid()(found, x0, 20, losses.sigma2, levels) + Vlb()(found, x0, 20, None, levels)
        gradients = torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True)
        return torch.cat([loss.detach(), *(g.flatten() for g in gradients if g is not None)])

    assert both(run, states(), states() ** 2, close=1e-5) == []


def test_no_learned_draw_waits():
    def run(model, x):
        ts, noise = torch.linspace(1, 0.1, 5, dtype=torch.float64), per_sample_noise(range(B))
        return sample(varied(model).denoiser(), x, ts, ddpm("learned"), noise)

    assert both(run, states()) == []


def test_a_step_with_loss_aware_levels_waits_for_its_losses(monkeypatch):
    monkeypatch.setattr(loop, "dropout_from", lambda seed, device: nullcontext())
    plan = Plan(
        steps=4,
        batch=8,
        optimizer=lambda parameters, lr, weight_decay, fused: torch.optim.Adam(
            parameters, lr=lr, foreach=False
        ),
        objective=Hybrid(),
        times=LossAware(3, history=2),
        offset_noise=0.1,
        input_noise=0.1,
    )

    def run(model):
        state = TrainState.of(varied(model), plan)
        list(fit(state, plan, Split(torch.arange(12 * D).reshape(12, D), LABELS), GRAY))
        assert (state.history.seen >= 2).all()
        return torch.cat([p.detach().flatten() for p in state.model.parameters()])

    waits = [wait for wait in both(run, close=1e-4) if "training/loop.py" in wait]
    assert len(waits) == 2 * plan.steps


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_step_waits_once(monkeypatch, accumulate):
    monkeypatch.setattr(loop, "dropout_from", lambda seed, device: nullcontext())

    def adam(parameters, lr, weight_decay, fused):  # a stand-in has no fused kernels
        return torch.optim.Adam(parameters, lr=lr, foreach=False)

    plan = Plan(
        steps=3,
        batch=8,
        accumulate=accumulate,
        optimizer=adam,
        ema=(0.9, 0.99),
        posthoc=(0.1,),
        weighting=losses.sigma2,
        learned_weight=True,
        classes=3,
        times=LogSNR(),
    )

    def run(model):
        state = TrainState.of(model, plan)
        losses_seen = LossByNoise(model.sde)
        for metrics in fit(state, plan, Split(torch.arange(12 * D).reshape(12, D), LABELS), GRAY):
            losses_seen.add(metrics.t, metrics.losses)
        found = [p for each in state.models for p in each.parameters()]
        return torch.cat([p.detach().flatten() for p in found])

    waits = [wait for wait in both(run) if "training/loop.py" in wait]
    assert len(waits) == plan.steps


# Evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metrics_take_samples_of_any_device(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, D, generator=generator)

    def value(x, y):
        compare = METRICS[name].compare
        found = compare(x, y + 0.3, 2, torch.Generator().manual_seed(1), lambda: None)
        return found.value

    want = value(x, y)
    with Elsewhere() as device:
        assert value(device.put(x), device.put(y)) == pytest.approx(want, rel=1e-6)


# Posteriors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matrix", "mask", "function"])
def test_particles_do_not_wait_in_their_loop(kind: str):
    """But for factorisations, what is read back does not grow with the number of calls."""
    given = measurement(kind)

    def waits(nfe: int) -> int:
        def run(model: ScoreModel, x: Tensor) -> Tensor:
            noise = per_sample_noise(range(len(x)))
            return TwistedSMC()(model.denoiser(), given, x, noise, nfe)

        return len([wait for wait in both(run, states(), close=1e-2) if "linalg" not in wait])

    assert waits(3) == waits(9)


def measurement(kind: str) -> Measurement:
    operator, y = {
        "matrix": (Linear(torch.tensor([[1.0, -0.5]])), torch.tensor([0.3])),
        "mask": (Mask(torch.tensor([True, False])), torch.tensor([0.3, 0.0])),
        "function": (Nonlinear(lambda x: x[:, :1].exp()), torch.tensor([1.3])),
    }[kind]
    return Measurement(operator, y, 0.1)


@pytest.mark.parametrize(
    "name", [name for name, make in POSTERIORS.items() if not make().population]
)
@pytest.mark.parametrize("kind", ["matrix", "mask", "function"])
def test_methods_of_posteriors_do_not_wait_in_their_loop(name: str, kind: str):
    """What is measured lies on the host; it is sent, and nothing is read back."""
    method, given = POSTERIORS[name](), measurement(kind)
    if method.linear and kind == "function":
        return

    def run(model: ScoreModel, x: Tensor) -> Tensor:
        noise = per_sample_noise(range(len(x)))
        if isinstance(method, GuideMethod):
            step, grid = method.sampler(9)
            own = method.guide(given)(model.denoiser())
        else:
            step, grid, own = method.step(given, ddpm()), grids.log_snr, model.denoiser()
        return sample(own, x, grid(model.sde, 8), step, noise)

    assert both(run, states(), close=1e-3) == []
