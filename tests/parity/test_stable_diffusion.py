"""Stable Diffusion 1, 2, XL and 3 against the pipelines of diffusers, on small folders made here.

    pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity

Their tables are put into float64 by hand where that is said; docs/parity.md lists what remains.
"""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoresde.guidance import free
from scoresde.interop.folder import Folder
from scoresde.interop.pipelines import read_folder
from scoresde.runs.space import pictures
from scoresde.samplers import DDIM, dpmpp_2m, sample
from tests.parity.stable_diffusion_folders import FOLDERS, make, tokenizer_files

pytestmark = pytest.mark.parity
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
F64 = torch.float64
PROMPTS = ["a red cat", "", "A  DOG, with a hat!", "猫 is 🐈‍⬛ naïve Ünïcode\n", "don't 42 x" * 5]
LONG = "a red cat in a red hat " * 30
VP = ["sd1", "sd2", "sdxl"]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("folders")
    return {kind: make(kind, root / kind, root / f"{kind}-scratch") for kind in FOLDERS}


@pytest.fixture(params=FOLDERS)
def folder(request, folders):
    return folders[request.param]


def ours(path, dtype=F64, nearest=False):
    return read_folder(Folder(path), dtype, nearest)


def theirs(path, dtype=F64, scheduler=None, **options):
    """Their pipeline, with a table in float64 if it has one."""
    parts = json.loads((path / "model_index.json").read_text())
    absent = {name: None for name, part in parts.items() if part == [None, None]}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True, **absent)
    pipeline = pipeline.to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **options)
    if dtype == F64 and hasattr(pipeline.scheduler, "alphas_cumprod"):
        made, config = pipeline.scheduler, pipeline.scheduler.config
        roots = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000, dtype=F64)
        made.alphas_cumprod = (1 - roots**2).cumprod(0)
        made.final_alpha_cumprod = made.alphas_cumprod[0]
    return pipeline


def embedded(pipeline, negative, **options):
    """What their pipeline tells its network of a prompt, and of what is said against."""
    three = "transformer" in pipeline.components
    given = {"prompt_2": None, "prompt_3": None} if three else {}
    found = pipeline.encode_prompt(
        prompt="a red cat", negative_prompt=negative, device="cpu", num_images_per_prompt=1,
        do_classifier_free_guidance=True, **given, **options,
    )  # fmt: skip
    return found


def told(model, text):
    with torch.no_grad():
        y = model.conditions["text"].null(1) if text is None else model.read(text=text)["text"]
        return model.conditions["text"](y)


def noise(n=1, dtype=F64):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=F64).to(dtype)


def gap(a, b):
    return float((a - b).abs().max() / b.abs().max())


# What is read ------------------------------------------------------------------------------------


def test_ids_are_theirs(folder):
    model, pipeline = ours(folder), theirs(folder)
    text = model.conditions["text"]
    words = [pipeline.tokenizer, *(getattr(pipeline, f"tokenizer_{k}", None) for k in (2, 3))]
    lengths = [77, 77, 256]
    text.cut = True
    for prompts in (PROMPTS, [LONG, "a hat"]):
        wanted = [
            each(prompts, padding="max_length", max_length=n, truncation=True, return_tensors="pt")
            for each, n in zip(words, lengths, strict=True)
            if each is not None
        ]
        assert torch.equal(text.read(prompts), torch.cat([w.input_ids for w in wanted], 1))


@pytest.mark.parametrize("kind", VP)
def test_old_tokenisers_give_the_same_ids(folders, kind, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folders[kind], path)
    for name in ("tokenizer", "tokenizer_2"):
        if (path / name).is_dir():
            pad = json.loads((path / name / "tokenizer_config.json").read_text())["pad_token"]
            shutil.rmtree(path / name)
            tokenizer_files(path / name, pad)
    new, old = ours(folders[kind]).conditions["text"], ours(path).conditions["text"]
    assert torch.equal(new.read(PROMPTS), old.read(PROMPTS))


