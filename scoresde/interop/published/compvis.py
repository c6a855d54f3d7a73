"""Checkpoints of latent diffusion and Stable Diffusion 1 and 2 (CompVis), as folders of diffusers.

The U-Net, the autoencoder and the text encoder keep their weights and get the names that diffusers
gives them. High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import betas as tables
from scoresde.interop.about import ABOUT, MARK
from scoresde.interop.folder import INDEX
from scoresde.interop.published.file import Moved, PublishedError, Said, matrix, numbered
from scoresde.interop.published.guided import levels_of

UNET, CODEC, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
KNOWN: Mapping[int, Mapping[str, Any]] = {
    768: {"num_heads": 8, "parameterization": "eps", "image_size": 64},
    1024: {"num_head_channels": 64},
}
"""What is known of Stable Diffusion 1 and 2, by the width of the text."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
"""Files of a tokeniser of CLIP."""


@dataclass(frozen=True)
class Pipeline:
    """A folder of diffusers.

    Args:
        index: contents of model_index.json.
        configs: contents of the JSON files by name.
        weights: state dicts by the file of their weights.
        copies: files to copy, by the name in the folder.
    """

    index: Mapping[str, Any]
    configs: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Mapping[str, Tensor]]
    copies: Mapping[str, Path] = field(default_factory=dict)


def looks(contents: Mapping[str, Any]) -> bool:
    """Whether contents have this layout."""
    inner = contents.get("state_dict", contents)
    return isinstance(inner, Mapping) and f"{UNET}input_blocks.0.0.weight" in inner


def read(
    path: Path, metadata: Mapping[str, str], contents: dict[str, Any], said: Said
) -> Pipeline:
    """A checkpoint, with the averaged weights if it has them. Raises PublishedError."""
    state = contents.get("state_dict", contents)
    state = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    moved = _part(path, state, UNET)
    network = _unet_config(path, moved, said)
    moved = _part(path, averaged(path, state), UNET)
    text = bool(network.get("cross_attention_dim"))
    known = KNOWN.get(network.get("cross_attention_dim", 0), {})
    size = said.get("image_size", known.get("image_size", 0))
    size = size or said.need("image_size", int, "side of the latents, such as 64")
    network["sample_size"] = size
    scheduler = _scheduler(state, said, known)
    vq = f"{CODEC}quantize.embedding.weight" in state
    if "scale_factor" in state:
        factor = float(state["scale_factor"])
    else:
        factor = said.get("scale_factor", 0.18215 if known else 0.0)
        factor = factor or said.need("scale_factor", float, "1 for VQ, 0.18215 for most KL")
    folder = Path(said.need("tokenizer", str, "folder of the tokeniser of CLIP") if text else ".")
    said.complete()
    codec, codec_weights = _codec(_part(path, state, CODEC), size, factor, vq)
    unet_kind = "UNet2DConditionModel" if text else "UNet2DModel"
    codec_kind, place = ("VQModel" if vq else "AutoencoderKL"), "vae" if text else "vqvae"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline" if text else "LDMPipeline",
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", unet_kind],
        place: ["diffusers", codec_kind],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    configs: dict[str, Mapping[str, Any]] = {
        "unet/config.json": {"_class_name": unet_kind, **network},
        f"{place}/config.json": {"_class_name": codec_kind, **codec},
        "scheduler/scheduler_config.json": scheduler,
    }
    name = "diffusion_pytorch_model.safetensors"
    weights: dict[str, Mapping[str, Tensor]] = {
        f"unet/{name}": moved_unet(moved, network),
        f"{place}/{name}": codec_weights,
    }
    if not text:
        return Pipeline(index, configs, weights)
    config, encoder = _text(_part(path, state, TEXT), said)
    files = {f"tokenizer/{k}": folder.expanduser() / k for k in TOKENIZER}
    files = {k: file for k, file in files.items() if file.is_file()}
    if not files:
        raise PublishedError(
            f"{folder}: holds none of {', '.join(TOKENIZER)}; give the folder of a tokeniser"
        )
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    configs["text_encoder/config.json"] = config
    weights["text_encoder/model.safetensors"] = encoder
    return Pipeline(index, configs, weights, files)


