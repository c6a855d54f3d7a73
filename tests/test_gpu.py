"""What only a CUDA device shows: values equal to the host's, no waits, captured graphs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoresde import VP, DiscreteVP, ScoreModel, compiled, draw, parameterization, sample
from scoresde.data import Scaling, Split
from scoresde.evaluation.metrics import METRICS
from scoresde.likelihood import (
    Exact,
    adaptive_log_likelihood,
    discrete_elbo,
    elbo,
    log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood.path import Orthogonal
from scoresde.nn import MLP, UNet
from scoresde.posterior import Linear, Measurement
from scoresde.registry import POSTERIORS, SELF_PACED, STEPS, build_step
from scoresde.samplers import BrownianPath, grids, per_sample_noise, solve_adaptive
from scoresde.solvers import solve_ode, solve_sde
from scoresde.training import Checkpoint, Plan, TrainState, checkpoint, fit, fsdp
from scoresde.training.batches import batches
from scoresde.training.checkpoint import DataDescription

HOST, DEVICE = torch.device("cpu"), torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
B, D = 3, 2
F64 = torch.float64
ALONG = [name for name in STEPS if name not in SELF_PACED]


def made(device: torch.device, sde=None) -> ScoreModel:
    """A small network in float64 with random weights."""
    torch.manual_seed(0)
    net = MLP(D, width=8, depth=1, embedding=4, classes=3).double()
    torch.nn.init.normal_(net.head.weight, std=0.3)
    return ScoreModel(net, sde or VP(), parameterization.edm(0.5)).to(device).eval()


def states(device: torch.device) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=F64).to(device)


def both(run, close: float = 1e-8) -> None:
    """``run(model, x)`` has equal results on the host and on the device."""
    want, got = (run(made(device), states(device)) for device in (HOST, DEVICE))
    assert got.device.type == DEVICE.type
    torch.testing.assert_close(got.cpu(), want, rtol=close, atol=close)


@contextmanager
def unwaiting():
    """CUDA raises where the host would wait for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Samplers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALONG)
def test_steps_are_those_of_the_host_and_do_not_wait(name):
    def run(model, x):
        ts, step = grids.log_snr(model.sde, 4), build_step(name, {}, 4)
        return sample(model.denoiser(label=1), x, ts, step, per_sample_noise(range(B)))

    both(run)
    model, x = made(DEVICE), states(DEVICE)
    denoiser, noise = model.denoiser(label=1), per_sample_noise(range(B))
    ts, step = grids.log_snr(model.sde, 4), build_step(name, {}, 4)
    sample(denoiser, x, ts, step, noise)
    with unwaiting():
        sample(denoiser, x, ts, step, noise)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_is_that_of_the_host(dtype):
    x = torch.empty(5, 7, dtype=dtype)
    t, s = torch.tensor([0.9, 0.3], dtype=F64)
    level, index = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2, 5, 7])
    found = []
    for device in (HOST, DEVICE):
        path, like = BrownianPath(range(5)), x.to(device)
        stream = per_sample_noise(range(5))
        parts = [stream(like), stream(like), path(like, t, s), path.cells(like, level, index)]
        found.append(torch.stack(parts).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
def test_adaptive_solvers_are_those_of_the_host(noisy):
    def run(model, x):
        noise = BrownianPath(range(B)) if noisy else None
        tolerance = 0.1 if noisy else 1e-4
        end = solve_adaptive(model.denoiser(), x, 1.0, 0.1, tolerance, tolerance, noise=noise)
        assert end.finished.all()
        return end.x

    both(run)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "fixed_adams"])
def test_torchdiffeq_is_that_of_the_host(method):
    both(lambda model, x: solve_ode(model.denoiser(), x, 1.0, 0.1, method=method).x, 1e-6)


def test_torchsde_without_noise_is_that_of_the_host():
    def run(model, x):
        return solve_sde(model.denoiser(), x, 1.0, 0.1, 10, eta=0.0, seed=0)

    both(run)


def test_drawn_samples_are_those_of_the_host():
    found = [draw(made(device), 5, shape=(D,), nfe=9, batch=2) for device in (HOST, DEVICE)]
    torch.testing.assert_close(found[1].x, found[0].x, rtol=1e-5, atol=1e-5)


