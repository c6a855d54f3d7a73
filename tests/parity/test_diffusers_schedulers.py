"""A network in the loops of diffusers and in ours, by the file of the scheduler alone.

Their tables are put into float64 by hand: in their modules ``torch.float32`` and ``np.float32``
are the names of float64. Where they still differ from ours, a test says by what and by how much
(docs/parity.md, "Schedulers of diffusers").
"""

import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

from scoresde import ScoreModel, draw, sample, wrap
from scoresde.guidance import free
from scoresde.interop import as_scheduler
from scoresde.interop.schedulers import CLASSES, grid_of, guide_of, schedule_of
from scoresde.samplers import (
    DDIM,
    DPM2A,
    Corrected,
    Heun,
    Langevin,
    ReverseDiffusion,
    ddpm,
    deis,
    dpm_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    euler_a,
    grids,
    ipndm,
    lms,
    per_sample_noise,
    plms,
    starting_noise,
    unipc,
)

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("their_warnings")]
F64, F32 = torch.float64, torch.float32


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module, wide):
        self.module, self.float32 = module, wide

    def __getattr__(self, name):
        return getattr(self.module, name)


class Net(nn.Module):
    """A small nonlinear network of six numbers and of the noise level."""

    def __init__(self, dtype=F64):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w = nn.Parameter((0.4 * torch.randn(6, 6, generator=g, dtype=F64)).to(dtype))
        self.u = nn.Parameter(torch.randn(6, generator=g, dtype=F64).to(dtype))

    def forward(self, x, noise):
        told = torch.sin(0.01 * noise.reshape(-1, 1).to(x))
        return 0.9 * torch.tanh(x @ self.w + told * self.u) + 0.1 * x


class Both:
    """A scheduler of theirs, a network, and the model that its config says."""

    def __init__(self, monkeypatch, diffusers, name, dtype=F64, **fields):
        self.dtype, kind = dtype, getattr(diffusers, name)
        module = sys.modules[kind.__module__]
        if dtype == F64:
            monkeypatch.setattr(module, "torch", Wide(torch, F64))
            if hasattr(module, "np"):
                monkeypatch.setattr(module, "np", Wide(np, np.float64))
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: self.noise(None))
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            self.theirs = kind(**fields)
        finally:
            torch.set_default_dtype(default)
        self.config = {**self.theirs.config, "_class_name": name}
        self.net = Net(dtype)
        self.z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)

    def noise(self, x, t=None, s=None):
        return self.draws[next(self.drawn)].to(self.dtype)

    def begin(self):
        g = torch.Generator().manual_seed(2)
        self.draws, self.drawn = torch.randn(99, 5, 6, generator=g, dtype=F64), count()

    def in_sigma(self):
        """Whether their state is x / alpha."""
        family = CLASSES[self.config["_class_name"]][0]
        return family == "sigma"

    def run_theirs(self, n, last=True, **said):
        self.begin()
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            self.theirs.set_timesteps(n)
            x = self.z * getattr(self.theirs, "init_noise_sigma", 1.0)
            scale = getattr(self.theirs, "scale_model_input", lambda x, t: x)
            with torch.no_grad():
                for t in self.theirs.timesteps[: None if last else -1]:
                    output = self.net(scale(x, t), t.expand(len(x)))
                    x = self.theirs.step(output, t, x, **said).prev_sample
        finally:
            torch.set_default_dtype(default)
        return x

    def run_ours(self, n, step, last=True, nearest=False, told=None):
        """Over their levels; without the last step also where they end at no noise."""
        self.begin()
        found = schedule_of(self.config, nearest)
        parameterization = found.parameterization
        if told is not None:
            parameterization = replace(parameterization, noise=told(parameterization.noise))
        model = ScoreModel(self.net, found.sde, parameterization)
        ts = grid_of(self.config)(found.sde, n)
        ts = ts if last else ts[:-1]
        alpha = [float(found.sde.alpha(t)) if self.in_sigma() else 1.0 for t in (ts[0], ts[-1])]
        x = self.z * float(getattr(self.theirs, "init_noise_sigma", 1.0)) * alpha[0]
        denoiser = guide_of(self.config)(model.denoiser())
        return sample(denoiser, x, ts, step, self.noise, denoise=False) / alpha[1]


