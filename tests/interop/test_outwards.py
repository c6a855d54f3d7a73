"""Our models as D(x, sigma), and our samplers as schedulers."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from scoresde import EDM, VE, VP, Cosine, DiscreteVP, LinearFlow, SubVP, sample, wrap
from scoresde.interop import as_scheduler, as_sigma_denoiser
from scoresde.registry import SELF_PACED, STEPS, build_step
from scoresde.samplers import DDIM, Churned, ddpm, dpmpp_2m, grids, per_sample_noise
from scoresde.testing import Gaussian

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), LinearFlow(), DiscreteVP()]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_d_of_sigma_is_one_function_for_every_process(sde):
    law = Gaussian(torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([0.3, 0.8], dtype=F64))
    d = as_sigma_denoiser(law.denoiser(sde))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for sigma in (torch.tensor(0.3, dtype=F64), torch.tensor([0.05, 0.3, 2.0, 9.0], dtype=F64)):
        square = sigma.reshape(-1, 1) ** 2
        exact = law.mean + law.cov / (law.cov + square) * (x - law.mean)
        torch.testing.assert_close(d(x, sigma), exact, rtol=1e-9, atol=1e-9)
    assert 0 < d.sigma_min < 0.1 < 9 < d.sigma_max
    with pytest.raises(ValueError, match="knows 0 to"):
        d(x, torch.tensor(2 * d.sigma_max))
    for bad in (torch.tensor(-1.0), torch.tensor(float("nan")), torch.ones(len(x) + 1)):
        with pytest.raises(ValueError, match="sigma: "):
            d(x, bad)
    with pytest.raises(ValueError, match="one a sample"):
        d(x, torch.ones(4, 1))
    with pytest.raises(ValueError, match="label: conditions"):
        as_sigma_denoiser(law.denoiser(sde), label=1)


def test_the_sampler_of_k_diffusion_draws_the_law():
    """Euler's steps in sigma, as k-diffusion writes them, are our DDIM."""
    sde = VP()
    law = Gaussian(torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([0.3, 0.8], dtype=F64))
    denoiser = law.denoiser(sde)
    d, ts = as_sigma_denoiser(denoiser), grids.log_snr(sde, 20)
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    sigmas = [*(sde.sigma(ts) / sde.alpha(ts)), torch.tensor(0.0, dtype=F64)]
    x = start / sde.alpha(ts[0])
    for sigma, following in pairwise(sigmas):
        slope = (x - d(x, sigma * x.new_ones(len(x)))) / sigma
        x = x + slope * (following - sigma)
    torch.testing.assert_close(x, sample(denoiser, start, ts, DDIM()), rtol=1e-9, atol=1e-9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(0.3 * torch.eye(4, dtype=F64))

    def forward(self, x, noise, variance=False):
        return torch.tanh(x @ self.w + 0.001 * noise.reshape(-1, 1).to(x))


def run(scheduler, net, x, n, **said):
    """The loop of every pipeline."""
    scheduler.set_timesteps(n, device="cpu")
    x = x * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = net(scheduler.scale_model_input(x, t), t.expand(len(x)).to(F64))
            x = scheduler.step(output, t, x, **said).prev_sample
    return x


START = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("name", [name for name in STEPS if name not in SELF_PACED])
@pytest.mark.parametrize("ends", ["clean", "early"])
def test_every_step_in_their_loop(name, ends):
    net, step = Net(), build_step(name, {}, 9)
    model = wrap(net, DiscreteVP())
    grid = grids.trailing(1000) if ends == "early" else lambda sde, n: _to_zero(sde, n)
    scheduler = as_scheduler(model, step, grid, per_sample_noise(range(3)))
    theirs = run(scheduler, net, START, 10)
    ts = grid(model.sde, 9 if ends == "early" else 10)
    x = START * scheduler.init_noise_sigma
    ours = sample(model.denoiser(), x, ts, step, per_sample_noise(range(3)))
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)
    if scheduler.timesteps.dtype == torch.int64:
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)


def _to_zero(sde, n):
    return torch.cat([grids.trailing(1000)(sde, n)[:n], torch.zeros(1, dtype=F64)])


