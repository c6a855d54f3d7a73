"""Models of ours as folders of diffusers, and modules of diffusers trained here.

    pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity

In float64 the features of the noise level are computed in float64 on their side too, since
``Timesteps`` of diffusers is float32 whatever the dtype of the weights is.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde.cli.main import main
from scoresde.conditions import Label, Tokens
from scoresde.config import ConfigError, build_model, load_config
from scoresde.data import Scaling
from scoresde.guidance import free
from scoresde.interop import keymaps, native
from scoresde.interop.folder import Folder
from scoresde.interop.keymaps import NoTwin
from scoresde.interop.pipelines import read_folder
from scoresde.latent import KLAutoencoder, VQAutoencoder
from scoresde.likelihood.divergence import Hutchinson, rademacher
from scoresde.nn import DiT, Timesteps, adm
from scoresde.nn.embeddings import positions
from scoresde.runs.log import Quiet
from scoresde.runs.train import train_run
from scoresde.samplers import DDIM
from scoresde.training.checkpoint import DataDescription
from tests.parity.stable_diffusion_folders import make, text_encoder, tokenizer

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("diffusers")]

SIZE = (8, 8)


@pytest.fixture(autouse=True)
def seeded():
    """The same inputs in every run. What diffusers warns of is its own affair."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def drawn(module):
    """A module whose output is neither 0 nor huge."""
    generator = torch.Generator().manual_seed(0)
    for value in module.parameters():
        noise = torch.randn(value.shape, generator=generator)
        wide = value.ndim > 1
        value.data = 0.5 * noise / value[0].numel() ** 0.5 if wide else value + 0.1 * noise
    return module.eval().requires_grad_(False)


ADM = {"width": 128, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "indexed": True}
DIT = {"width": 64, "depth": 2, "heads": 4, "indexed": True, "late": True}
NETWORKS = {
    "adm": lambda: adm(3, classes=4, **ADM),
    "adm, one head, learned variance": lambda: adm(3, head_channels=None, outputs=6, **ADM),
    "dit": lambda: DiT(3, classes=4, **DIT),
    "dit, no classes, learned variance": lambda: DiT(3, outputs=6, **DIT),
}


class Wide(nn.Module):
    """Features of the noise level in float64."""

    def __init__(self, width, flip):
        super().__init__()
        self.features, self.shift = Timesteps(width), width // 2 if flip else 0

    def forward(self, timesteps):
        return self.features(timesteps.double()).roll(self.shift, 1)