def gap(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
# Their name, its fields, our step, the steps taken, and whether they round the index.
PAIRS = [
    ("DDIMScheduler", {"clip_sample": False}, DDIM(), 50, False),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, DDIM(), 50, False),
    ("DDPMScheduler", {"clip_sample": False}, ddpm(), 20, False),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, DDIM(), 20, False),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, DDIM(), 20, False),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, DDIM(), 20, False),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, DDIM(), 20, False),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, euler_a(), 20, False),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, Heun(published=True), 20, False),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, Heun(published=True), 20, False),
    ("KDPM2DiscreteScheduler", {"timestep_spacing": "leading"}, dpm_2(), 20, False),
    ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, DPM2A(), 20, False),
    ("DPMSolverMultistepScheduler", {}, dpmpp_2m(), 20, False),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, dpmpp_2m(), 20, True),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, dpmpp_2m(), 20, True),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, dpmpp_2m(), 20, False),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        dpmpp_2m_sde(),
        20,
        False,
    ),
    ("UniPCMultistepScheduler", {}, unipc(2, published=True), 20, False),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, unipc(2, published=True), 20, True),
    ("DEISMultistepScheduler", {}, deis(2, ramp=True), 20, False),
    ("DEISMultistepScheduler", {"solver_order": 3}, deis(3, ramp=True), 20, False),
    ("PNDMScheduler", {"skip_prk_steps": True}, plms(), 20, False),
]


@PREDICTIONS
@pytest.mark.parametrize(("name", "fields", "step", "n", "nearest"), PAIRS)
def test_samples(monkeypatch, diffusers, prediction, name, fields, step, n, nearest):
    if prediction == "sample" and name in ("EulerAncestralDiscreteScheduler", "PNDMScheduler"):
        pytest.skip("theirs takes no x0")
    if prediction == "sample" and name.startswith("KDPM2"):
        pytest.skip("theirs takes no x0")
    if prediction == "v_prediction" and name == "PNDMScheduler":
        pytest.skip("theirs extrapolates v, not the noise")
    # Their tables in single precision move the samples; with float64 tables the gap is 2e-14.
    limits = {"epsilon": 1e-5, "v_prediction": 2e-5, "sample": 5e-5}
    for dtype, limit in ((F64, 1e-10), (F32, limits[prediction])):
        both = Both(monkeypatch, diffusers, name, dtype, prediction_type=prediction, **fields)
        theirs = both.run_theirs(n)
        assert gap(both.run_ours(n, step, nearest=nearest), theirs) < limit, dtype
        monkeypatch.undo()


@pytest.mark.parametrize("table", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_tables(monkeypatch, diffusers, name, table):
    fields = {"beta_schedule": table, "timestep_spacing": "leading"}
    fields |= {"clip_sample": False} if name == "DDIMScheduler" else {}
    for dtype, limit in ((F64, 1e-10), (F32, 1e-5)):
        both = Both(monkeypatch, diffusers, name, dtype, **fields)
        theirs = both.run_theirs(50)
        assert gap(both.run_ours(50, DDIM()), theirs) < limit
        monkeypatch.undo()


def test_clipped(monkeypatch, diffusers):
    """Ours steps with the noise of after the clipping, theirs where it is told to."""
    both = Both(monkeypatch, diffusers, "DDPMScheduler", clip_sample_range=0.7)
    assert gap(both.run_ours(20, ddpm()), both.run_theirs(20)) < 1e-10
    both = Both(monkeypatch, diffusers, "DDIMScheduler", clip_sample_range=0.7)
    ours = both.run_ours(20, DDIM())
    assert gap(ours, both.run_theirs(20, use_clipped_model_output=True)) < 1e-10
    assert gap(ours, both.run_theirs(20)) > 1e-3


def test_karras_levels_of_a_cosine_table_stop_theirs(monkeypatch, diffusers):
    """Their index is an integer there, and occurs twice."""
    fields = {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    both = Both(monkeypatch, diffusers, "DPMSolverMultistepScheduler", F32, **fields)
    with pytest.raises(IndexError):
        both.run_theirs(20)
    assert both.run_ours(20, dpmpp_2m()).isfinite().all()


FLOWS = [
    ("FlowMatchEulerDiscreteScheduler", {}, DDIM()),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, DDIM()),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, DDIM()),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, DDIM()),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, Heun()),
    ("EDMEulerScheduler", {}, DDIM()),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, DDIM()),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, DDIM()),
    ("EDMDPMSolverMultistepScheduler", {}, dpmpp_2m()),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, dpmpp_2m()),
]


@pytest.mark.parametrize(("name", "fields", "step"), FLOWS)
def test_flows_and_edm(monkeypatch, diffusers, name, fields, step):
    for dtype, limit in ((F64, 1e-10), (F32, 1e-5)):
        both = Both(monkeypatch, diffusers, name, dtype, **fields)
        assert gap(both.run_ours(20, step), both.run_theirs(20)) < limit
        monkeypatch.undo()


# --- where they differ, and why -----------------------------------------------------------------


