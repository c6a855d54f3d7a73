"""What a pipeline of diffusers reads sentences with, of models of sentences."""

from __future__ import annotations

import copy
from typing import Any

from scoresde.conditions import FrozenText
from scoresde.conditions.frozen_text import opened
from scoresde.interop.keymaps import NoTwin
from scoresde.interop.prompts import Frame, OnePrompt, Prompt, ThreePrompts, TwoPrompts
from scoresde.parameterization import ScoreModel
from scoresde.sde import DiscreteVP

_XL: dict[str, Any] = {"feature_extractor": [None, None], "image_encoder": [None, None]}
_ONE: dict[str, Any] = {**_XL, "safety_checker": [None, None], "requires_safety_checker": False}


def text_parts(model: ScoreModel) -> tuple[str, dict[str, Any], dict[str, Any], list[str]]:
    """The pipeline of a model of latents and sentences: class, text parts, entries, and notes.

    Raises NoTwin for a model that is told anything else, or in another way.
    """
    found: dict[str, Any] = dict(model.conditions)
    sentences = [c for c in found.values() if isinstance(c, Prompt | FrozenText)]
    strays = [k for k, c in found.items() if not isinstance(c, Prompt | FrozenText | Frame)]
    if strays or len(sentences) != 1:
        raise NoTwin(
            f"conditions: {', '.join(strays or found)}: pipelines of diffusers say classes, or "
            "one sentence that a CLIP reads; train with conditional: true, or with one condition "
            "of kind frozen_text with padded: true, to export it"
        )
    text = sentences[0]
    net: Any = model.net
    if isinstance(text, ThreePrompts):
        raise NoTwin(
            "a StableDiffusion3Pipeline is not written, since the shift of its scheduler is no "
            "part of a model; copy its folder"
        )
    if type(getattr(net, "module", None)).__name__ != "UNet2DConditionModel":
        raise NoTwin(
            "pipelines of diffusers say sentences to UNet2DConditionModel only, and this is "
            f"{type(net).__name__}; train with network: {{kind: diffusers, model: "
            "UNet2DConditionModel} to export it"
        )
    if model.codec is None:
        raise NoTwin(
            "no pipeline of diffusers draws pixels from a sentence by UNet2DConditionModel alone; "
            "train an autoencoder, and on its latents, to export it (net.module.save_pretrained "
            "writes the network alone)"
        )
    if not isinstance(model.sde, DiscreteVP):
        raise NoTwin(
            "StableDiffusionPipeline draws with tables of betas only; train with sde.kind: "
            "discrete_vp to export it"
        )
    if model.classes is not None:
        raise NoTwin(
            "no pipeline of diffusers says a class beside a sentence; train with conditional: "
            "false to export it"
        )
    if model.variance:
        raise NoTwin(
            "StableDiffusionPipeline guides a learned variance as it does the mean; train without "
            "network.head: variance to export it"
        )
    if any(side % 8 for side in model.data.shape[1:]):
        raise NoTwin(
            "StableDiffusionPipeline draws pictures whose sides 8 divides, got "
            f"{' x '.join(map(str, model.data.shape[1:]))}; train on such a size to export it"
        )
    if isinstance(text, FrozenText):
        plain = "it never learned to do without a sentence: give guidance_scale=1"
        return "StableDiffusionPipeline", _clip(text), _ONE, [] if text.dropout else [plain]
    if text.skip:
        raise NoTwin("skip: pipelines take it with each call (clip_skip); set it to 0")
    parts: dict[str, Any] = {}
    for k, (tokenizer, encoder) in enumerate(zip(text.tokenizers, text.encoders, strict=True)):
        number = f"_{k + 1}" if k else ""
        parts |= {f"text_encoder{number}": encoder, f"tokenizer{number}": tokenizer}
    if isinstance(text, OnePrompt):
        return "StableDiffusionPipeline", parts, _ONE, []
    assert isinstance(text, TwoPrompts)
    more = {**_XL, "force_zeros_for_empty_prompt": text.silent}
    return "StableDiffusionXLPipeline", parts, more, []


def _clip(text: FrozenText) -> dict[str, Any]:
    """Encoder and tokeniser of a frozen text, which pads to its length. Raises NoTwin."""
    if not text.padded:
        raise NoTwin(
            "StableDiffusionPipeline tells its network the padding of a sentence too, and no mean "
            "of its words; train frozen_text with padded: true to export it"
        )
    tokenizer, encoder = opened(text.folder)
    kinds = type(encoder).__name__, type(tokenizer).__name__
    if kinds[0] != "CLIPTextModel" or kinds[1].removesuffix("Fast") != "CLIPTokenizer":
        raise NoTwin(
            "StableDiffusionPipeline reads sentences by CLIPTextModel and CLIPTokenizer, and "
            f"{text.folder} has {' and '.join(kinds)}; train with the folder of a CLIP to export "
            "it"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = text.length  # to which the pipeline pads
    return {"text_encoder": encoder, "tokenizer": tokenizer}