def widened(module, net):
    """A module that computes its constants in float64."""
    if isinstance(net, DiT):
        for block in module.transformer_blocks:
            block.norm1.emb.time_proj = Wide(256, True)
        side = SIZE[0] // net.patch
        like = torch.zeros(1, net.stem.out_channels, dtype=torch.float64)
        module.pos_embed.pos_embed = positions(side, side, like).roll(like.shape[1] // 2, 1)[None]
    else:
        module.time_proj = Wide(net.condition.hidden.in_features, False)
    return module.double()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
def test_a_twin_computes_the_same(diffusers, kind, dtype, limit):
    net = drawn(NETWORKS[kind]()).to(dtype)
    twin = keymaps.network(net, SIZE)
    module = getattr(diffusers, twin.kind).from_config(dict(twin.config)).to(dtype).eval()
    module.load_state_dict(twin.forth(net.state_dict()))
    if dtype == torch.float64:
        widened(module, net)
    x = torch.randn(5, 3, *SIZE, dtype=dtype)
    noise = torch.tensor([0.0, 1.0, 37.25, 500.0, 999.0], dtype=dtype)
    label = None if net.classes is None else torch.tensor([0, 1, 2, 3, 4])
    none = torch.zeros(5, dtype=torch.int64) if isinstance(net, DiT) else None
    ours = net(x, noise) if label is None else net(x, noise, label)
    theirs = module(x, noise, class_labels=none if label is None else label).sample
    assert float(ours.std()) > 0.1
    assert float((theirs - ours).abs().max()) < limit * float(ours.abs().max())


CODECS = {
    "kl": lambda: KLAutoencoder(3, 4, patch=1, law="gaussian"),
    "kl, attention": lambda: KLAutoencoder(
        1, 2, patch=1, widths=(32, 64, 128), groups=32, attention=True, blocks=2
    ),
    "vq": lambda: VQAutoencoder(3, 4, patch=1, codes=16, isotropic=True),
}


def standardised(codec):
    codec = drawn(codec)
    c = codec.latent_channels
    codec.latents_mean.copy_(torch.linspace(-1, 1, c))
    codec.latents_std.copy_(torch.linspace(0.5, 2, c))
    if codec.isotropic:
        codec.latents_std.fill_(1.7)
        codec.codebook.codes.copy_(torch.randn(codec.codebook.codes.shape))
        codec.codebook.counts.fill_(1)
    return codec


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_an_autoencoder_computes_the_same(diffusers, kind, dtype, limit):
    codec = standardised(CODECS[kind]()).to(dtype)
    twin = keymaps.autoencoder(codec, (16, 24))
    tensors, factor = keymaps.folded(codec, twin.forth(codec.state_dict()))
    vae = getattr(diffusers, twin.kind)(**twin.config).to(dtype).eval().requires_grad_(False)
    vae.load_state_dict(tensors)
    x = 2 * torch.rand(2, codec.channels, 16, 24, dtype=dtype) - 1
    law, found = codec.encode(x), vae.encode(x)
    w = codec.standardised(law.mean)
    z = found.latents if hasattr(found, "latents") else found.latent_dist.mean
    assert float((z * factor - w).abs().max()) < limit * float(w.abs().max())
    if hasattr(found, "latent_dist"):
        std = law.std / codec.latents_std[:, None, None]
        assert float((found.latent_dist.std - std).abs().max()) < limit * float(std.max())
    w = torch.randn_like(w)
    ours, theirs = codec.decode(codec.unstandardised(w)), vae.decode(w / factor).sample
    assert float((theirs - ours).abs().max()) < limit * float(ours.abs().max())


# --- whole folders ------------------------------------------------------------------------------

CHAIN = {"sde.kind": "discrete_vp", "parameterization.noise": "index"}
SMALL_ADM = {"network.kind": "adm", "network.width": 128, "network.multipliers": "1,1"}
SMALL_ADM |= {"network.blocks": 1, "network.attention": "1"}
SMALL_DIT = {"network.kind": "dit", "network.width": 32, "network.depth": 2, "network.heads": 2}
NATIVE = {"network.kind": "diffusers", "network.width": 32, "network.multipliers": "1,2"}
NATIVE |= {"network.blocks": 1}
NATIVE_DIT = {"network.kind": "diffusers", "network.model": "DiTTransformer2DModel"}
NATIVE_DIT |= {"network.width": 64, "network.blocks": 2, "network.head_channels": 32}
VARIANCE = {"network.head": "variance", "train.objective.kind": "hybrid"}
VARIANCE |= {"train.times.kind": "levels", "train.times.n": 1000}


def model_of(settings, shape=(1, *SIZE), classes=None, codec=None, told=None):
    """A model with drawn weights, of pictures of the given shape."""
    config = load_config(None, CHAIN | settings | {"conditional": classes is not None})
    names = None if classes is None else tuple(f"class {i}" for i in range(classes))
    data = DataDescription("toy", shape, Scaling(256), names, 0.5, told or {})
    seen = shape if codec is None else codec.latent_shape(shape)
    seen_as = DataDescription("toy", seen, Scaling(256), names, told=told or {})
    model = build_model(config, seen_as).eval().requires_grad_(False)
    drawn(model.net)
    for value in list(model.net.parameters())[-2:]:  # of the last layer
        value.data *= 0.1
    model.data, model.config, model.codec = data, config, codec
    return model


MODELS = {
    "adm, v": lambda: model_of({"parameterization.kind": "v"} | SMALL_ADM),
    "adm, v, learned variance": lambda: model_of(
        {"parameterization.kind": "v"} | SMALL_ADM | VARIANCE
    ),
    "adm, x0, zero terminal": lambda: model_of(
        {"parameterization.kind": "x0", "sde.zero_terminal": True} | SMALL_ADM
    ),
    "diffusers, v, cosine": lambda: model_of(
        {"parameterization.kind": "v", "sde.table.kind": "cosine"} | NATIVE
    ),
    "adm, eps": lambda: model_of({"parameterization.kind": "eps"} | SMALL_ADM),
    "dit, classes": lambda: model_of({"network.late": True} | SMALL_DIT, classes=3),
    "diffusers, classes": lambda: model_of(NATIVE, classes=3),
    "diffusers, DiT": lambda: model_of(NATIVE_DIT, classes=3),
}
DRAWN = list(MODELS)[:4]


def opened(diffusers, folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both_pictures(pipe, model, steps=20, **told):
    """Pictures of a pipeline in its chain, and ours of the same noise and levels, in [0, 1]."""
    torch.manual_seed(2)  # of the noise that LDMPipeline and DiTPipeline draw in their steps
    theirs = pipe(
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=steps,
        output_type="np",
        **told,
    )
    generator = torch.Generator().manual_seed(1)
    shape = model.data.shape if model.codec is None else model.codec.latent_shape(model.data.shape)
    noise = torch.randn(2, *shape, generator=generator)
    label = {"label": torch.tensor(told["class_labels"])} if "class_labels" in told else {}
    if model.codec is not None:
        generator = torch.Generator().manual_seed(2)
    x = ss.sample(
        model.denoiser(**label),
        noise,
        (pipe.scheduler.timesteps.double() + 1) / len(model.sde.betas),
        DDIM(eta=1, variance="learned" if model.variance and not label else "small"),
        lambda x, t=None, s=None: torch.randn(x.shape, generator=generator),
    )
    x = x if model.codec is None else model.codec.decode(model.codec.unstandardised(x))
    return torch.from_numpy(theirs.images).movedim(-1, 1), (x / 2 + 0.5).clamp(0, 1)


def agree(theirs, ours, limit=1e-4):
    assert float(ours.std()) > 0.005
    assert float((theirs - ours).abs().max()) < limit


@pytest.mark.parametrize("kind", DRAWN)
def test_a_folder_opens_and_draws_the_same_picture(diffusers, tmp_path, kind):
    """Their table is float32, so that 1 - alpha^2 of the cleanest level is off by 2e-4."""
    model = MODELS[kind]()
    assert ss.export(model, tmp_path / "out").pipeline == "DDPMPipeline"
    agree(*both_pictures(opened(diffusers, tmp_path / "out"), model, batch_size=2))


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_ours_reads_back_as_the_same_model(tmp_path, kind):
    model = MODELS[kind]()
    ss.export(model, tmp_path / "out")
    back = read_folder(Folder(tmp_path / "out"))
    assert (back.data, back.classes) == (model.data, model.classes)
    assert (back.sde, back.parameterization) == (model.sde, model.parameterization)
    assert back.variance == model.variance
    x = torch.randn(3, *model.data.shape)
    t = torch.tensor([0.001, 0.4, 1.0], dtype=torch.float64)
    for label in ({}, {"label": torch.tensor([0, 1, 2])}) if model.classes else ({},):
        ours, theirs = (m.denoiser(**label)(x, t) for m in (model, back))
        assert float((theirs - ours).abs().max()) < 1e-5 * float(ours.abs().max())
    x = x[:1].clamp(-1, 1)


@pytest.mark.parametrize("kind", ["adm, v", "diffusers, v, cosine"])
def test_the_likelihood_of_a_folder_is_that_of_the_model(tmp_path, kind):
    model = MODELS[kind]()
    ss.export(model, tmp_path / "out")
    back = read_folder(Folder(tmp_path / "out"))
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(2, *model.data.shape, generator=generator) - 1
    trace = Hutchinson(rademacher(x, 2, generator))
    ours, theirs = (
        ss.log_likelihood(m.denoiser(), x, trace, method="rk4", steps=4).log_prob
        for m in (model, back)
    )
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)


def test_a_folder_written_back_has_its_weights(diffusers, tmp_path):
    for kind in ("diffusers, classes", "diffusers, DiT", "adm, v"):
        ss.export(MODELS[kind](), tmp_path / "first", overwrite=True)
        model = read_folder(Folder(tmp_path / "first"))
        ss.export(model, tmp_path / "second", overwrite=True)
        files = sorted(p for p in (tmp_path / "first").rglob("*") if p.is_file())
        assert len(files) == 5
        for file in files:
            again = tmp_path / "second" / file.relative_to(tmp_path / "first")
            if file.suffix == ".safetensors":
                assert again.read_bytes() == file.read_bytes()
            elif file.name != "scoresde.json":  # the configuration of the run is not known there
                drop = "_name_or_path"
                a, b = (json.loads(f.read_text()) for f in (file, again))
                assert {**a, drop: 0} == {**b, drop: 0}


LATENT = {
    "LDMPipeline": ("kl", lambda codec: model_of(SMALL_ADM, (3, 16, 16), codec=codec)),
    "LDMPipeline, vq": ("vq", lambda codec: model_of(NATIVE, (3, 16, 16), codec=codec)),
    "DiTPipeline": (
        "kl",
        lambda codec: model_of(
            SMALL_DIT | {"network.late": True}, (3, 16, 16), classes=3, codec=codec
        ),
    ),
}


@pytest.mark.parametrize("kind", LATENT)
def test_a_model_of_latents_draws_the_same_picture(diffusers, tmp_path, kind):
    name, make = LATENT[kind]
    model = make(standardised(CODECS[name]()))
    found = ss.export(model, tmp_path / "out")
    assert found.pipeline == kind.split(",")[0]
    told = {"class_labels": [0, 2], "guidance_scale": 1} if "DiT" in kind else {"batch_size": 2}
    pipe = opened(diffusers, tmp_path / "out")
    agree(*both_pictures(pipe, model, **told), limit=1e-3)
    back = read_folder(Folder(tmp_path / "out"))
    assert back.data == model.data
    x = 2 * torch.rand(2, *model.data.shape) - 1
    w, theirs = (m.codec.standardised(m.codec.encode(x).mean) for m in (model, back))
    assert float((theirs - w).abs().max()) < 1e-5 * float(w.abs().max())


def test_a_flow_is_a_scheduler_of_flows(diffusers, tmp_path):
    settings = {"sde.kind": "linear_flow", "parameterization.kind": "flow"}
    model = model_of(settings | {"parameterization.noise": "time"} | SMALL_ADM)
    ss.export(model, tmp_path / "out")
    pipe = opened(diffusers, tmp_path / "out")
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    x = torch.randn(2, 1, *SIZE)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    v = pipe.unet(x, 1000 * t.float()).sample
    expected = x - t.float()[:, None, None, None] * v
    torch.testing.assert_close(model.denoiser()(x, t), expected, rtol=0, atol=1e-5)


def test_a_module_of_diffusers_trains_and_its_run_needs_no_file(diffusers, tmp_path):
    """The configuration of the run holds the config.json that the network was built of."""
    small = diffusers.UNet2DModel(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, in_channels=1,
        out_channels=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=11, attention_head_dim=8,
    )  # fmt: skip
    small.save_config(tmp_path / "unet")
    config = load_config(
        None,
        CHAIN
        | {
            "conditional": True,
            "network.kind": "diffusers",
            "network.model": str(tmp_path / "unet" / "config.json"),
            "train.steps": 2,
            "train.batch": 4,
        },
    )
    train_run(config, tmp_path / "run", device="cpu")
    (tmp_path / "unet" / "config.json").unlink()
    model = ss.load(tmp_path / "run")
    assert type(model.net.module).__name__ == "UNet2DModel"
    assert main(["export", str(tmp_path / "run"), "--to", "diffusers", str(tmp_path / "out")]) == 0
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    ours = model.net.module.state_dict()
    assert all(torch.equal(ours[k], x) for k, x in unet.state_dict().items())
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    again = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--overwrite"]
    assert main(again) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"in_channels": 4}, "in_channels=4, and the data need 1"),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"time_embedding_type": "fourier"}, "positional"),
        ({"class_embed_type": "identity"}, "class_embed_type"),
        ({"down_blocks": 3}, "'down_blocks', which UNet2DModel has not"),
    ],
)
def test_a_config_that_does_not_fit_is_named(fields, words):
    model = json.dumps({"_class_name": "UNet2DModel", **fields})
    with pytest.raises(ValueError, match=words):
        native.diffusers(1, model=model, image_size=SIZE)