def truncated(noise):
    return lambda sde, t: (noise(sde, t) + 1e-9).floor()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("DPMSolverMultistepScheduler", dpmpp_2m()),
        ("UniPCMultistepScheduler", unipc(2, published=True)),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
    ],
)
def test_they_truncate_what_the_network_is_told(monkeypatch, diffusers, name, step, fields):
    """Told as they tell it the samples agree; told the level itself they differ by up to 2e-2."""
    both = Both(monkeypatch, diffusers, name, **fields)
    theirs = both.run_theirs(20)
    assert gap(both.run_ours(20, step, told=truncated), theirs) < 1e-10
    assert 1e-6 < gap(both.run_ours(20, step), theirs) < 2e-2


@pytest.mark.parametrize("step", [DDIM(), Heun(published=True)])
def test_between_two_levels_they_interpolate_sigma_for_steps_of_time(monkeypatch, diffusers, step):
    """And log sigma the other way, as ours: the index differs by at most 2e-3."""
    name = "EulerDiscreteScheduler" if step == DDIM() else "HeunDiscreteScheduler"
    both = Both(monkeypatch, diffusers, name)
    assert 1e-8 < gap(both.run_ours(20, step), both.run_theirs(20)) < 1e-5


def test_ddim_of_linspace_steps_past_the_level_where_it_calls(monkeypatch, diffusers):
    both = Both(
        monkeypatch, diffusers, "DDIMScheduler", clip_sample=False, timestep_spacing="linspace"
    )
    assert 1e-3 < gap(both.run_ours(50, DDIM()), both.run_theirs(50)) < 0.5