# Compiled and captured ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior_samples_are_those_of_the_host(name):
    """In float64; the eigenvectors of particles have signs of their own on each device."""
    measured = Measurement(
        Linear(torch.tensor([[1.0, -0.5]])), torch.tensor([0.3], dtype=F64), 0.1
    )

    def drawn(device: torch.device) -> Tensor:
        method, x = POSTERIORS[name](), states(device)
        return method(made(device).denoiser(), measured, x, per_sample_noise(range(len(x))), 8)

    if POSTERIORS[name]().population:
        assert drawn(DEVICE).isfinite().all()
    else:
        torch.testing.assert_close(drawn(DEVICE).cpu(), drawn(HOST), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc"])
def test_compiled_and_captured_samples_are_the_eager_ones(capture, name):
    """Multistep methods keep what a graph has returned while it is replayed."""
    torch.manual_seed(0)
    net = UNet(3, width=32, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.0)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    model = ScoreModel(net, VP(), parameterization.edm(0.5)).to(DEVICE).eval()
    x = torch.randn(4, 3, 8, 8, device=DEVICE)
    ts, denoiser = grids.log_snr(model.sde, 8), model.denoiser()
    want = sample(denoiser, x, ts, build_step(name, {}, 8))
    fast = compiled(denoiser, capture=capture)
    for _ in range(3):  # the first compiles, the second records, the third replays
        got = sample(fast, x, ts, build_step(name, {}, 8))
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_drawing_compiled_is_drawing():
    model = made(DEVICE)
    want = draw(model, 5, shape=(D,), nfe=9, batch=2, label=[0, 1])
    got = draw(model, 5, shape=(D,), nfe=9, batch=2, label=[0, 1], compile=True)
    torch.testing.assert_close(got.x, want.x, rtol=1e-5, atol=1e-5)


# Likelihoods and metrics -------------------------------------------------------------------------


def signs(x: Tensor) -> Tensor:
    return torch.sign(per_sample_noise(range(B))(x)).unsqueeze(0)


LIKELIHOODS = {
    "path": lambda d, x: path_log_likelihood(d, x, Exact(), nodes=12).log_prob,
    "orthogonal": lambda d, x: path_log_likelihood(d, x, Orthogonal(signs(x)), nodes=12).log_prob,
    "adaptive": lambda d, x: adaptive_log_likelihood(d, x, rtol=1e-3, atol=1e-3).log_prob,
    "torchdiffeq": lambda d, x: log_likelihood(d, x).log_prob,
    "bound": lambda d, x: elbo(d, x, times=4, noise=per_sample_noise(range(B))).log_prob,
    "discrete": lambda d, x: (
        discrete_elbo(
            d, x, torch.linspace(1, 0.1, 6, dtype=F64), times=3, noise=per_sample_noise(range(B))
        ).log_prob
    ),
}


@pytest.mark.parametrize("sde", [VP(), DiscreteVP()], ids=["VP", "DiscreteVP"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_those_of_the_host(name, sde):
    want, got = (
        LIKELIHOODS[name](made(device, sde).denoiser(), states(device))
        for device in (HOST, DEVICE)
    )
    torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_those_of_the_host(name):
    x, y = torch.randn(2, 60, D, generator=torch.Generator().manual_seed(0), dtype=F64)

    def value(device):
        generator = torch.Generator().manual_seed(1)
        compare = METRICS[name].compare
        return compare(x.to(device), y.to(device) + 0.3, 2, generator, lambda: None).value

    assert value(DEVICE) == pytest.approx(value(HOST), rel=1e-3, abs=1e-3)


# Training ----------------------------------------------------------------------------------------

SPLIT = Split(torch.randint(0, 8, (40, 1, 4, 4), generator=torch.Generator().manual_seed(2)))
LEVELS = Scaling(8)
PLAN = Plan(steps=4, batch=8, lr=1e-2, prefetch=2, ema=(0.9,))


def untrained() -> ScoreModel:
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), embedding=4, dropout=0.0)
    return ScoreModel(net, VP(), parameterization.v)


def trained(device: torch.device, plan: Plan = PLAN) -> TrainState:
    model = untrained()
    # Split weights move by themselves.
    state = TrainState.of(model if plan.shard else model.to(device), plan, device)
    for _ in fit(state, plan, SPLIT, LEVELS):
        pass
    return state


def weights(state: TrainState) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for m in state.models for p in m.parameters()])


def test_training_is_that_of_the_host():
    torch.testing.assert_close(weights(trained(DEVICE)), weights(trained(HOST)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision):
    plan = Plan(steps=4, batch=8, precision=precision)
    assert weights(trained(DEVICE, plan)).isfinite().all()


def test_batches_for_the_device_are_pinned():
    found = list(batches(PLAN, SPLIT, LEVELS, VP(), DEVICE, 0))
    assert len(found) == PLAN.steps
    for batch in found:
        assert batch.x0.is_pinned()
        assert batch.eps.is_pinned()
        sent = batch.on(DEVICE)
        assert torch.equal(sent.x0.cpu(), batch.x0)
        assert sent.t.device == HOST


@pytest.mark.parametrize(("first", "then"), [(DEVICE, HOST), (HOST, DEVICE)])
def test_a_checkpoint_goes_on_on_another_device(tmp_path, first, then):
    half, whole = Plan(steps=2, batch=8), Plan(steps=4, batch=8)
    state = trained(first, half)
    data = DataDescription("levels", (1, 4, 4), LEVELS)
    parts = (state.model.state_dict(), state.ema.state_dict(), state.optimizer.state_dict())
    checkpoint.save(tmp_path / "half.pt", Checkpoint({}, data, state.step, *parts))
    found = checkpoint.load(tmp_path / "half.pt")
    other = TrainState.of(untrained().to(then), whole)
    other.model.load_state_dict(found.model)
    other.ema.load_state_dict(found.ema)
    other.optimizer.load_state_dict(found.optimizer)
    other.step = found.step
    for _ in fit(other, whole, SPLIT, LEVELS):
        pass
    torch.testing.assert_close(weights(other), weights(trained(HOST, whole)), rtol=0, atol=1e-4)


def test_split_weights_of_one_process_train_as_whole_ones():
    torch.distributed.init_process_group(
        "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1, device_id=DEVICE
    )
    try:
        state = trained(DEVICE, replace(PLAN, shard=True))
        got = fsdp.gathered(state.model.state_dict())
    finally:
        torch.distributed.destroy_process_group()
    for name, want in trained(HOST).model.state_dict().items():
        torch.testing.assert_close(got[name].cpu(), want, rtol=0, atol=1e-4)