def test_a_module_needs_pictures_and_the_index():
    points = DataDescription("points", (2,), Scaling(None))
    with pytest.raises(ConfigError, match="needs images"):
        build_model(load_config(None, CHAIN | NATIVE), points)
    pictures = DataDescription("toy", (1, *SIZE), Scaling(256))
    with pytest.raises(ValueError, match="noise=index"):
        build_model(load_config(None, NATIVE), pictures)


def test_a_text_reaches_a_conditional_u_net(diffusers):
    net = native.diffusers(
        3, model="UNet2DConditionModel", width=32, multipliers=(1, 2), blocks=1, attention=(1,),
        head_channels=16, context=12, image_size=SIZE,
    ).eval()  # fmt: skip
    x, noise = torch.randn(2, 3, *SIZE), torch.tensor([3.0, 500.0])
    text, mask = torch.randn(2, 5, 12), torch.tensor([[True] * 3 + [False] * 2] * 2)
    said = net(x, noise, context=text, mask=mask)
    torch.testing.assert_close(said, net(x, noise, context=text[:, :3]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(said, net(x, noise))


# --- sentences ----------------------------------------------------------------------------------

SENTENCES = ["a red cat", "a dog", "a red hat", ""] * 3
TOLD = {"network.kind": "diffusers", "network.model": "UNet2DConditionModel"}
TOLD |= {"network.width": 16, "network.multipliers": "1,2", "network.blocks": 1}
TOLD |= {"network.attention": "0", "network.head_channels": 8, "sde.table.kind": "scaled_linear"}
SHORT = {"train.steps": 2, "train.batch": 4, "train.holdout": 0, "train.keep_best": False}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a small CLIP with its tokeniser, whose weights make sentences differ."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("clip")
    drawn(text_encoder(16)).save_pretrained(folder / "text_encoder")
    tokenizer(folder / "words").save_pretrained(folder / "tokenizer")
    return folder


def written_about(clip, cache, settings=None, name="text", codec=None, shape=(3, 16, 16), **text):
    """A model of latents and of sentences, with drawn weights."""
    said = {"kind": "frozen_text", "folder": str(clip), "cache": str(cache), **text}
    config = {f"conditions.{name}.{key}": value for key, value in said.items()}
    codec = standardised(CODECS["kl"]()) if codec is None else codec
    settings = TOLD | config | (settings or {})
    model = model_of(settings, shape, codec=codec, told={name: {"states": 16}})
    for key, value in model.net.named_parameters():  # so that a sentence is seen in the picture
        if "attn2" in key and "to_k" not in key:
            value.data *= 6
    return model


def both_told(pipe, model, steps=10, name="text", guidance=4.0, against="a hat"):
    """Pictures of the pipeline and ours, of the same noise, sentences, and what is against."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *model.codec.latent_shape(model.data.shape), generator=generator)
    prompts = ["a red cat", "a dog"]
    theirs = pipe(
        prompts, negative_prompt=[against] * 2, guidance_scale=guidance, latents=noise,
        num_inference_steps=steps, output_type="pt", generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    x = ss.sample(
        free(model, {name: prompts}, {name: against}, guidance),
        noise,
        (pipe.scheduler.timesteps.double() + 1) / len(model.sde.betas),
        DDIM(eta=1, variance="small"),
        lambda x, t=None, s=None: torch.randn(x.shape, generator=generator),
    )
    x = model.codec.decode(model.codec.unstandardised(x))
    return theirs, (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_model_of_sentences_is_a_stable_diffusion(diffusers, clip, tmp_path, prediction):
    settings = {"parameterization.kind": prediction}
    model = written_about(clip, tmp_path, settings, "caption", padded=True)
    found = ss.export(model, tmp_path / "out")
    assert (found.pipeline, found.notes) == ("StableDiffusionPipeline", ())
    files = {file.suffix for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    theirs, ours = both_told(pipe, model, name="caption")
    agree(theirs, ours, limit=1e-5)
    other = both_told(pipe, model, name="caption", against="")[1]
    assert float((other - ours).abs().max()) > 5e-3
    back = read_folder(Folder(tmp_path / "out"))
    assert (back.data, back.sde) == (model.data, model.sde)
    assert back.parameterization == model.parameterization
    assert list(back.conditions) == ["caption"]
    x = torch.randn(2, *model.codec.latent_shape(model.data.shape))
    t = torch.tensor([0.05, 0.8], dtype=torch.float64)
    said = []
    for text in (["a red cat", "a dog"], None):
        for guidance in (1.0, 5.0):
            ours, theirs = (
                free(m, {"caption": text or [""] * 2}, {"caption": "a hat"}, guidance)(x, t)
                for m in (model, back)
            )
            assert float((theirs - ours).abs().max()) < 1e-5 * float(ours.abs().max())
            said.append(ours)
    assert float((said[0] - said[2]).abs().max()) > 1e-3
    x = 2 * torch.rand(2, *model.data.shape) - 1
    w, theirs = (m.codec.standardised(m.codec.encode(x).mean) for m in (model, back))
    assert float((theirs - w).abs().max()) < 1e-5 * float(w.abs().max())


def test_a_sentence_is_padded_to_the_length_that_it_was_trained_with(diffusers, clip, tmp_path):
    model = written_about(clip, tmp_path, padded=True, length=20, dropout=0)
    assert "guidance_scale=1" in ss.export(model, tmp_path / "out").notes[0]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    found = pipe.encode_prompt("a red cat", "cpu", 1, False)[0]
    assert found.shape == (1, 20, 16)
    condition = model.conditions["text"]
    told = condition(condition.read("a red cat"))
    assert (told.mask, told.embed) == (None, None)
    torch.testing.assert_close(told.context, found, rtol=0, atol=1e-6)
    back = read_folder(Folder(tmp_path / "out"))
    assert back.read(text="a dog")["text"].shape == (1, 20)


def test_a_run_of_sentences_is_trained_and_exported(diffusers, clip, tmp_path):
    config = CHAIN | TOLD | SHORT
    text = {"kind": "frozen_text", "folder": str(clip), "padded": True, "cache": str(tmp_path)}
    config |= {f"conditions.text.{key}": value for key, value in text.items()}
    x = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    codec = standardised(CODECS["kl"]())
    codec.kind = "kl"
    codec.arguments = {"channels": 3, "latent_channels": 4, "patch": 1, "law": "gaussian"}
    ss.train(
        load_config(None, config), (x, {"text": SENTENCES}), out=tmp_path / "run", device="cpu",
        codec=codec, listener=Quiet(),
    )  # fmt: skip
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", "diffusers", str(out)]) == 0
    model = ss.load(tmp_path / "run")
    told = {"prompt": "a red cat", "negative": "a dog", "guidance": 3.0, "nfe": 3, "num": 2}
    ours, back = ss.draw(model, **told), ss.draw(ss.load(out), **told)
    torch.testing.assert_close(back.x, ours.x, rtol=0, atol=1e-4)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    agree(*both_told(pipe, model), limit=1e-5)


@pytest.mark.parametrize("kind", ["tokens", "frozen_text"])
def test_a_module_of_diffusers_trains_with_sentences_of_every_kind(clip, tmp_path, kind):
    """On pixels, told states behind a mask too; a condition that also embeds is refused."""
    more = {"folder": str(clip), "cache": str(tmp_path)} if kind == "frozen_text" else {"width": 8}
    x = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)

    def trained(**said):
        told = {"kind": kind, **more, **said}
        config = CHAIN | TOLD | SHORT
        config |= {f"conditions.text.{key}": value for key, value in told.items()}
        data = (x, {"text": SENTENCES})
        return ss.train(load_config(None, config), data, device="cpu", listener=Quiet()).model

    alone = {"padded": True} if kind == "frozen_text" else {"pooled": False}
    drawn = ss.draw(trained(**alone), 2, prompt="a red cat", guidance=2.0, nfe=3)
    assert bool(drawn.x.isfinite().all())
    with pytest.raises(ConfigError, match=r"takes no embed.*pooled: false.*padded: true"):
        trained()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model.conditions["text"], "padded", False), "padded: true"),
        (lambda model: setattr(model, "codec", None), "on its latents"),
        (lambda model: setattr(model, "codec", standardised(CODECS["vq"]())), "kind kl"),
        (lambda model: setattr(model, "variance", True), "without network.head"),
        (lambda model: setattr(model.net, "classes", 3), "conditional: false"),
        (lambda model: setattr(model, "net", model.codec), "model: UNet2DConditionModel"),
        (lambda model: setattr(model, "sde", ss.VP()), "sde.kind: discrete_vp"),
        (
            lambda model: model.conditions.update({"label": Label(["a", "b"])}),
            "conditions: label: pipelines",
        ),
        (
            lambda model: model.conditions.update(
                {"text": Tokens(["a"], 3, width=8, heads=2, pooled=False)}
            ),
            "conditions: text: pipelines",
        ),
    ],
)
def test_what_stable_diffusion_does_not_do_is_named(clip, tmp_path, change, words):
    model = written_about(clip, tmp_path / "cache", padded=True)
    change(model)
    with pytest.raises(NoTwin, match=words):
        ss.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_stable_diffusion_is_written_back(tmp_path, kind, dtype):
    path = make(kind, tmp_path / "first", tmp_path / "scratch")
    model = ss.load(path, dtype=dtype)
    ss.export(model, tmp_path / "second")
    again = ss.load(tmp_path / "second", dtype=dtype)
    assert (again.sde, again.parameterization) == (model.sde, model.parameterization)
    assert again.data == model.data
    ours, back = model.state_dict(), again.state_dict()
    assert ours.keys() == back.keys()
    assert all(torch.equal(back[k], value) for k, value in ours.items())
    told = {"prompt": "a red cat", "negative": "a dog", "guidance": 3.0, "nfe": 2}
    assert torch.equal(ss.draw(again, **told).x, ss.draw(model, **told).x)


def test_a_folder_of_stable_diffusion_3_is_not_written(tmp_path):
    path = make("sd3", tmp_path / "first", tmp_path / "scratch")
    with pytest.raises(NoTwin, match="copy its folder"):
        ss.export(path, tmp_path / "second")