def averaged(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the averages of the U-Net in place, if there are any.

    Their names are those of the weights without "model." before and without all dots.
    """
    found = dict(state)
    if "model_ema.decay" not in state and "model_ema.num_updates" not in state:
        return found
    for name in state:
        if name.startswith(UNET):
            average = "model_ema." + name.removeprefix("model.").replace(".", "")
            if average not in state:
                raise PublishedError(
                    f"{path}: has averages, but not {average}; use an intact copy"
                )
            found[name] = state[average]
    return found


def _part(path: Path, state: Mapping[str, Tensor], prefix: str) -> Moved:
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not part:
        raise PublishedError(f"{path}: has no tensors {prefix}*; give a whole checkpoint")
    return Moved(path, part, wide=False)


def _scheduler(
    state: Mapping[str, Tensor], said: Said, known: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if "betas" in state:
        betas = state["betas"].double()
        n, ends = len(betas), [float(f"{float(betas[i]):.6g}") for i in (0, -1)]
        table = tables.scaled_linear(*ends)(n)
        # The file has float32; the table that it was made of is known in float64.
        if torch.allclose(betas, torch.tensor(table, dtype=torch.float64), rtol=1e-5):
            found |= {"beta_schedule": "scaled_linear", "beta_start": ends[0], "beta_end": ends[1]}
        else:
            found["trained_betas"] = betas.tolist()
        found["num_train_timesteps"] = n
    else:
        found |= {
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": said.get("timesteps", 1000),
        }
        for name, key in (("linear_start", "beta_start"), ("linear_end", "beta_end")):
            found[key] = said.need(name, float, "end of its table of betas")
    kinds = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    told = said.get("parameterization", known.get("parameterization", ""))
    told = told or said.need("parameterization", str, "eps or v")
    if told and told not in kinds:
        raise PublishedError(f"{said.source}: parameterization={told} is not eps, v or x0")
    found["prediction_type"] = kinds.get(told, "")
    return found


def _unet_config(path: Path, moved: Moved, said: Said) -> dict[str, Any]:
    left = moved.left
    if any(k.startswith("label_emb") for k in left):
        raise PublishedError(
            f"{path}: its U-Net is told more than text (label_emb), as that of Stable Diffusion XL"
            "; load a folder of diffusers of it"
        )
    levels = levels_of(moved)
    widths = [moved.shape(f"output_blocks.{ks[0]}.0.out_layers.3.weight")[0] for ks in levels]
    widths.reverse()
    attends = [
        any(k.startswith(f"output_blocks.{ks[0]}.1.") and ".norm." in k for k in left)
        for ks in reversed(levels)
    ]
    stem, inputs = moved.shape("input_blocks.0.0.weight")[:2]
    if stem != widths[0] or moved.shape("time_embed.0.weight") != (4 * stem, stem):
        raise PublishedError(
            f"{path}: its first layer has {stem} channels and its first level {widths[0]}; "
            "such a network has no twin in diffusers"
        )
    inner = "middle_block.1.transformer_blocks."
    text = any(k.startswith(inner) for k in left)
    found: dict[str, Any] = {
        "in_channels": inputs,
        "out_channels": moved.shape("out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]) - 1,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "act_fn": "silu",
    }
    first = moved.shape("middle_block.0.emb_layers.1.weight")[0]
    found["resnet_time_scale_shift"] = "scale_shift" if first == 2 * widths[-1] else "default"
    cross = "CrossAttn" if text else "Attn"
    found["down_block_types"] = [f"{cross if a else ''}DownBlock2D" for a in attends]
    found["up_block_types"] = [f"{cross if a else ''}UpBlock2D" for a in reversed(attends)]
    width = moved.shape(f"{inner}0.attn2.to_k.weight")[1] if text else 0
    known = KNOWN.get(width, {})
    each = said.get("num_head_channels", known.get("num_head_channels", -1))
    heads = said.get("num_heads", known.get("num_heads", 0))
    if each in (-1, 0) and not heads:
        each = said.need("num_head_channels", int, "channels of a head of attention, or num_heads")
    by_width = each not in (-1, 0) and "num_heads" not in said
    if text:
        layers = numbered(left, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
        found |= {
            "cross_attention_dim": width,
            "transformer_layers_per_block": len(layers),
            "use_linear_projection": left["middle_block.1.proj_in.weight"].ndim == 2,
            # Its name says head_dim, and it is the number of heads.
            "attention_head_dim": [w // each for w in widths] if by_width else heads,
        }
    elif (
        by_width or len({w for w, a in zip(widths, [*attends[:-1], True], strict=True) if a}) == 1
    ):
        found["attention_head_dim"] = each if by_width else widths[-1] // heads
    else:
        raise PublishedError(
            f"{path}: num_heads={heads} at several widths of attention has no twin in diffusers, "
            "whose UNet2DModel has channels of a head"
        )
    return found


def moved_unet(moved: Moved, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of the U-Net of diffusers."""
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    text = "cross_attention_dim" in config
    levels = len(widths)

    def residual(ours: str, theirs: str) -> None:
        for mine, other in (
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
        ):
            moved.layer(f"{ours}.{mine}", f"{theirs}.{other}")
        if f"{theirs}.skip_connection.weight" in moved.left:
            moved.layer(f"{ours}.conv_shortcut", f"{theirs}.skip_connection")

    def attention(ours: str, theirs: str) -> None:
        if text:  # diffusers has kept the names
            for name in [k for k in moved.left if k.startswith(f"{theirs}.")]:
                moved.found[f"{ours}{name.removeprefix(theirs)}"] = moved.take(name)
            return
        moved.layer(f"{ours}.group_norm", f"{theirs}.norm")
        each = config["attention_head_dim"]
        for part in ("weight", "bias"):
            # Theirs has q, k and v of each head together.
            qkv = matrix(moved.take(f"{theirs}.qkv.{part}"))
            qkv = qkv.unflatten(0, (-1, 3, each)).transpose(0, 1).flatten(1, 2)
            for name, value in zip("qkv", qkv, strict=True):
                moved.found[f"{ours}.to_{name}.{part}"] = value.contiguous()
        moved.layer(f"{ours}.to_out.0", f"{theirs}.proj_out", matrix)

    moved.layer("time_embedding.linear_1", "time_embed.0")
    moved.layer("time_embedding.linear_2", "time_embed.2")
    moved.layer("conv_in", "input_blocks.0.0")
    place = 1
    for i in range(levels):
        for j in range(blocks):
            residual(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{place}.0")
            if "Attn" in config["down_block_types"][i]:
                attention(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{place}.1")
            place += 1
        if i < levels - 1:
            moved.layer(f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{place}.0.op")
            place += 1
    residual("mid_block.resnets.0", "middle_block.0")
    attention("mid_block.attentions.0", "middle_block.1")
    residual("mid_block.resnets.1", "middle_block.2")
    place = 0
    for i in range(levels):
        attends = "Attn" in config["up_block_types"][i]
        for j in range(blocks + 1):
            residual(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{place}.0")
            if attends:
                attention(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{place}.1")
            place += 1
        if i < levels - 1:
            above = f"output_blocks.{place - 1}.{1 + attends}.conv"
            moved.layer(f"up_blocks.{i}.upsamplers.0.conv", above)
    moved.layer("conv_norm_out", "out.0")
    moved.layer("conv_out", "out.2")
    return moved.finished()


def _codec(
    moved: Moved, size: int, factor: float, vq: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and state dict of AutoencoderKL or VQModel."""
    moved.drop(r"loss\..*", r"model_ema\..*")
    if any(".attn." in k and ".mid." not in k for k in moved.left):
        raise PublishedError(
            f"{moved.source}: its autoencoder attends outside its middle; such a one is not read"
        )
    downs = numbered(moved.left, r"encoder\.down\.(\d+)\.")
    blocks = numbered(moved.left, r"encoder\.down\.0\.block\.(\d+)\.")
    widths = [moved.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in downs]
    latent, embedded = moved.shape("post_quant_conv.weight")[:2]
    if not vq and latent != embedded:
        raise PublishedError(
            f"{moved.source}: its latents of {embedded} channels become {latent} before the "
            "decoder, for which AutoencoderKL of diffusers has no setting"
        )
    config: dict[str, Any] = {
        "in_channels": moved.shape("encoder.conv_in.weight")[1],
        "out_channels": moved.shape("decoder.conv_out.weight")[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(downs),
        "up_block_types": ["UpDecoderBlock2D"] * len(downs),
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "latent_channels": latent,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": size * 2 ** (len(downs) - 1),
        "scaling_factor": factor,
    }

    def residual(ours: str, theirs: str) -> None:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            moved.layer(f"{ours}.{name}", f"{theirs}.{name}")
        if f"{theirs}.nin_shortcut.weight" in moved.left:
            moved.layer(f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut")

    for half, stages in (("encoder", "down"), ("decoder", "up")):
        moved.layer(f"{half}.conv_in", f"{half}.conv_in")
        for k in (0, 1):
            residual(f"{half}.mid_block.resnets.{k}", f"{half}.mid.block_{k + 1}")
        ours, theirs = f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        moved.layer(f"{ours}.group_norm", f"{theirs}.norm")
        for mine, other in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            moved.layer(f"{ours}.{mine}", f"{theirs}.{other}", matrix)
        for i in downs:
            place = i if half == "encoder" else len(downs) - 1 - i
            for j in range(len(blocks) + (half == "decoder")):
                ours = f"{half}.{stages}_blocks.{place}.resnets.{j}"
                residual(ours, f"{half}.{stages}.{i}.block.{j}")
            if place < len(downs) - 1:
                moved.layer(
                    f"{half}.{stages}_blocks.{place}.{stages}samplers.0.conv",
                    f"{half}.{stages}.{i}.{stages}sample.conv",
                )
        moved.layer(f"{half}.conv_norm_out", f"{half}.norm_out")
        moved.layer(f"{half}.conv_out", f"{half}.conv_out")
    moved.layer("quant_conv", "quant_conv")
    moved.layer("post_quant_conv", "post_quant_conv")
    if vq:
        table = moved.take("quantize.embedding.weight")
        moved.found["quantize.embedding.weight"] = table
        config |= {"num_vq_embeddings": len(table), "vq_embed_dim": embedded}
    return config, moved.finished()


def _text(moved: Moved, said: Said) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and state dict of CLIPTextModel, from CLIP or OpenCLIP."""
    clip = "transformer.text_model.embeddings.token_embedding.weight" in moved.left
    if clip:
        moved.drop(r".*position_ids")
        for name in list(moved.left):
            moved.found[name.removeprefix("transformer.")] = moved.take(name)
    elif "model.token_embedding.weight" in moved.left:
        _open_clip(moved)
    else:
        raise PublishedError(
            f"{moved.source}: its text encoder is neither CLIP nor OpenCLIP; such a one, as BERT "
            "or a table of classes, is not read"
        )
    found = moved.finished()
    inner = "text_model.encoder.layers."
    words, width = found["text_model.embeddings.token_embedding.weight"].shape
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(found[f"{inner}0.mlp.fc1.bias"]),
        "num_hidden_layers": len(numbered(found, inner.replace(".", r"\.") + r"(\d+)\.")),
        "num_attention_heads": said.get("text_heads", max(1, width // 64)),
        "max_position_embeddings": len(found["text_model.embeddings.position_embedding.weight"]),
        "hidden_act": "quick_gelu" if clip else "gelu",
        "layer_norm_eps": 1e-5,
    }, found


def _open_clip(moved: Moved) -> None:
    """The text encoder of Stable Diffusion 2, which uses all layers but the last."""
    layers = numbered(moved.left, r"model\.transformer\.resblocks\.(\d+)\.")
    moved.drop(r"model\.(text_projection|logit_scale|attn_mask)")
    moved.drop(rf"model\.transformer\.resblocks\.{layers[-1]}\..*")
    ours = "text_model"
    for mine, other in (("token_embedding.weight", "token_embedding.weight"),
                        ("position_embedding.weight", "positional_embedding")):  # fmt: skip
        moved.found[f"{ours}.embeddings.{mine}"] = moved.take(f"model.{other}")
    for i in layers[:-1]:
        to, of = f"{ours}.encoder.layers.{i}", f"model.transformer.resblocks.{i}"
        for mine, other in (
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            moved.layer(f"{to}.{mine}", f"{of}.{other}")
        for part in ("weight", "bias"):
            qkv = moved.take(f"{of}.attn.in_proj_{part}").chunk(3)
            for name, value in zip("qkv", qkv, strict=True):
                moved.found[f"{to}.self_attn.{name}_proj.{part}"] = value.contiguous()
    moved.layer(f"{ours}.final_layer_norm", "model.ln_final")


def write(pipeline: Pipeline, folder: Path) -> None:
    """Write the files of a pipeline into an empty folder."""
    from safetensors.torch import save_file

    for name, tensors in pipeline.weights.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name, {"format": "pt"})
    for name, file in pipeline.copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.read_bytes())
    for name, contents in {**pipeline.configs, ABOUT: MARK, INDEX: pipeline.index}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