def test_stable_diffusion_2_pads_with_another_sign(folders):
    first, second = (ours(folders[kind]).conditions["text"].read("cat")[0] for kind in VP[:2])
    assert torch.equal(first[:3], second[:3])
    assert (first[-1], second[-1]) == (first[2], 0)


def test_states_are_theirs(folder):
    model, pipeline = ours(folder), theirs(folder)
    for negative in ("a dog", "", None):
        found = embedded(pipeline, negative)
        for text, k in (("a red cat", 0), (negative, 1)):
            own = told(model, text)
            assert gap(own.context, found[k]) < 1e-12 if found[k].any() else not own.context.any()
            if len(found) == 4:
                pooled = found[2 + k]
                assert gap(own.embed, pooled) < 1e-12 if pooled.any() else not own.embed.any()


def test_skipped_layers_are_theirs(folder):
    model, pipeline = ours(folder), theirs(folder)
    model.conditions["text"].skip = 1
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):  # transformers 5 has it no more, and they ask for it
        encoder.__dict__["text_model"] = encoder
    found = embedded(pipeline, "a dog", clip_skip=1)[0]
    assert gap(told(model, "a red cat").context, found) < 1e-12
    model.conditions["text"].skip = 0
    assert gap(told(model, "a red cat").context, found) > 1e-3


def test_nothing_said_is_zeros_only_where_the_folder_says_so(folders, tmp_path):
    path = make("sdxl", tmp_path / "a", tmp_path / "b", force_zeros_for_empty_prompt=False)
    model = ours(path)
    assert gap(told(model, None).context, told(model, "").context) == 0
    found = embedded(theirs(path), None)
    assert gap(told(model, None).context, found[1]) < 1e-12
    model = ours(folders["sdxl"])
    assert not told(model, None).context.any()
    assert told(model, "").context.any()


def test_t5_may_be_absent(tmp_path):
    path = make("sd3", tmp_path / "a", tmp_path / "b", with_t5=False)
    model, pipeline = ours(path), theirs(path)
    own, found = told(model, "a red cat"), embedded(pipeline, "")
    assert own.context.shape == (1, 77 + 256, 48)
    assert gap(own.context, found[0]) < 1e-12


def test_old_names_of_the_weights_of_a_text_encoder(folders, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folders["sd1"], path)
    file = path / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": value for name, value in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file)
    a, b = (told(ours(each), "a red cat").context for each in (path, folders["sd1"]))
    assert torch.equal(a, b)


# What the network returns ------------------------------------------------------------------------


def network(pipeline, x, level, found, k):
    """The output of their network for what ``embedded`` found."""
    if "transformer" in pipeline.components:
        t = torch.as_tensor([level])
        return pipeline.transformer(
            x, encoder_hidden_states=found[k], pooled_projections=found[2 + k], timestep=t
        ).sample
    added = None
    if len(found) == 4:
        sizes = torch.tensor([[16, 16, 0, 0, 16, 16]], dtype=x.dtype)
        added = {"text_embeds": found[2 + k], "time_ids": sizes}
    return pipeline.unet(x, level, found[k], added_cond_kwargs=added).sample


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_outputs_at_twenty_levels(folders, kind, dtype, tolerance):
    model, pipeline = ours(folders[kind], dtype), theirs(folders[kind], dtype)
    found, x = embedded(pipeline, "a dog"), noise(dtype=dtype)
    prompt, guided = model.denoiser(text="a red cat"), {}
    for scale in (1.0, 5.0):
        guided[scale] = free(model, {"text": "a red cat"}, {"text": "a dog"}, scale)
    with torch.no_grad():
        for level in torch.linspace(0, 999, 20).round().long().tolist():
            t = torch.tensor((level + 1) / 1000, dtype=F64)
            said, against = (network(pipeline, x, level, found, k) for k in (0, 1))
            own = model(x, t, **model.read(text="a red cat"))
            assert gap(own, said) < tolerance
            c = model.parameterization(model.sde, t)
            for scale, denoiser in guided.items():
                output = (denoiser(x, t) - c.skip * x) / c.out
                wanted = against + scale * (said - against)
                # Their division by alpha is undone here.
                assert gap(output, wanted) < tolerance * max(1, 1 / float(c.out.abs()))
        assert gap(prompt(x, t), guided[1.0](x, t)) == 0


