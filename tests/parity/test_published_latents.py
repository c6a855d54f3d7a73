"""Checkpoints of CompVis, made here in their layout, as folders of diffusers."""

import math

import pytest
import torch

from scoresde import draw
from scoresde.interop.folder import Folder
from scoresde.interop.pipelines import read_folder
from scoresde.interop.published import read
from scoresde.interop.published.compvis import write
from scoresde.runs.importing import import_model
from tests.interop.published_networks import Autoencoder, Weights, guided

pytestmark = pytest.mark.parity
D = torch.float64
SHAPE = {"mc": 32, "mult": (1, 2), "blocks": 1, "attends": (1,), "heads": 2, "out": 4,
         "ordered": False, "shifts": False, "updown": False}  # fmt: skip


def imported(file, out, said):
    write(read(file, "compvis", None, said), out)
    return read_folder(Folder(out))


def close(found, expected):
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max().clamp(min=1)


def parts(context=None, vq=None):
    """U-Net and autoencoder, which have made their weights."""
    unet, codec = Weights(1), Autoencoder(Weights(2), vq=vq)
    guided(unet, torch.zeros(1, 4, 4, 4, dtype=D), torch.ones(1), context=context, **SHAPE)
    codec.decode(codec.encode(torch.zeros(1, 3, 8, 8, dtype=D))[:, :4])
    return unet, codec


