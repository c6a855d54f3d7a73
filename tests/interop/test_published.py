"""Published checkpoints: files in their layouts, made here, against the formulas of their code."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import scoresde as ss
from scoresde.runs.importing import import_model
from tests.interop.published_networks import Weights, edm_unet, guided, image_v1, lucid, ncsnpp

D = torch.float64


def equal(found, expected, within=1e-10):
    assert found.shape == expected.shape
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() < within * expected.abs().max().clamp(min=1)


def x0_of(model, x, t, **said):
    """The denoiser of a model in float64."""
    return model.double().denoiser(**said)(x, torch.as_tensor(t, dtype=D))


def written(folder, settings):
    """A file of settings, as its program has."""
    file = folder / "settings.json"
    file.write_text(json.dumps(settings))
    return file


def pictures(n=2, channels=3, size=8):
    return torch.randn(
        n, channels, size, size, dtype=D, generator=torch.Generator().manual_seed(1)
    )


# guided-diffusion -------------------------------------------------------------------------------

FLAGS = {
    "image_size": 8,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
    "num_heads": 2,
    "use_new_attention_order": False,
}
SHAPE = {"mc": 32, "mult": (1, 2), "blocks": 1, "attends": (1,), "heads": 2, "out": 3}


def guided_file(path, **changes):
    w, how = Weights(), SHAPE | {"ordered": False, "shifts": True, "updown": True} | changes
    y = torch.zeros(1, dtype=torch.long)
    guided(w, torch.zeros(1, 3, 8, 8, dtype=D), torch.ones(1), y, **how)
    torch.save(dict(w), path)
    return lambda x, t, y=None: guided(w, x, t, y, **how)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, {}),
        ({"ordered": True, "classes": 5}, {"use_new_attention_order": True, "class_cond": True}),
        ({"shifts": False, "updown": False, "out": 6}, {"num_res_blocks": 1, "learn_sigma": True}),
        ({"heads": 1, "attends": (0, 1)}, {"num_head_channels": -1, "num_heads": 1}),
    ],
)
@torch.no_grad()
def test_guided_diffusion_is_its_formula(tmp_path, changes, flags):
    file = tmp_path / "ema_0.9999_000100.pt"
    net = guided_file(file, **changes)
    model = import_model(file, "guided_diffusion", tmp_path / "run", said=FLAGS | flags).model
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=D)
    bar = (1 - betas).cumprod(0)
    said = {"label": [3, 1]} if "classes" in changes else {}
    y = torch.tensor(said.get("label", [0, 0]))
    for i in (0, 500, 999):
        x = pictures()
        eps = net(x, torch.full((2,), float(i), dtype=D), y)[:, :3]
        expected = (x - (1 - bar[i]).sqrt() * eps) / bar[i].sqrt()
        equal(x0_of(model, x, (i + 1) / 1000, **said), expected)
    assert model.variance is (changes.get("out") == 6)


@torch.no_grad()
def test_rescaled_timesteps_and_x0_of_a_long_cosine_chain(tmp_path):
    net = guided_file(tmp_path / "model.pt")
    flags = FLAGS | {"diffusion_steps": 4000, "noise_schedule": "cosine"}
    flags |= {"rescale_timesteps": True, "predict_xstart": True}
    model = import_model(tmp_path / "model.pt", "guided_diffusion", tmp_path / "run", said=flags)
    x = pictures()
    equal(x0_of(model.model, x, 2001 / 4000), net(x, torch.full((2,), 500.0, dtype=D)))


# EDM --------------------------------------------------------------------------------------------

SONG = {"mc": 16, "mult": (1, 2), "blocks": 1, "attends": (1,), "size": 8, "kind": "song"}
DHARIWAL = SONG | {"mc": 64, "kind": "dhariwal"}


def edm_file(path, init, shape):
    w = Weights()
    out = 6 if init["class"] == "iDDPMPrecond" else 3
    shape = shape | {"out": out}
    edm_unet(w, torch.zeros(1, 3, 8, 8, dtype=D), torch.ones(1), **shape)
    tensors = dict(w)
    for name in [k for k in w if k.endswith(("down.norm0.weight", "up.norm0.weight"))]:
        tensors[name.replace("norm0.weight", "conv0.resample_filter")] = torch.ones(1, 1, 2, 2) / 4
    if init["class"] == "iDDPMPrecond":
        tensors["u"] = iddpm_levels()
    about = {
        "img_resolution": 8,
        "img_channels": 3,
        "model_channels": shape["mc"],
        "channel_mult": list(shape["mult"]),
        "num_blocks": shape["blocks"],
        "attn_resolutions": [8 >> i for i in shape["attends"]],
    }
    if "classes" in shape:
        about["label_dim"] = shape["classes"]
    tensors = {k: v.float().contiguous() for k, v in tensors.items()}
    save_file(tensors, path, {"init": json.dumps(about | init)})
    return lambda x, noise, label=None: edm_unet(w, x, noise, label, **shape)


def iddpm_levels(n=1000, c1=0.001, c2=0.008):
    bar = torch.sin(math.pi / 2 * torch.arange(n + 1) / n / (c2 + 1)) ** 2
    u = torch.zeros(n + 1)
    for j in range(n, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=c1) - 1).sqrt()
    return u


def one_hot(label, n):
    return torch.nn.functional.one_hot(torch.tensor(label), n).double()


@pytest.mark.parametrize("shape", [SONG | {"classes": 4}, DHARIWAL | {"classes": 4}])
@torch.no_grad()
def test_edm_is_its_preconditioned_formula(tmp_path, shape):
    net = edm_file(tmp_path / "edm.safetensors", {"class": "EDMPrecond"}, shape)
    model = import_model(tmp_path / "edm.safetensors", "edm", tmp_path / "run").model
    for sigma in (0.002, 0.7, 80.0):
        x, s = sigma * pictures(), torch.tensor(sigma, dtype=D)
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
        noise = (s.log() / 4).expand(2)
        for label in ([0, 2], None):
            given = None if label is None else one_hot(label, 4)
            expected = skip * x + out * net(x / (s**2 + 0.25).sqrt(), noise, given)
            # A class and its bias are one sum here, which float32 rounds.
            equal(x0_of(model, x, sigma, label=label), expected, 1e-7)


@torch.no_grad()
def test_vp_and_ve_of_edm_are_their_formulas(tmp_path):
    net = edm_file(tmp_path / "vp.safetensors", {"class": "VPPrecond"}, SONG)
    vp = import_model(tmp_path / "vp.safetensors", "edm", tmp_path / "vp").model
    x, t = pictures(), torch.tensor(0.3, dtype=D)
    sigma = (torch.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1).sqrt()
    wide = x * (1 + sigma**2).sqrt()  # their state is x / alpha
    equal(x0_of(vp, x, t), wide - sigma * net(x, (999 * t).expand(2)))
    shape = SONG | {"fourier": True, "residual": True, "taps": (1, 3, 3, 1), "noise_mult": 2}
    init = {"class": "VEPrecond", "embedding_type": "fourier", "encoder_type": "residual"}
    init |= {"resample_filter": [1, 3, 3, 1], "channel_mult_noise": 2}
    net = edm_file(tmp_path / "ve.safetensors", init, shape)
    ve = import_model(tmp_path / "ve.safetensors", "edm", tmp_path / "ve").model
    for t in (0.1, 1.0):
        sigma = torch.tensor(0.02 * 5000**t, dtype=D)
        x = sigma * pictures()
        equal(x0_of(ve, x, t), x + sigma * net(x, (sigma / 2).log().expand(2)))


@torch.no_grad()
def test_iddpm_of_edm_is_its_formula_at_its_levels(tmp_path):
    net = edm_file(tmp_path / "iddpm.safetensors", {"class": "iDDPMPrecond"}, DHARIWAL)
    model = import_model(tmp_path / "iddpm.safetensors", "edm", tmp_path / "run").model
    for i in (10, 600):
        t = torch.tensor((i + 1) / 1000, dtype=D)
        sigma = (-model.sde.lam(t)).exp()
        assert (
            abs(float(sigma) / float(iddpm_levels()[999 - i]) - 1) < 1e-3
        )  # theirs are sums in float32
        x = pictures()
        index = torch.full((2,), float(i), dtype=D)
        equal(x0_of(model, x, t), x * (1 + sigma**2).sqrt() - sigma * net(x, index)[:, :3])
    assert model.variance


# score_sde --------------------------------------------------------------------------------------

NCSN = {"nf": 16, "mult": (1, 2), "blocks": 1, "attends": (1,), "size": 8}
VE = NCSN | {"fourier": True, "pictured": True, "centered": False, "by_sigma": True}
VP = NCSN | {"fourier": False, "pictured": False, "centered": True, "by_sigma": False}
SAID_VE = {
    "training": {"sde": "vesde", "continuous": True},
    "data": {"image_size": 8, "centered": False},
    "model": {"scale_by_sigma": True, "fir": True, "nf": 16, "progressive": "none"},
}
SAID_VP = {
    "training": {"sde": "vpsde", "continuous": True},
    "data": {"image_size": 8, "centered": True},
    "model": {"scale_by_sigma": False, "fir": False, "beta_min": 0.1, "beta_max": 20},
}


def score_sde_file(path, shape):
    w = Weights()
    ncsnpp(w, torch.zeros(1, 3, 8, 8, dtype=D), torch.ones(1, dtype=D), **shape)
    sigmas = torch.linspace(math.log(50), math.log(0.01), 1000, dtype=D).exp()
    model = {"module.sigmas": sigmas} | {k: torch.zeros_like(v) for k, v in w.items()}
    untrained = [k for k in w if k == "module.all_modules.0.W"]
    model |= {k: w[k] for k in untrained}
    shadow = [v for k, v in w.items() if k not in untrained]
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
    torch.save({"optimizer": {}, "model": model, "ema": ema, "step": 42}, path)
    return lambda x, told: ncsnpp(w, x, told, **shape)


@torch.no_grad()
def test_ve_of_score_sde_is_its_formula(tmp_path):
    net = score_sde_file(tmp_path / "checkpoint_1.pth", VE)
    loaded = import_model(
        tmp_path / "checkpoint_1.pth",
        "score_sde",
        tmp_path / "r",
        settings=written(tmp_path, SAID_VE),
    )
    assert loaded.step == 42
    for t in (0.05, 0.6, 1.0):
        sigma = torch.tensor(0.01 * 5000**t, dtype=D)
        x = pictures().sigmoid() + sigma * pictures()  # pictures in [0, 1]
        expected = x + sigma**2 * net(x, sigma.expand(2))
        equal(x0_of(loaded.model, 2 * x - 1, t), 2 * expected - 1)


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde"])
@torch.no_grad()
def test_vp_of_score_sde_is_its_formula(tmp_path, sde):
    net = score_sde_file(tmp_path / "checkpoint_1.pth", VP)
    said = SAID_VP | {"training": {"sde": sde, "continuous": True}}
    model = import_model(
        tmp_path / "checkpoint_1.pth",
        "score_sde",
        tmp_path / "r",
        settings=written(tmp_path, said),
    )
    for t in (0.05, 0.9):
        x, bar = pictures(), math.exp(-0.5 * t**2 * 19.9 - 0.1 * t)
        std = math.sqrt(1 - bar) if sde == "vpsde" else 1 - bar
        score = -net(x, torch.full((2,), 999.0 * t, dtype=D)) / std
        equal(x0_of(model.model, x, t), (x + std**2 * score) / math.sqrt(bar))


# lucidrains -------------------------------------------------------------------------------------

LUCID = {"dim": 16, "mult": (1, 2), "full": (1,), "heads": 2, "each": 8}


def lucid_file(path, objective="pred_v", cut=None, self_condition=False, out=3):
    w, shape = Weights(), LUCID | {"out": out}
    x = torch.zeros(1, 3, 8, 8, dtype=D)
    lucid(w, x, torch.ones(1), told=x if self_condition else None, **shape)
    table = ss.betas.sigmoid_alpha_bar()(1000)
    betas = torch.tensor(table, dtype=D)
    bar = (1 - betas).cumprod(0)
    snr = bar / (1 - bar)
    kept = snr if cut is None else snr.clamp(max=cut)
    loss = {"pred_v": kept / (snr + 1), "pred_x0": kept, "pred_noise": kept / snr}[objective]
    buffers = {"betas": betas, "alphas_cumprod": bar, "sqrt_alphas_cumprod": bar.sqrt()}
    buffers = {k: v.float() for k, v in (buffers | {"loss_weight": loss}).items()}
    model = buffers | {f"model.{k}": torch.zeros_like(v) for k, v in w.items()}
    ema = {
        f"ema_model.{k}": v for k, v in (buffers | {f"model.{k}": v for k, v in w.items()}).items()
    }
    ema |= {f"online_model.{k}": v for k, v in model.items()}
    ema |= {"initted": torch.tensor(True), "step": torch.tensor(5)}
    entries = {"step": 5, "model": model, "opt": {"state": {}}, "ema": ema, "scaler": None}
    torch.save(entries | {"version": "2.3.4"}, path)
    return lambda x, t, told=None: lucid(w, x, t, told=told, **shape), bar


@pytest.mark.parametrize(
    ("objective", "cut"), [("pred_v", None), ("pred_noise", 5), ("pred_x0", 5)]
)
@torch.no_grad()
def test_lucidrains_is_its_formula(tmp_path, objective, cut):
    net, bar = lucid_file(tmp_path / "model-1.pt", objective, cut)
    loaded = import_model(
        tmp_path / "model-1.pt", "lucidrains", tmp_path / "r", said={"image_size": 8}
    )
    assert loaded.step == 5
    for i in (0, 500, 900):
        x, a = pictures(), bar[i].sqrt()
        s = (1 - bar[i]).sqrt()
        f = net(x, torch.full((2,), float(i), dtype=D))
        expected = {"pred_v": a * x - s * f, "pred_noise": (x - s * f) / a, "pred_x0": f}[
            objective
        ]
        equal(x0_of(loaded.model, x, (i + 1) / 1000), expected)


@torch.no_grad()
def test_self_conditioning_of_lucidrains_is_told_the_estimate_of_the_same_state(tmp_path):
    net, bar = lucid_file(tmp_path / "model-1.pt", self_condition=True)
    model = import_model(
        tmp_path / "model-1.pt", "lucidrains", tmp_path / "r", said={"image_size": 8}
    )
    x, i = pictures(), 300
    a, s, t = bar[i].sqrt(), (1 - bar[i]).sqrt(), torch.full((2,), float(i), dtype=D)
    first = a * x - s * net(x, t, torch.zeros_like(x))
    equal(x0_of(model.model, x, (i + 1) / 1000), a * x - s * net(x, t, first))


# k-diffusion ------------------------------------------------------------------------------------

V1 = {"features": 16, "depths": (1, 2), "widths": (32, 64), "attends": (1,)}


@pytest.mark.parametrize(("patch", "slim"), [(1, False), (2, True)])
@torch.no_grad()
def test_k_diffusion_is_its_formula(tmp_path, patch, slim):
    w, shape = Weights(), V1 | {"patch": patch, "variance": slim}
    image_v1(w, torch.zeros(1, 3, 8, 8, dtype=D), torch.ones(1, dtype=D), **shape)
    config = {
        "model": {
            "type": "image_v1", "input_channels": 3, "input_size": [8, 8], "mapping_out": 16,
            "depths": [1, 2], "channels": [32, 64], "self_attn_depths": [False, True],
            "sigma_data": 0.6, "sigma_min": 0.01, "sigma_max": 80, "patch_size": patch,
            "has_variance": slim, "augment_wrapper": True,
        }
    }  # fmt: skip
    state = {f"inner_model.{k}": v for k, v in w.items()}
    state["inner_model.u_net.d_blocks.1.0.kernel"] = torch.ones(4, 4)
    file = tmp_path / ("slim.safetensors" if slim else "name_00000100.pth")
    if slim:
        save_file(state, file, {"config": json.dumps(config)})
    else:
        zeros = {k: torch.zeros_like(v) for k, v in state.items()}
        torch.save({"config": config, "model": zeros, "model_ema": state, "step": 100}, file)
    loaded = import_model(file, "k_diffusion", tmp_path / "r")
    for sigma in (0.01, 1.0, 80.0):
        x, s = sigma * pictures(), torch.tensor(sigma, dtype=D)
        n2 = s**2 + 0.36
        f = image_v1(w, x / n2.sqrt(), s.expand(2), **shape)
        equal(x0_of(loaded.model, x, sigma), 0.36 / n2 * x + s * 0.6 / n2.sqrt() * f)