def test_scaled_inputs():
    """Of EDM the network sees x scaled, as in ScoreModel."""
    net = Net()
    model = wrap(net, {"_class_name": "EDMEulerScheduler"})
    scheduler = as_scheduler(model, dpmpp_2m(), grids.karras())
    theirs = run(scheduler, net, START, 10)
    ours = sample(model.denoiser(), 80.0 * START, grids.karras()(model.sde, 9), dpmpp_2m())
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_in_their_loop():
    net = Net()

    def both(x, noise):
        return torch.cat([net(x, noise), torch.sin(x)], 1)

    model = wrap(both, DiscreteVP(), variance=True)
    scheduler = as_scheduler(
        model, ddpm("learned"), grids.trailing(1000), per_sample_noise([1] * 3)
    )
    theirs = run(scheduler, both, START, 8)
    x = START * scheduler.init_noise_sigma
    ts = grids.trailing(1000)(model.sde, 7)
    with torch.no_grad():
        ours = sample(model.denoiser(), x, ts, ddpm("learned"), per_sample_noise([1] * 3))
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="learned variance"):
        run(scheduler, net, START, 8)


def test_draws_of_the_generators_of_the_pipeline():
    net = Net()
    scheduler = as_scheduler(DiscreteVP(), ddpm(), grids.trailing(1000))
    seeded = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    first = run(scheduler, net, START, 6, generator=seeded())
    torch.testing.assert_close(run(scheduler, net, START, 6, generator=seeded()), first)
    alone = run(scheduler, net, START[1:2], 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone, first[1:2])


def test_a_run_from_a_noised_picture():
    """From a place in timesteps it is the end of the grid."""
    net = Net()
    model = wrap(net, DiscreteVP())
    scheduler = as_scheduler(model, DDIM(), grids.trailing(1000))
    scheduler.set_timesteps(10)
    clean, noise = START, torch.ones_like(START)
    ts = grids.trailing(1000)(model.sde, 9)
    x = scheduler.add_noise(clean, noise, scheduler.timesteps[4:5].expand(3))
    torch.testing.assert_close(x, model.sde.perturb(clean, ts[4], noise))
    ours = sample(model.denoiser(), x, ts[4:], DDIM())
    with torch.no_grad():
        for t in scheduler.timesteps[4:]:
            output = net(scheduler.scale_model_input(x, t), t.expand(3).to(F64))
            x, *_ = scheduler.step(output, t, x, return_dict=False)
    torch.testing.assert_close(x, ours, rtol=1e-10, atol=1e-10)


def test_a_step_that_adds_noise_first():
    """Its network calls are not at the state, but where ``step`` says."""
    net, step = Net(), Churned(DDIM(), s_churn=2.0, steps=8)
    model = wrap(net, DiscreteVP())
    scheduler = as_scheduler(model, step, grids.trailing(1000), per_sample_noise(range(3)))
    theirs = run(scheduler, net, START, 8)
    x, ts = START * scheduler.init_noise_sigma, grids.trailing(1000)(model.sde, 7)
    ours = sample(model.denoiser(), x, ts, step, per_sample_noise(range(3)))
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert scheduler.timesteps[1] > 874  # of trailing


class Moving:
    """A step whose first network call is elsewhere."""

    order = nfe_per_step = 1

    def __call__(self, denoiser, x, t, s, state, noise):
        return denoiser(x + 1, t), None


def test_what_is_refused_in_their_loop():
    net = Net()
    scheduler = as_scheduler(DiscreteVP(), DDIM(), grids.trailing(1000))
    with pytest.raises(ValueError, match="set_timesteps first"):
        scheduler.step(START, 1, START)
    run(scheduler, net, START, 4)
    with pytest.raises(ValueError, match="ended"):
        scheduler.step(START, 1, START)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="none of timesteps"):
        scheduler.step(START, 3, START)
    with pytest.raises(ValueError, match="model_output"):
        scheduler.step(START[:, :1], 999, START)
    with pytest.raises(ValueError, match="eta"):
        scheduler.step(START, 999, START, eta=0.5)
    with pytest.raises(ValueError, match="moves x before"):
        as_scheduler(DiscreteVP(), Moving(), grids.trailing(1000)).set_timesteps(4)
    two = as_scheduler(DiscreteVP(), build_step("dpm_2", {}, 4), grids.trailing(1000))
    two.set_timesteps(4)
    two.set_begin_index(1)
    with pytest.raises(ValueError, match="inside a step"):
        two.step(START, two.timesteps[1], START)


def test_half_precision_keeps_its_history_in_float32():
    net = Net().float()
    scheduler = as_scheduler(DiscreteVP(), dpmpp_2m(), grids.trailing(1000))
    scheduler.set_timesteps(6)
    x = START.half()
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = net(x.float(), t.expand(3)).half()
            x = scheduler.step(output, t, x).prev_sample
    assert x.dtype == torch.float16
    wide = run(scheduler, Net(), START, 6)
    torch.testing.assert_close(x.double(), wide, rtol=5e-3, atol=5e-3)
