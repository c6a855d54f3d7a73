"""Stable Diffusion 1, 2, XL and 3 against the pipelines of diffusers, on small folders made here.

    pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity

Their tables are put into float64 by hand where that is said; docs/parity.md lists what remains.
"""

import importlib
import json
import shutil
import warnings
from itertools import cycle

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import scoresde as ss
from scoresde.cli.main import main
from scoresde.guidance import free
from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.pipelines import read_folder
from scoresde.registry import SAMPLERS, SELF_PACED
from scoresde.runs.space import pictures
from scoresde.samplers import DDIM, dpmpp_2m, euler_a, sample
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


def noise(seed=100, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 8, 8, generator=g, dtype=F64).to(dtype)


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
    cond, negative = {"text": "a red cat"}, {"text": "a dog"}
    guided = {scale: free(model, cond, negative, scale) for scale in (1.0, 5.0)}
    with torch.no_grad():
        for level in torch.linspace(1, 999, 20).round().long().tolist():
            t = torch.tensor((level + (kind != "sd3")) / 1000, dtype=F64)
            said, against = (network(pipeline, x, level, found, k) for k in (0, 1))
            own = model(x, t, **model.read(text="a red cat"))
            assert gap(own, said) < tolerance
            c = model.parameterization(model.sde, t)
            for scale, denoiser in guided.items():
                output = (denoiser(x, t) - c.skip * x) / c.out
                wanted = against + scale * (said - against)
                # x0_hat is a number of the size of x.
                assert gap(output, wanted) < tolerance * max(1, 1 / float(c.out.abs()))
            assert gap(guided[1.0](x, t), model.denoiser(text="a red cat")(x, t)) == 0


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


def ours_drawn(model, z, ts, step, denoise, draws=()):
    later = iter(draws)
    denoiser = free(model, {"text": "a red cat"}, {"text": "a dog"}, 5.0)
    with torch.no_grad():
        ts = torch.as_tensor(ts, dtype=F64)
        latents = sample(denoiser, z, ts, step, lambda *_: next(later).double(), denoise)
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
def test_euler_ancestral_of_20_steps_with_the_same_draws(folders, kind, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler
    pipeline = theirs(folders[kind], torch.float32, scheduler, timestep_spacing="leading")
    draws = [noise(seed=k, dtype=torch.float32) for k in range(20)]
    again = cycle(draws)  # they draw twice: latents, then the picture
    module = importlib.import_module(scheduler.__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: next(again))
    z = noise(dtype=torch.float32)
    other = theirs_drawn(pipeline, 20, z)
    levels = pipeline.scheduler.timesteps.tolist()
    model = ours(folders[kind], torch.float32)
    own = ours_drawn(model, z.double(), time_of(levels), euler_a(), True, draws)
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


# What is said, and what is not understood --------------------------------------------------------


def test_one_call_of_the_network_for_both_branches(folder):
    model = ours(folder, torch.float32)
    sizes = []
    model.net.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])))
    drawn = ss.draw(model, 2, prompt="a red cat", negative="a dog", guidance=5.0, nfe=3)
    assert sizes[-3:] == [4, 4, 4]  # one sample was tried before
    assert drawn.x.shape == (2, 3, 16, 16)
    assert drawn.x.dtype == torch.uint8


def test_a_sample_has_its_prompt(folder):
    model = ours(folder, torch.float32)
    both = ss.draw(model, prompt=["a red cat", "猫 🐈"], negative="a dog", guidance=4.0, nfe=3)
    for k, text in enumerate(["a red cat", "猫 🐈"]):
        alone = ss.draw(model, seeds=[k], prompt=text, negative="a dog", guidance=4.0, nfe=3)
        assert int((both.x[k].int() - alone.x[0].int()).abs().max()) <= 1
    empty, none = (ss.draw(model, 1, prompt=text, nfe=3).x for text in ("", None))
    assert torch.equal(empty, none) == (folder.name != "sdxl")  # zeros there


def test_long_prompts_are_refused_or_cut(folder):
    model = ours(folder)
    with pytest.raises(ValueError, match=r"text: a prompt of \d+ tokens.*reads 77.*shorten"):
        ss.draw(model, 1, prompt=LONG, nfe=2)
    model.conditions["text"].cut = True
    assert model.read(text=LONG)["text"].shape == model.read(text="a")["text"].shape


def test_prompts_that_do_not_fit(folders):
    model = ours(folders["sd1"])
    with pytest.raises(ValueError, match="2 of text, 3 of negative text"):
        ss.draw(model, prompt=["a", "b"], negative={"text": ["a", "b", "c"]}, guidance=2.0)
    with pytest.raises(ValueError, match="text: need a sentence"):
        ss.draw(model, 1, prompt=[3])
    with pytest.raises(ValueError, match="guidance: say something"):
        ss.draw(model, 1, guidance=2.0)


