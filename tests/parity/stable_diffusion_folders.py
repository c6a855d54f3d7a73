"""Small folders of Stable Diffusion with random weights and a real tokeniser of CLIP."""

import json
import warnings

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["c a", "ca t</w>", "r e", "re d</w>", "h a", "ha t</w>", "d o", "do g</w>"]


def vocabulary():
    """Every byte, at the end of a word and before it, a few words, start and end."""
    from tokenizers import pre_tokenizers

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*signs, *(sign + "</w>" for sign in signs), *(m.replace(" ", "") for m in MERGES)]
    return {word: k for k, word in enumerate([*words, START, END])}


def tokenizer_files(folder, pad=END):
    """The four files of tokenisers before transformers 5."""
    folder.mkdir(parents=True)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    # In the published folders of Stable Diffusion 2 the second file is right.
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": END}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def tokenizer(path, pad=END):
    from transformers import CLIPTokenizer

    tokenizer_files(path, pad)
    return CLIPTokenizer.from_pretrained(path, local_files_only=True)


def text_encoder(width, projected=False, act="quick_gelu", layers=3):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=77, projection_dim=width,
        bos_token_id=words[START], eos_token_id=words[END], pad_token_id=words[END],
        hidden_act=act,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width):
    """T5 with its tokeniser of pieces."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["▁", "▁a", "▁red", "▁cat", "▁hat", *"abcdefghijklmnopqrstuvwxyz"]
    scores = [-3.0 if len(piece) < 3 else -2.0 for piece in pieces]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *zip(pieces, scores, strict=True)]
    words = T5Tokenizer(
        vocab=vocab, extra_ids=0, additional_special_tokens=[], model_max_length=512
    )
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return words, T5EncoderModel(config).eval()


def unet(context, size=8, **options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size, in_channels=4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=context,
        attention_head_dim=2, norm_num_groups=8, **options,
    ).eval()  # fmt: skip


def vae(**options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, **options,
    ).eval()  # fmt: skip


TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd1(path, scratch):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae(scaling_factor=0.18215), text_encoder(16), tokenizer(scratch / "words"), unet(16),
        DDIMScheduler(**TABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(path)


def sd2(path, scratch):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae(scaling_factor=0.18215), text_encoder(16, act="gelu"),
        tokenizer(scratch / "words", "!"), unet(16, use_linear_projection=True),
        DDIMScheduler(
            **TABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction",
        ),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(path)


def sdxl(path, scratch, **options):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        vae(scaling_factor=0.13025), text_encoder(16), text_encoder(24, True, "gelu"),
        tokenizer(scratch / "words"), tokenizer(scratch / "words_2", "!"),
        unet(
            40, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 48, transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        EulerDiscreteScheduler(**TABLE, steps_offset=1, timestep_spacing="leading"), **options,
    )  # fmt: skip
    pipeline.save_pretrained(path)


def sd3(path, scratch, with_t5=True):
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    words, model = t5(48) if with_t5 else (None, None)
    pipeline = StableDiffusion3Pipeline(
        SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=48,
            caption_projection_dim=16, pooled_projection_dim=40, pos_embed_max_size=8,
        ),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae(
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder(16, True), tokenizer(scratch / "words"), text_encoder(24, True, "gelu"),
        tokenizer(scratch / "words_2", "!"), model, words,
    )  # fmt: skip
    pipeline.save_pretrained(path)


FOLDERS = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3}


def make(kind, path, scratch, **options):
    """A folder of a kind, with the same weights every time."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        FOLDERS[kind](path, scratch, **options)
    return path