@pytest.mark.parametrize(
    ("name", "step", "fields"),
    [
        ("LMSDiscreteScheduler", lms(4, ramp=True), {"timestep_spacing": "trailing"}),
        ("PNDMScheduler", plms(), {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ],
)
def test_their_last_step_extrapolates_where_ours_denoises(
    monkeypatch, diffusers, name, step, fields
):
    both = Both(monkeypatch, diffusers, name, **fields)
    theirs = both.run_theirs(20, last=False)
    assert gap(both.run_ours(20, step, last=False), theirs) < 1e-10
    assert gap(both.run_ours(20, step), both.run_theirs(20)) > 1e-6


def test_the_first_step_of_ipndm_has_no_x0(monkeypatch, diffusers):
    """At no signal theirs divides 0 by 1e-8. From its second level on ours is the same."""
    both, second = Both(monkeypatch, diffusers, "IPNDMScheduler"), []
    assert gap(both.run_ours(20, ipndm()), both.run_theirs(20)) > 1e-3
    step = both.theirs.step

    def forgetting(*args):
        found = step(*args)
        if not second:
            both.theirs.ets = []
            second.append(found.prev_sample)
        return found

    both.theirs.step = forgetting
    theirs = both.run_theirs(20, last=False)
    torch.testing.assert_close(second[0], both.z * torch.sin(torch.tensor(0.475) * torch.pi) ** 2)
    model = wrap(both.net, both.config)
    ts = grid_of(both.config)(model.sde, 20)[1:-1]
    assert gap(sample(model.denoiser(), second[0], ts, ipndm(), denoise=False), theirs) < 1e-10


def test_no_signal_at_all_is_exact_for_ddim_and_4096_for_the_others(monkeypatch, diffusers):
    fields = {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    both = Both(monkeypatch, diffusers, "DDIMScheduler", clip_sample=False, **fields)
    assert gap(both.run_ours(50, DDIM()), both.run_theirs(50)) < 1e-10
    for name, step in (
        ("DPMSolverMultistepScheduler", dpmpp_2m()),
        ("UniPCMultistepScheduler", unipc(2, published=True)),
    ):
        both = Both(monkeypatch, diffusers, name, **fields)
        # From no signal the first step is of first order; theirs has 2^-24 of it there.
        assert 1e-6 < gap(both.run_ours(50, step), both.run_theirs(50)) < 1e-2


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_the_predictor_corrector_of_score_sde(monkeypatch, diffusers, eps):
    """Theirs evaluates at t >= eps and steps by another table, of t >= 0; the gap is of eps."""
    fields = {"sigma_max": 50.0, "sampling_eps": eps, "snr": 0.15}
    both = Both(monkeypatch, diffusers, "ScoreSdeVeScheduler", **fields)
    both.begin()
    n, theirs, x = 30, both.theirs, both.z * 50.0
    net = lambda x, sigma: -x / (1 + sigma.reshape(-1, 1) ** 2) + 0.1 * both.net(x, sigma)  # noqa: E731
    default = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        theirs.set_timesteps(n)
        theirs.set_sigmas(n)
        with torch.no_grad():
            for i, t in enumerate(theirs.timesteps):
                sigma = theirs.sigmas[i] * torch.ones(5)
                x = theirs.step_correct(net(x, sigma), x).prev_sample
                found = theirs.step_pred(net(x, sigma), t, x)
                x = found.prev_sample
        x = found.prev_sample_mean
    finally:
        torch.set_default_dtype(default)
    both.begin()
    model = wrap(net, both.config)
    ts = grid_of(both.config)(model.sde, n - 1)
    step = Corrected(ReverseDiffusion(), kernel := Langevin(0.15, published=True))
    denoiser = model.denoiser()
    ours = sample(denoiser, both.z * 50.0, ts, step, both.noise, denoise=False)
    ours = denoiser(kernel(denoiser, ours, ts[-1], both.noise), ts[-1])  # theirs corrects it too
    assert gap(ours, x) < (1e-10 if eps < 1e-9 else 1e-3)


# --- ours in their pipelines --------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet(diffusers):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


STEPS = pytest.mark.parametrize(
    "step", [DDIM(), ddpm(), dpmpp_2m(), unipc(), Heun(), dpmpp_2s(), plms()]
)


def begun_by(monkeypatch, pipeline, sde, noise, scaled=True):
    """Start a pipeline from our draws; it multiplies them by ``init_noise_sigma`` if scaled."""
    module = sys.modules[type(pipeline).__module__]
    unit = pipeline.scheduler.init_noise_sigma if scaled else 1.0
    start = lambda shape, **k: starting_noise(sde, torch.empty(*shape), noise) / unit  # noqa: E731
    monkeypatch.setattr(module, "randn_tensor", start)


@STEPS
@pytest.mark.parametrize("grid", [grids.trailing(1000), grids.karras()])
def test_our_steps_in_the_ddpm_pipeline(monkeypatch, diffusers, unet, step, grid):
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    model = wrap(unet, scheduler)
    pipe = diffusers.DDPMPipeline(unet, scheduler)
    noise = per_sample_noise([0, 1])
    pipe.scheduler = as_scheduler(scheduler, step, grid, noise)
    begun_by(monkeypatch, pipe, model.sde, noise, scaled=False)
    theirs = pipe(batch_size=2, num_inference_steps=10, output_type="np").images
    nfe = len(pipe.scheduler.timesteps)
    ours = draw(model, 2, nfe=nfe, step=step, grid=grid, shape=(3, 8, 8)).x
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((torch.from_numpy(theirs) - ours).abs().max()) < 1e-4


def test_our_step_in_the_pipeline_of_latents(monkeypatch, diffusers, unet):
    torch.manual_seed(1)
    codec = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    codec.eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.LDMPipeline(codec, unet, scheduler)
    model, noise = wrap(unet, scheduler), per_sample_noise([0, 1])
    pipe.scheduler = as_scheduler(scheduler, dpmpp_2m(), grids.trailing(1000), noise)
    begun_by(monkeypatch, pipe, model.sde, noise)
    with torch.no_grad():
        theirs = pipe(batch_size=2, num_inference_steps=10, output_type="np").images
        z = draw(model, 2, nfe=10, step=dpmpp_2m(), grid=grids.trailing(1000), shape=(3, 8, 8)).x
        ours = codec.decode(z / codec.config.scaling_factor).sample
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((torch.from_numpy(theirs) - ours).abs().max()) < 1e-4


@pytest.mark.parametrize("step", [DDIM(), euler_a(), dpmpp_2m(), unipc(), Heun()])
def test_our_steps_in_stable_diffusion_with_guidance(monkeypatch, diffusers, step):
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()
    codec = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4
    ).eval()
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    pipe = diffusers.StableDiffusionPipeline(
        codec, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    g = torch.Generator().manual_seed(3)
    text, empty = torch.randn(2, 1, 5, 8, generator=g)
    model, noise = wrap(unet, scheduler), per_sample_noise([4, 5])
    pipe.scheduler = as_scheduler(scheduler, step, grids.karras(), noise)
    begun_by(monkeypatch, pipe, model.sde, noise)
    with torch.no_grad():
        theirs = pipe(
            prompt_embeds=text.expand(2, -1, -1),
            negative_prompt_embeds=empty.expand(2, -1, -1),
            guidance_scale=7.5,
            num_inference_steps=10,
            height=8,
            width=8,
            output_type="latent",
        ).images
    noise = per_sample_noise([4, 5])
    x = starting_noise(model.sde, torch.empty(2, 4, 8, 8), noise)
    said = {"context": text.expand(2, -1, -1)}, {"context": empty.expand(2, -1, -1)}
    denoiser = free(model, *said, scale=7.5)
    ts = grids.karras()(model.sde, 9)
    assert gap(sample(denoiser, x, ts, step, noise), theirs) < 1e-5
