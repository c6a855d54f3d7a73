"""Against the schedulers of diffusers, from the same start and the same noise, to 1e-4.

    pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity

An exact score, the same table of betas, thresholding and clipping off. Where their samples differ
from ours by design, a test says by what (docs/parity.md).
"""

from dataclasses import replace
from itertools import count

import pytest
import torch

from scoresde import DiscreteVP, betas, sample
from scoresde.samplers import (
    DDIM,
    EPS,
    X0,
    Heun,
    ddpm,
    deis,
    dpm_solver,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler_a,
    lms,
    unipc,
)
from scoresde.testing import Mixture

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("their_warnings")]
F64 = torch.float64
LEVELS = 1000


def problem():
    """Three Gaussians in 6 dimensions."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(3, 6, generator=g, dtype=F64)
    return Mixture(torch.ones(3, dtype=F64), means, 0.2 + 0.3 * torch.rand(3, 6, generator=g))


def table(kind="linear"):
    """The betas of DDPM, and of Stable Diffusion."""
    if kind == "linear":
        return {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Both:
    """A scheduler of theirs, and our process, denoiser, levels and start for it."""

    def __init__(self, scheduler, n, dtype=F64, prediction="epsilon"):
        self.dtype = dtype
        self.theirs, self.prediction = scheduler, prediction
        scheduler.set_timesteps(n)
        one = torch.ones(1, dtype=F64)
        # Whether their state is x / alpha.
        self.in_sigma = bool(scheduler.scale_model_input(one, scheduler.timesteps[0]) != 1)
        scheduler.set_timesteps(n)
        self.sde = DiscreteVP(tuple(scheduler.betas.double().tolist()))
        self.denoiser = problem().denoiser(self.sde)
        z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
        self.start = z * float(scheduler.init_noise_sigma)
        self.noise = torch.randn(200, 5, 6, generator=torch.Generator().manual_seed(2), dtype=F64)
        self.levels = [float(t) for t in scheduler.timesteps]

    def time(self, level):
        return torch.tensor((level + 1) / LEVELS, dtype=F64)

    def model(self, x, level):
        """What their network would return for x of our process."""
        t = self.time(float(level))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        x0 = self.denoiser(x, t)
        eps = (x - alpha * x0) / sigma
        return eps if self.prediction == "epsilon" else alpha * eps - sigma * x0

    def run_theirs(self, monkeypatch, last=True):
        """Their loop, with our draws in place of theirs; perhaps without its last step."""
        draws = count()
        module = __import__(type(self.theirs).__module__, fromlist=["x"])
        if hasattr(module, "randn_tensor"):
            replacement = lambda shape, **k: self.noise[next(draws)].to(self.dtype)  # noqa: E731
            monkeypatch.setattr(module, "randn_tensor", replacement)
        x = self.start.to(self.dtype)  # UniPC solves its weights in single precision
        for level in self.theirs.timesteps[: None if last else -1]:
            inp = self.theirs.scale_model_input(x, level)
            output = self.model(inp.double(), level).to(x)
            x = self.theirs.step(output, level, x).prev_sample
        return x.double()

    def run_ours(self, step, last=True):
        """Ours over the levels they visited, and the denoising call for their step to no noise."""
        draws = count()
        ts = torch.stack([self.time(level) for level in dict.fromkeys(self.levels)])
        x = self.start * float(self.sde.alpha(ts[0])) if self.in_sigma else self.start
        noise = lambda x, t=None, s=None: self.noise[next(draws)]  # noqa: E731
        x = sample(self.denoiser, x, ts, step, noise, denoise=last)
        return x / self.sde.alpha(ts[-1]) if self.in_sigma and not last else x


def agree(ours, theirs, tolerance=1e-4):
    gap = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert gap.max() < tolerance, f"{gap.max():.1e}"


def differ(ours, theirs, least):
    gap = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    assert gap.max() > least, f"{gap.max():.1e}"


TABLES = pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
SPACINGS = pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])


@TABLES
@SPACINGS
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim(diffusers, monkeypatch, kind, spacing, eta, prediction):
    scheduler = diffusers.DDIMScheduler(
        **table(kind), clip_sample=False, timestep_spacing=spacing, prediction_type=prediction
    )
    both = Both(scheduler, 20, prediction=prediction)
    step = scheduler.step
    scheduler.step = lambda *a: step(*a, eta=eta)
    ours, theirs = both.run_ours(DDIM(eta)), both.run_theirs(monkeypatch)
    if spacing == "linspace":
        # They step to t - 1000 / 20, and call the network at the next of their levels, another.
        differ(ours, theirs, 1e-3)
    else:
        agree(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_from_no_signal_at_all(diffusers, monkeypatch, eta):
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    both = Both(scheduler, 20, prediction="v_prediction")
    step = scheduler.step
    scheduler.step = lambda *a: step(*a, eta=eta)
    agree(both.run_ours(DDIM(eta)), both.run_theirs(monkeypatch), 1e-5)


# Their name, and our table; their Laplace has a square root too many.
BETAS = {
    "linear": betas.linear(),
    "scaled_linear": betas.scaled_linear(1e-4, 0.02),
    "squaredcos_cap_v2": betas.cosine(),
    "sigmoid": betas.sigmoid(),
    "laplace": betas.laplace(published=True),
}


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_tables(diffusers, kind, zero_terminal):
    """Theirs are in single precision."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=kind, beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=zero_terminal
    )
    ours = BETAS[kind](LEVELS)
    ours = torch.tensor(betas.zero_terminal(ours) if zero_terminal else ours, dtype=F64)
    torch.testing.assert_close(scheduler.betas.double(), ours, rtol=2e-4, atol=1e-6)
    bars = torch.cumprod(1 - ours, 0)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), bars, rtol=1e-3, atol=1e-6)