def test_sizes_are_told(folders):
    model, x, t = ours(folders["sdxl"]), noise(), torch.tensor(0.5, dtype=F64)
    assert model.conditions["size"].null(1).tolist() == [[16, 16, 0, 0, 16, 16]]
    with torch.no_grad():
        a, b, c = (
            model.denoiser(text="a cat", size=size)(x, t)
            for size in (None, [16, 16, 0, 0, 16, 16], [64, 16, 8, 0, 16, 16])
        )
    assert gap(a, b) == 0
    assert gap(a, c) > 1e-6
    with pytest.raises(ValueError, match="size: need six numbers"):
        model.denoiser(size=[16, 16])


def changed(path, tmp_path, file, **fields):
    """A copy of a folder with other fields in a file."""
    copy = tmp_path / "changed"
    shutil.copytree(path, copy)
    found = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**found, **fields}))
    return copy


@pytest.mark.parametrize(
    ("kind", "file", "fields", "message"),
    [
        ("sd1", "unet/config.json", {"in_channels": 9}, "9 channels for latents of 4.*to inpaint"),
        ("sd1", "unet/config.json", {"in_channels": 8}, "to edit pictures"),
        ("sd1", "unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8"),
        ("sd1", "unet/config.json", {"num_class_embeds": 8}, "num_class_embeds is 8"),
        ("sd1", "unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None"),
        ("sdxl", "model_index.json", {"requires_aesthetics_score": True}, "refiner"),
        ("sdxl", "model_index.json", {"text_encoder": [None, None]}, "refiner"),
        ("sd1", "model_index.json", {"text_encoder": [None, None]}, "text_encoder is missing"),
        (
            "sd1",
            "model_index.json",
            {"text_encoder": ["alt_diffusion", "RobertaSeriesModelWithTransformation"]},
            "RobertaSeriesModelWithTransformation.*read by CLIPTextModel",
        ),
        ("sd1", "text_encoder/config.json", {"use_attention_mask": True}, "use_attention_mask"),
        (
            "sd1",
            "model_index.json",
            {"_class_name": "StableDiffusionInpaintPipeline"},
            "StableDiffusionInpaintPipeline is not read",
        ),
        ("sdxl", "unet/config.json", {"addition_time_embed_dim": 16}, "is told something else"),
    ],
)
def test_other_models_are_named(folders, tmp_path, kind, file, fields, message):
    with pytest.raises(FolderError, match=message):
        ours(changed(folders[kind], tmp_path, file, **fields))


def test_parts_without_a_use_are_left_out(folders, tmp_path):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    path = changed(folders["sd1"], tmp_path, "model_index.json", safety_checker=checker)
    folder = Folder(path)
    read_folder(folder)
    assert "pictures are not checked" in folder.notes[0]


def test_a_tokeniser_or_weights_that_are_missing_are_named(folders, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folders["sd1"], path)
    shutil.move(path / "tokenizer", path / "elsewhere")
    with pytest.raises(ValueError, match=r"model/tokenizer: no such folder"):
        ours(path)
    shutil.move(path / "elsewhere", path / "tokenizer")
    (path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"model/tokenizer: "):
        ours(path)


def test_overflow_is_named_with_its_remedy(folders):
    model = ours(folders["sd1"], torch.float16)
    with torch.no_grad():
        model.net.module.conv_out.bias.fill_(60000.0)
        model.net.module.conv_out.weight.mul_(1e5)
    with pytest.raises(RuntimeError, match=r"not finite.*dtype bfloat16 or float32"):
        ss.draw(model, 1, prompt="a", nfe=2)
    model = ours(folders["sd1"], torch.float16)
    model.codec.module.half().decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"codec: 1 of 1 .*dtype bfloat16 or float32"):
        ss.draw(model, 1, prompt="a", nfe=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_draw_much_the_same(folder, dtype):
    whole, half = (ours(folder, each) for each in (torch.float32, dtype))
    assert {p.dtype for p in half.net.parameters()} == {dtype}
    x, t = noise(dtype=torch.float32), torch.tensor(0.4, dtype=F64)
    with torch.no_grad():
        a, b = (model.denoiser(text="a cat")(x, t) for model in (whole, half))
    assert gap(b, a) < (0.01 if dtype == torch.float16 else 0.08)


# The command line --------------------------------------------------------------------------------


SHORT = {name: [] for name in SELF_PACED} | {"ode": ["--sample.sampler.rtol=1e-2"], "sde": []}
SHORT["ode"] += ["--sample.sampler.atol=1e-2"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_a_prompt(folders, tmp_path, sampler):
    out = tmp_path / "out"
    words = ["--checkpoint", folders["sd1"], "--prompt", "a red cat", "--negative", "a dog"]
    words += ["--guidance", "5", "--num", "1", "--out", out, f"--sample.sampler={sampler}"]
    words += SHORT.get(sampler, ["--sample.steps=4"])
    assert main(["sample", *map(str, words)]) == 0
    with Image.open(out / "000000.png") as opened:
        assert opened.size == (16, 16)
        assert "a red cat" in str(opened.info)