def state_of(unet, codec, ema=True):
    """The state dict of a LatentDiffusion: other weights of the U-Net beside its averages."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=D).square().float()
    found = {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0)}
    for name, value in unet.items():
        whole = f"model.diffusion_model.{name}"
        found[whole] = torch.zeros_like(value) if ema else value
        if ema:
            found["model_ema." + whole.removeprefix("model.").replace(".", "")] = value
    if ema:
        found |= {
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(3),
        }
    return found | {f"first_stage_model.{k}": v for k, v in codec.w.items()}


@torch.no_grad()
def agrees(diffusers, folder, unet, codec, context=None):
    x, noise = torch.randn(2, 4, 4, 4, dtype=D), torch.tensor([3.0, 700.0], dtype=D)
    kind = diffusers.UNet2DModel if context is None else diffusers.UNet2DConditionModel
    theirs = kind.from_pretrained(folder / "unet").double()
    told = {} if context is None else {"encoder_hidden_states": context}
    # They compute the features of the noise in float32.
    expected = guided(unet, x, noise, context=context, **SHAPE)
    assert (theirs(x, noise, **told).sample - expected).abs().max() < 1e-5 * expected.abs().max()
    theirs.time_proj.forward = lambda t: waves_of(t)
    close(theirs(x, noise, **told).sample, expected)
    picture = torch.randn(2, 3, 8, 8, dtype=D)
    if codec.vq:
        vae = diffusers.VQModel.from_pretrained(folder / "vqvae").double()
        latents = codec.encode(picture)
        close(vae.encode(picture).latents, latents)
    else:
        place = "vqvae" if context is None else "vae"
        vae = diffusers.AutoencoderKL.from_pretrained(folder / place).double()
        moments = codec.encode(picture)
        close(vae.encode(picture).latent_dist.mean, moments[:, :4])
        latents = moments[:, :4]
    close(vae.decode(latents).sample, codec.decode(latents))


def waves_of(t):
    half = SHAPE["mc"] // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = t.double()[:, None] * frequencies.double()
    return torch.cat([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("vq", [None, 7])
def test_unconditional_latent_diffusion_is_its_formula(diffusers, tmp_path, vq):
    unet, codec = parts(vq=vq)
    state = state_of(unet, codec) | {"scale_factor": torch.tensor(0.5)}
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 7, "epoch": 1}, file)
    said = {"num_head_channels": 32, "image_size": 4, "parameterization": "eps"}
    model = imported(file, tmp_path / "out", said)
    agrees(diffusers, tmp_path / "out", unet, codec)
    assert model.sde.betas == pytest.approx(
        (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=D) ** 2).tolist(), abs=1e-12
    )
    assert float(1 / model.codec.latents_std[0]) == pytest.approx(0.5)


def test_an_import_is_a_folder_that_draws_and_only_it_is_replaced(diffusers, tmp_path):
    state = state_of(*parts()) | {"scale_factor": torch.tensor(0.5)}
    file, out = tmp_path / "model.ckpt", tmp_path / "out"
    torch.save({"state_dict": state, "global_step": 7}, file)
    said = {"num_head_channels": 32, "image_size": 4, "parameterization": "eps"}
    model = import_model(file, "compvis", out, said=said).model
    assert draw(model, 2, nfe=3).x.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="overwrite=True"):
        import_model(file, "compvis", out, said=said)
    import_model(file, "compvis", out, said=said, overwrite=True)
    (out / "scoresde.json").unlink()  # as a folder of somebody else
    with pytest.raises(ValueError, match="no export of scoresde"):
        import_model(file, "compvis", out, said=said, overwrite=True)
    assert (out / "model_index.json").exists()


class OpenClip:
    """The text transformer of OpenCLIP, as Stable Diffusion 2 uses it: without its last layer."""

    def __init__(self, w, width=32, heads=4, words=20, length=8, layers=3):
        self.w, self.width, self.heads, self.layers = w, width, heads, layers
        self.words, self.length = words, length

    def __call__(self, ids):
        w, c = self.w, self.width
        h = w("model.token_embedding.weight", self.words, c)[ids]
        h = h + w("model.positional_embedding", self.length, c)[: ids.shape[1]]
        n = ids.shape[1]
        later = torch.full((n, n), -torch.inf, dtype=D).triu(1)
        for i in range(self.layers):
            at = f"model.transformer.resblocks.{i}"
            before = h
            y = self.norm(f"{at}.ln_1", h)
            qkv = y @ w(f"{at}.attn.in_proj_weight", 3 * c, c).T + w(
                f"{at}.attn.in_proj_bias", 3 * c
            )
            q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in qkv.chunk(3, -1))
            weights = (q @ k.mT / math.sqrt(c // self.heads) + later).softmax(-1)
            y = (weights @ v).transpose(1, 2).flatten(2)
            h = h + w.linear(f"{at}.attn.out_proj", y, c)
            y = torch.nn.functional.gelu(
                w.linear(f"{at}.mlp.c_fc", self.norm(f"{at}.ln_2", h), 4 * c)
            )
            h = h + w.linear(f"{at}.mlp.c_proj", y, c)
        return self.norm("model.ln_final", before)

    def norm(self, name, x):
        c = x.shape[-1]
        return torch.nn.functional.layer_norm(
            x, (c,), self.w(f"{name}.weight", c), self.w(f"{name}.bias", c)
        )


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
@torch.no_grad()
def test_stable_diffusion_is_its_formula(diffusers, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    context = torch.randn(2, 5, 32, dtype=D)
    unet, codec = parts(context[:1])
    state, ids = state_of(unet, codec), torch.tensor([[3, 1, 7, 2]])
    if kind == "clip":
        config = transformers.CLIPTextConfig(
            vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=8,
        )  # fmt: skip
        encoder = transformers.CLIPTextModel(config).double()
        weights = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
        of = "cond_stage_model.transformer.text_model."
        state |= {f"{of}{k}": v.float() for k, v in weights.items()}
        encoder.load_state_dict({k: v.float().double() for k, v in encoder.state_dict().items()})
        expected = encoder(ids).last_hidden_state
    else:
        w = Weights(5)
        clip = OpenClip(w)
        expected = clip(ids)
        w("model.text_projection", 32, 32)
        state |= {f"cond_stage_model.{k}": v for k, v in w.items()}
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.json").write_text("{}")
    (words / "merges.txt").write_text("")
    torch.save({"state_dict": state}, tmp_path / "sd.ckpt")
    said = {"num_heads": 2, "image_size": 4, "parameterization": "v", "scale_factor": 0.18215}
    said |= {"text_heads": 4, "tokenizer": str(words)}
    write(read(tmp_path / "sd.ckpt", "compvis", None, said), tmp_path / "out")
    agrees(diffusers, tmp_path / "out", unet, codec, context)
    found = transformers.CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder").double()
    close(found(ids).last_hidden_state, expected)
    assert '"v_prediction"' in (tmp_path / "out/scheduler/scheduler_config.json").read_text()


def test_what_is_not_in_the_file_is_asked_for(tmp_path):
    unet, codec = parts(torch.zeros(1, 5, 32, dtype=D))
    torch.save({"state_dict": state_of(unet, codec)}, tmp_path / "sd.ckpt")
    with pytest.raises(
        ValueError, match=r"num_head_channels.*image_size.*parameterization.*scale_f"
    ):
        read(tmp_path / "sd.ckpt", "compvis")


def test_averages_that_are_missing_are_named(tmp_path):
    state = state_of(*parts())
    del state["model_ema.diffusion_modelout2weight"]
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"has averages, but not model_ema\.diffusion_modelout2w"):
        read(tmp_path / "model.ckpt", "compvis", None, {"num_head_channels": 32})