def test_what_is_said_matters(folder):
    model, x, t = ours(folder), noise(), torch.tensor(0.5, dtype=F64)
    with torch.no_grad():
        a, b = (model.denoiser(text=text)(x, t) for text in ("a red cat", "a dog"))
    assert gap(a, b) > 1e-6


# Whole pictures ----------------------------------------------------------------------------------


def theirs_drawn(pipeline, steps, z, **options):
    """Latents and the picture, in [0, 1], of their pipeline."""
    given = {"prompt": "a red cat", "negative_prompt": "a dog", "guidance_scale": 5.0}
    given |= {"num_inference_steps": steps, "height": 16, "width": 16, **options}
    with torch.no_grad():
        latents = pipeline(latents=z.clone(), output_type="latent", **given).images
        x = pipeline(latents=z.clone(), output_type="pt", **given).images
    return latents, x


def ours_drawn(model, z, ts, step, denoise):
    denoiser = free(model, {"text": "a red cat"}, {"text": "a dog"}, 5.0)
    with torch.no_grad():
        latents = sample(denoiser, z, torch.as_tensor(ts, dtype=F64), step, denoise=denoise)
        return latents, (pictures(model, latents) / 2 + 0.5).clamp(0, 1)


def time_of(levels):
    return [(float(level) + 1) / 1000 for level in levels]


def agree(own, other, tolerance):
    assert gap(own[0], other[0].double()) < tolerance
    assert float((own[1] - other[1]).abs().max()) < tolerance


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_ddim_of_50_steps(folders, kind, dtype, tolerance):
    options = {"set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
    pipeline = theirs(folders[kind], dtype, diffusers.DDIMScheduler, **options)
    z = noise(dtype=dtype)
    other = theirs_drawn(pipeline, 50, z)
    # Their last step goes from level 1 to level 0.
    levels = [*pipeline.scheduler.timesteps.tolist(), 0]
    own = ours_drawn(ours(folders[kind], dtype), z.double(), time_of(levels), DDIM(), False)
    agree(own, other, tolerance)


@pytest.mark.parametrize("kind", VP)
def test_euler_of_20_steps(folders, kind):
    scheduler = diffusers.EulerDiscreteScheduler
    pipeline = theirs(folders[kind], torch.float32, scheduler, timestep_spacing="leading")
    z = noise(dtype=torch.float32)
    other = theirs_drawn(pipeline, 20, z)
    levels = pipeline.scheduler.timesteps.tolist()
    own = ours_drawn(ours(folders[kind], torch.float32), z.double(), time_of(levels), DDIM(), True)
    agree(own, other, 1e-5)


@pytest.mark.parametrize("kind", VP)
def test_dpmpp_2m_of_20_karras_steps(folders, kind):
    scheduler = diffusers.DPMSolverMultistepScheduler
    options = {"use_karras_sigmas": True, "final_sigmas_type": "zero"}
    pipeline = theirs(folders[kind], torch.float32, scheduler, **options)
    z = noise(dtype=torch.float32)
    other = theirs_drawn(pipeline, 20, z)
    # They tell their network the nearest level.
    model = ours(folders[kind], torch.float32, nearest=True)
    sigmas = pipeline.scheduler.sigmas[:-1].double()
    ts = model.sde.time(-sigmas.log())
    own = ours_drawn(model, z.double(), ts, dpmpp_2m(published=True), True)
    agree(own, other, 1e-5)


def test_flow_matching_of_20_steps(folders):
    pipeline = theirs(folders["sd3"], torch.float32)
    z = noise(dtype=torch.float32)
    other = theirs_drawn(pipeline, 20, z)
    model = ours(folders["sd3"], torch.float32)
    ts = pipeline.scheduler.sigmas[:-1].double().clamp(max=model.sde.t_max)
    own = ours_drawn(model, z.double(), ts, DDIM(), True)
    agree(own, other, 1e-5)
