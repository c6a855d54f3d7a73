"""Folders of diffusers, read by ours and by theirs: networks, codecs, and pictures.

In float64, with the table of their scheduler in float64 too: theirs is made in float32.
"""

import json

import pytest
import torch

import scoresde as ss
from scoresde import guidance, sample
from scoresde.interop.folder import Folder
from scoresde.interop.modules import module_of
from scoresde.likelihood.discrete import discrete_elbo
from scoresde.samplers import DDIM
from tests.parity.folders import UNET, folder

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("their_warnings")]
F64 = torch.float64
VP = ["ddpm", "ddim", "pndm", "learned", "centred", "classes", "vq", "ldm", "dit"]


@pytest.fixture(scope="module")
def d(diffusers):
    return diffusers


@pytest.fixture(scope="module")
def made(d, tmp_path_factory):
    """Folders by name, each saved once."""
    path, found = tmp_path_factory.mktemp("folders"), {}

    def of(name):
        if name not in found:
            found[name] = folder(d, path, name)
        return found[name]

    return of


def theirs(d, path, dtype=F64):
    """Their pipeline, with the table of its scheduler in float64."""
    pipe = d.DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    scheduler = pipe.scheduler
    if hasattr(scheduler, "betas"):
        c, levels = scheduler.config, scheduler.config.num_train_timesteps
        if c.beta_schedule == "scaled_linear":
            betas = torch.linspace(c.beta_start**0.5, c.beta_end**0.5, levels, dtype=F64) ** 2
        else:
            betas = torch.linspace(c.beta_start, c.beta_end, levels, dtype=F64)
        scheduler.betas, scheduler.alphas_cumprod = betas, torch.cumprod(1 - betas, 0)
        scheduler.final_alpha_cumprod = torch.ones((), dtype=F64)
    return pipe


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(ours, them, tolerance):
    gap = float((ours - them).norm() / them.norm())
    assert gap < tolerance, f"{gap:.1e}"


def state(model):
    return model.data.shape if model.codec is None else model.codec.latent_shape(model.data.shape)


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_network_outputs_at_20_levels(d, made, name, dtype, tolerance):
    model = ss.load(made(name), dtype=dtype)
    pipe = theirs(d, made(name), dtype)
    net = pipe.transformer if name == "dit" else pipe.unet
    x, label = normal(2, *state(model)).to(dtype), torch.tensor([3, 1])
    told = {"label": label} if name in ("classes", "dit") else {}
    named = {"class_labels": label} if told else {}
    for level in torch.linspace(0, 999, 20).round().long():
        t = (level.double() + 1) / 1000
        with torch.no_grad():
            them = net(x, level.expand(2), **named).sample
            found = model(x, t, **told)
        close(found, them[:, : x.shape[1]], tolerance)
        if model.variance:
            mix = model.denoiser(**told).variance_mix(x, t)
            close(mix, (them[:, x.shape[1] :] + 1) / 2, tolerance)


def test_a_class_of_dit_that_is_left_out_is_their_class_1000(d, made):
    model, pipe = ss.load(made("dit"), dtype=F64), theirs(d, made("dit"))
    x, none = normal(2, 4, 8, 8), torch.full((2,), 1000)
    with torch.no_grad():
        them = pipe.transformer(x, torch.tensor([9, 9]), class_labels=none).sample[:, :4]
        close(model(x, torch.tensor(0.01, dtype=F64)), them, 1e-12)


def test_a_network_that_needs_a_class_says_so(made):
    model = ss.load(made("classes"))
    with pytest.raises(ValueError, match="label is missing"):
        ss.draw(model, num=1, nfe=2)
    assert len(ss.draw(model, num=2, nfe=2, label=[0, "4"])) == 2