def test_the_exponential_table(diffusers):
    scheduler = diffusers.HeunDiscreteScheduler(beta_schedule="exp")
    ours = torch.tensor(betas.exponential()(LEVELS), dtype=F64)
    torch.testing.assert_close(scheduler.betas.double(), ours, rtol=1e-5, atol=0)


def test_the_rescaled_table(diffusers):
    """Their function in double precision, of every table."""
    module = __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["x"])
    for kind in BETAS.values():
        ours = kind(LEVELS)
        theirs = module.rescale_zero_terminal_snr(torch.tensor(ours, dtype=F64))
        ours = torch.tensor(betas.zero_terminal(ours), dtype=F64)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}


@pytest.mark.parametrize("kind", BETAS)
@SPACINGS
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_ddpm(diffusers, monkeypatch, kind, spacing, variance, zero_terminal):
    """Strided, of every table, spacing and variance, to 1e-5 with their tables in doubles."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=kind,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        timestep_spacing=spacing,
        variance_type=variance,
        prediction_type="v_prediction" if zero_terminal else "epsilon",
        rescale_betas_zero_snr=zero_terminal,
    )
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    both = Both(scheduler, 25, prediction="v_prediction" if zero_terminal else "epsilon")
    plain, mix = both.model, lambda x, t: 0.5 + 0.4 * torch.tanh(x)
    if variance == "learned_range":
        both.denoiser = replace(both.denoiser, variance_mix=mix)
        both.model = lambda x, level: torch.cat([plain(x, level), 2 * mix(x, level) - 1], 1)
    # On the way from a level above the cleanest to no noise at all, their last step adds some.
    last = VARIANCES[variance] == "small" or both.levels[-1] == 0
    step = ddpm(VARIANCES[variance])
    theirs = both.run_theirs(monkeypatch, last)
    agree(both.run_ours(step, last), theirs, 1e-5)
    if not last:
        differ(both.run_ours(step), both.run_theirs(monkeypatch), 1e-6)


@TABLES
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler(diffusers, monkeypatch, kind, spacing, prediction):
    scheduler = diffusers.EulerDiscreteScheduler(
        **table(kind), timestep_spacing=spacing, prediction_type=prediction
    )
    both = Both(scheduler, 20, prediction=prediction)
    agree(both.run_ours(DDIM()), both.run_theirs(monkeypatch))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_ancestral(diffusers, monkeypatch, spacing):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**table(), timestep_spacing=spacing)
    both = Both(scheduler, 20)
    agree(both.run_ours(euler_a()), both.run_theirs(monkeypatch))


@TABLES
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_heun(diffusers, monkeypatch, kind, spacing):
    scheduler = diffusers.HeunDiscreteScheduler(**table(kind), timestep_spacing=spacing)
    both = Both(scheduler, 20)
    theirs = both.run_theirs(monkeypatch)
    agree(both.run_ours(Heun(published=True)), theirs)
    differ(both.run_ours(Heun()), theirs, 1e-4)  # along the straight path


@TABLES
@SPACINGS
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_dpmpp_2m(diffusers, monkeypatch, kind, spacing, solver):
    """Their heun type of DPM-Solver++(2M) is the exact integral."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **table(kind), timestep_spacing=spacing, solver_type=solver, lower_order_final=False
    )
    both = Both(scheduler, 20)
    agree(both.run_ours(dpmpp_2m(published=solver == "midpoint")), both.run_theirs(monkeypatch))


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_dpm_solver_2_in_noise_form(diffusers, monkeypatch, solver):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **table(), algorithm_type="dpmsolver", solver_type=solver, final_sigmas_type="sigma_min"
    )
    both = Both(scheduler, 20)
    theirs = both.run_theirs(monkeypatch)
    # Their last step goes to the cleanest level, and no denoising follows.
    levels = [*both.levels, 0.0]
    ts = torch.stack([both.time(level) for level in levels])
    step = dpm_solver(2, EPS, published=solver == "midpoint")
    ours = sample(both.denoiser, both.start, ts, step, denoise=False)
    agree(ours, theirs)


def test_third_order_multistep_lacks_a_factor(diffusers, monkeypatch):
    """Theirs is our published form, second order at best, and not our third-order one."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **table(), solver_order=3, lower_order_final=False, timestep_spacing="trailing"
    )
    both = Both(scheduler, 20)
    theirs = both.run_theirs(monkeypatch)
    agree(both.run_ours(dpm_solver(3, X0, published=True)), theirs)
    differ(both.run_ours(dpm_solver(3, X0)), theirs, 1e-3)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_dpmpp_2m_sde(diffusers, monkeypatch, solver):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **table(),
        algorithm_type="sde-dpmsolver++",
        solver_type=solver,
        timestep_spacing="trailing",
    )
    both = Both(scheduler, 20)
    agree(both.run_ours(dpmpp_2m_sde(heun=solver == "heun")), both.run_theirs(monkeypatch))


@TABLES
@SPACINGS
@pytest.mark.parametrize("order", [1, 2])
def test_unipc(diffusers, monkeypatch, kind, spacing, order):
    """Their default, bh2, whose last step is of first order: our denoising."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **table(kind), timestep_spacing=spacing, solver_order=order
    )
    both = Both(scheduler, 20, torch.float32)
    agree(both.run_ours(unipc(order, published=True)), both.run_theirs(monkeypatch))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_before_its_last_step(diffusers, monkeypatch, order, variant):
    """Of bh1 the last step is infinity times zero; of order 3 the last two change their order."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **table(), solver_order=order, solver_type=variant, lower_order_final=False
    )
    both = Both(scheduler, 20, torch.float32)
    ours = unipc(order, exponential=variant == "bh2", published=True)
    agree(both.run_ours(ours, last=False), both.run_theirs(monkeypatch, last=False))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_before_its_last_step(diffusers, monkeypatch, order):
    """Theirs stops at the cleanest level and does not denoise."""
    scheduler = diffusers.DEISMultistepScheduler(
        **table(), solver_order=order, lower_order_final=False, timestep_spacing="trailing"
    )
    both = Both(scheduler, 20, torch.float32)
    ours = deis(order, ramp=True)
    agree(both.run_ours(ours, last=False), both.run_theirs(monkeypatch, last=False))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_lms_before_its_last_step(diffusers, monkeypatch, order):
    """Their last step extrapolates to no noise through past readings; ours denoises."""
    scheduler = diffusers.LMSDiscreteScheduler(**table(), timestep_spacing="trailing")
    both = Both(scheduler, 20)
    step = scheduler.step
    scheduler.step = lambda *a: step(*a, order=order)
    ours = both.run_ours(lms(order, ramp=True), last=False)
    agree(ours, both.run_theirs(monkeypatch, last=False))