@pytest.mark.parametrize("name", ["vq", "ldm", "dit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_codecs(d, made, name, dtype, tolerance):
    codec, pipe = ss.load(made(name), dtype=dtype).codec, theirs(d, made(name), dtype)
    vae = pipe.vae if name == "dit" else pipe.vqvae
    z, x = normal(2, *codec.latent_shape((3, 16, 16))).to(dtype), normal(2, 3, 16, 16).to(dtype)
    with torch.no_grad():
        them = vae.decode(z / vae.config.scaling_factor).sample
        close(codec.decode(codec.unstandardised(z)), them, tolerance)
        law, found = vae.encode(x), codec.encode(x)
    if name == "vq":
        close(found.mean, law.latents, tolerance)
        assert not found.std.any()
    else:
        close(found.mean, law.latent_dist.mean, tolerance)
        close(found.std, law.latent_dist.std, tolerance)
    close(codec.standardised(found.mean), found.mean * vae.config.scaling_factor, tolerance)


@pytest.mark.parametrize("fields", [{"shift_factor": 0.1}, {"latents_mean": [1.0, 2.0, 3.0]}])
def test_shifts_and_scales_of_latents(d, made, tmp_path, fields):
    path = folder(d, tmp_path, "ldm")
    file = path / "vqvae" / "config.json"
    config = json.loads(file.read_text()) | fields
    std = [0.5, 2.0, 4.0]
    if "latents_mean" in fields:
        config["latents_std"] = std
    file.write_text(json.dumps(config))
    codec = ss.load(path, dtype=F64).codec
    z, factor = normal(1, 3, 8, 8), config["scaling_factor"]
    if "latents_mean" in fields:
        shift, scale = torch.tensor(fields["latents_mean"]), factor / torch.tensor(std)
        shift, scale = (each.double().view(3, 1, 1) for each in (shift, scale))
    else:
        shift, scale = 0.1, factor
    close(codec.standardised(z), (z - shift) * scale, 1e-7)
    close(codec.unstandardised(codec.standardised(z)), z, 1e-12)


@pytest.mark.parametrize("name", ["vq", "ldm", "dit"])
def test_the_gradient_through_a_decoder_goes_to_its_latents(made, name):
    """Backwards and forwards alike for several pictures; of codes the decoder is linearised."""
    codec = ss.load(made(name), dtype=F64).codec
    c, size = codec.latent_channels, 8 * codec.factor
    z, v = normal(2, c, 8, 8), normal(2, c, 8, 8, seed=2)
    w = normal(2, 3, size, size, seed=3)
    _, back = torch.func.vjp(codec.decode, z)
    _, forth = torch.func.jvp(codec.decode, (z,), (v,))
    torch.testing.assert_close((back(w)[0] * v).sum(), (w * forth).sum())
    assert forth.norm() > 0


@pytest.mark.parametrize(
    ("name", "guided"), [("ddim", None), ("vq", None), ("ldm", None), ("dit", 1.0), ("dit", 4.0)]
)
def test_pictures_of_ddim_50(d, made, name, guided):
    """From the same noise, decoded, with and without guidance."""
    model, pipe = ss.load(made(name), dtype=F64), theirs(d, made(name))
    seeded = torch.Generator().manual_seed(7)
    told = {} if guided is None else {"class_labels": [3, 1], "guidance_scale": guided}
    if guided is None:
        told["batch_size"] = 2
    output = "pt" if name == "dit" else "np"
    if name in ("vq", "ldm"):  # LDMPipeline draws its noise in float32
        x = torch.randn(2, *state(model), generator=torch.Generator().manual_seed(7)).double()
    else:
        drawn = torch.Generator().manual_seed(7)
        x = torch.randn(2, *state(model), generator=drawn, dtype=F64)
    if name in ("vq", "ldm"):
        module = __import__(type(pipe).__module__, fromlist=["x"])
        keep = module.randn_tensor
        module.randn_tensor = lambda *a, **k: x
    try:
        them = pipe(generator=seeded, num_inference_steps=50, output_type=output, **told)
    finally:
        if name in ("vq", "ldm"):
            module.randn_tensor = keep
    them = torch.as_tensor(them.images).double()
    them = them if output == "pt" else them.permute(0, 3, 1, 2)
    ts = (torch.arange(980, -1, -20, dtype=F64) + 1) / 1000
    denoiser = model.denoiser()
    if guided is not None:
        said = {"label": torch.tensor([3, 1])}
        denoiser = guidance.free(model, said, scale=guided)
    with torch.no_grad():
        found = sample(denoiser, x, ts, DDIM())
        if model.codec is not None:
            found = model.codec.decode(model.codec.unstandardised(found))
    assert float(them.std()) > 0.01
    close((found / 2 + 0.5).clamp(0, 1), them, 1e-10)


@pytest.mark.parametrize("name", ["ve"])
def test_ve(d, made, name):
    """Their network is told sigma and returns the score, of pictures in [0, 1]."""
    model, pipe = ss.load(made(name), dtype=F64), theirs(d, made(name))
    x = normal(2, 3, 8, 8)
    low, high = pipe.scheduler.config.sigma_min, pipe.scheduler.config.sigma_max
    assert float(model.sde.sigma(torch.tensor(model.sde.t_max))) == pytest.approx(high)
    for sigma in torch.logspace(0, 1, 20, base=high / low, dtype=F64) * low:
        t = model.sde.time(-sigma.log())
        with torch.no_grad():
            score = pipe.unet(x, sigma.expand(2)).sample
            x0 = model.denoiser()(x, t)
        close((x0 - x) / sigma**2, score, 1e-6)
    white = model.data.scaling.encode(torch.tensor([0, 255]))
    assert white.tolist() == pytest.approx([0, 1], abs=1e-6)
    pixels = torch.arange(256).to(torch.uint8)
    assert torch.equal(model.data.scaling.decode(pixels.float() / 255), pixels)


def test_pixels_are_theirs(made):
    scaling = ss.load(made("ddpm")).data.scaling
    x = torch.linspace(-1.2, 1.2, 5001, dtype=F64)
    them = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    edge = ((x / 2 + 0.5) * 255 % 1 - 0.5).abs() < 1e-6  # where rounding decides
    assert torch.equal(scaling.decode(x)[~edge], them[~edge])
    assert float(scaling.encode(torch.tensor(200))) == pytest.approx(200 / 127.5 - 1, abs=1e-6)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_and_variants_hold_the_same_weights(d, made, tmp_path, variant):
    pipe = d.DDPMPipeline.from_pretrained(made("ddpm"), local_files_only=True)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    pipe.save_pretrained(whole, variant=variant)
    pipe.save_pretrained(sharded, variant=variant)
    for file in (sharded / "unet").glob("*.safetensors"):
        file.unlink()
    pipe.unet.save_pretrained(sharded / "unet", variant=variant, max_shard_size="50KB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    both = [ss.load(path, variant=variant).state_dict() for path in (whole, sharded)]
    before = ss.load(made("ddpm")).state_dict()
    for found in both:
        assert found.keys() == before.keys()
        assert all(torch.equal(found[name], before[name]) for name in before)
    if variant is not None:
        with pytest.raises(ValueError, match="variants fp16 only; give variant"):
            ss.load(whole)
        with pytest.raises(ValueError, match="no weights of the variant 'fp32'; it has fp16"):
            ss.load(whole, variant="fp32")


def test_weights_are_held_once_in_the_dtype_asked(made):
    model = ss.load(made("dit"), dtype="float16")
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    # force_upcast of AutoencoderKL: it overflows in float16
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    assert torch.isfinite(ss.draw(model, num=1, nfe=3, label=5).x.float()).all()


@pytest.mark.parametrize("part", ["unet", "vqvae"])
def test_overflow_in_float16_is_named(d, tmp_path, part):
    from safetensors.torch import load_file, save_file

    path = folder(d, tmp_path, "vq")
    config = path / "vqvae" / "config.json"
    file = path / part / "diffusion_pytorch_model.safetensors"
    large = {name: value * 1e4 for name, value in load_file(file).items() if "conv" in name}
    save_file(load_file(file) | large, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    with pytest.raises(RuntimeError, match="float16 weights overflow: take dtype bfloat16"):
        ss.draw(ss.load(path, dtype="float16"), num=1, nfe=3)


def test_a_table_of_embeddings_is_told_whole_indices(d, tmp_path):
    unet = d.UNet2DModel(**UNET, time_embedding_type="learned", num_train_timesteps=1000)
    d.DDPMPipeline(unet, d.DDPMScheduler()).save_pretrained(tmp_path)
    model = ss.load(tmp_path)
    x, index = normal(2, 3, 8, 8).float(), torch.tensor([7, 7])
    with torch.no_grad():
        close(model(x, torch.tensor(8 / 1000, dtype=F64)), unet.eval()(x, index).sample, 1e-6)
    assert ss.draw(model, 1, nfe=4).x.shape == (1, 3, 8, 8)


def test_old_names_of_attention(d, made, tmp_path):
    from safetensors.torch import load_file, save_file

    path = folder(d, tmp_path, "ddim")
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    today = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in load_file(file).items():
        for new, before in today.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = value
    assert old.keys() != load_file(file).keys()
    save_file(old, file)
    before, found = (ss.load(p).state_dict() for p in (made("ddim"), path))
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_dit_by_its_old_class_and_the_names_of_classes(d, made, tmp_path):
    path = folder(d, tmp_path, "dit")
    index = json.loads((path / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "Transformer2DModel"]
    index["id2label"] = {"0": "tench, Tinca tinca", "1": "crane", "2": "crane, bird"}
    (path / "model_index.json").write_text(json.dumps(index))
    model = ss.load(path)
    assert model.data.classes[:4] == ("tench", "crane 1", "crane 2", "3")
    assert ss.draw(model, num=1, nfe=2, label="tench").label.tolist() == [0]
    assert model.classes == len(model.data.classes) == 1000


def test_a_vq_model_without_a_scaling_factor_takes_1_and_says_so(d, tmp_path):
    path = folder(d, tmp_path, "vq")
    file = path / "vqvae" / "config.json"
    config = json.loads(file.read_text())
    del config["scaling_factor"]
    file.write_text(json.dumps(config))
    from scoresde.runs.load import load_run

    loaded = load_run(path)
    assert loaded.model.codec.latents_std.tolist() == [1, 1, 1]
    assert "scaling_factor is missing" in loaded.notes[0]


def test_weights_of_another_model_are_refused(d, made, tmp_path):
    path = folder(d, tmp_path, "ddpm")
    file = path / "unet" / "config.json"
    config = json.loads(file.read_text())
    for change, message in (
        ({"in_channels": 4}, "has the shape"),
        ({"layers_per_block": 2}, "tensors are missing"),
        ({"down_block_types": ["DownBlock2D"] * 2}, "that its class does not have"),
        ({"block_out_channels": [8, 7]}, "config.json: UNet2DModel"),
        ({"sample_size": None}, "sample_size"),
        ({"out_channels": 4}, "conv_out.bias has the shape"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            ss.load(path)
    with pytest.raises(ValueError, match="out_channels=4 of in_channels=3"):
        ss.load(folder(d, tmp_path, "odd"))
    file.write_text(json.dumps(config | {"new_field": 3}))
    read = Folder(path)
    module_of(read, "unet")
    assert "has no new_field" in read.notes[0]


@pytest.mark.parametrize("name", ["ddpm", "vq", "dit", "classes"])
def test_commands(made, name, tmp_path, capsys):
    from scoresde.cli.main import main

    path, out = str(made(name)), tmp_path / "out"
    assert main(["info", path]) == 0
    assert "parameters" in capsys.readouterr().out
    said = ["--class", "3"] if name in ("dit", "classes") else []
    few = ["--num", "1", "--sample.steps", "3", "--device", "cpu"]
    assert main(["sample", "--checkpoint", path, *said, *few, "--out", str(out)]) == 0
    again = ["--like", str(out / "000000.png"), "--out", str(tmp_path / "again")]
    assert main(["sample", *again, "--device", "cpu"]) == 0
    assert "the same picture" in capsys.readouterr().err
    assert main(["compare", "--checkpoint", path, "--num", "1", "--steps", "2", "--samplers",
                 "ddim", "--tolerance", "1e-2", "--device", "cpu"]) == 0  # fmt: skip
    changed = tmp_path / "edited"
    assert main(["edit", "img2img", "--checkpoint", path, "--picture", str(out / "000000.png"),
                 *said, *few, "--out", str(changed)]) == 0  # fmt: skip
    of = [] if name not in ("vq", "dit") else ["--likelihood.of", "latents"]
    score = ["likelihood", "--checkpoint", path, "--images", str(out), "--device", "cpu"]
    if name == "classes":
        assert main([*score, *of, "--likelihood.steps", "12"]) == 2
        assert "the network needs a class" in capsys.readouterr().err
    else:
        assert main([*score, *of, "--likelihood.steps", "12"]) == 0
        assert "bits/dim" in capsys.readouterr().out
    assert main(["likelihood", "--checkpoint", path, "--device", "cpu"]) == 2
    assert "data.path is not given" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ddpm", "learned"])
def test_the_bound_of_the_chain_is_their_sum(d, tmp_path, name):
    """Their network and the formulas of guided-diffusion, summed over all of 100 levels."""
    path = folder(d, tmp_path, name, num_train_timesteps=100, beta_end=0.2)
    model, pipe = ss.load(path, dtype=F64), theirs(d, path)
    n, betas = 32, pipe.scheduler.betas  # draws of one picture
    after = pipe.scheduler.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=F64), after[:-1]])
    small = betas * (1 - before) / (1 - after)
    small[0] = small[1]
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    pixels = pixels.expand(n, -1, -1, -1)
    x, draws = pixels.double() / 127.5 - 1, torch.Generator().manual_seed(4)

    def predicted(level):
        """Mean and log-variance of their reverse step, and the state that it starts from."""
        eps = torch.randn(x.shape, generator=draws, dtype=F64)
        z = after[level].sqrt() * x + (1 - after[level]).sqrt() * eps
        with torch.no_grad():
            out = pipe.unet(z, torch.full((n,), level)).sample
        x0 = (z - (1 - after[level]).sqrt() * out[:, :3]) / after[level].sqrt()
        log_variance = small[level].log().expand_as(x)
        if name == "learned":
            share = (out[:, 3:] + 1) / 2
            log_variance = share * betas[level].log() + (1 - share) * log_variance
        return mean(x0, z, level), log_variance, z

    def mean(x0, z, level):
        one = betas[level] * before[level].sqrt() / (1 - after[level])
        two = (1 - before[level]) * (1 - betas[level]).sqrt() / (1 - after[level])
        return one * x0 + two * z

    nats = torch.zeros(n, dtype=F64)
    for level in range(1, 100):
        found, log_p, z = predicted(level)
        log_q, gap = small[level].log(), (mean(x, z, level) - found).square()
        kl = (log_p - log_q - 1 + (log_q - log_p).exp() + gap * (-log_p).exp()) / 2
        nats += kl.flatten(1).sum(1)
    decoded = []
    for _ in range(8):
        found, log_p, _ = predicted(0)
        scale = (-log_p / 2).exp()
        upper, lower = ((x + side / 255 - found) * scale for side in (1, -1))
        upper = torch.where(pixels == 255, torch.inf, upper)
        lower = torch.where(pixels == 0, -torch.inf, lower)
        cdf = torch.special.ndtr
        mass = torch.where(lower > 0, cdf(-lower) - cdf(-upper), cdf(upper) - cdf(lower))
        decoded.append(-mass.clamp(min=1e-300).log().flatten(1).sum(1))
    nats += torch.stack(decoded).mean(0)
    prior = after[-1] * x.square() - after[-1] - (1 - after[-1]).log()
    nats += (prior / 2).flatten(1).sum(1)
    ts = torch.arange(100, 0, -1, dtype=F64) / 100
    mix = None if name == "learned" else 0.0
    bound = discrete_elbo(model.denoiser(), x, ts, mix=mix, levels=model.data.scaling)
    (ours, them), errors = (
        [float(f(each)) for each in (-bound.log_prob, nats)] for f in (torch.mean, torch.std)
    )
    error = sum(each**2 / n for each in errors) ** 0.5
    assert error < 0.02 * them
    assert abs(ours - them) < 4 * error, (ours, them, error)
