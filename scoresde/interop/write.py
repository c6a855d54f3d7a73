"""A model as a folder of diffusers: its parts, and the proof that they compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import betas as tables
from scoresde.coordinates import Index, Time, place
from scoresde.interop import codecs, keymaps
from scoresde.interop.about import ABOUT, about
from scoresde.interop.folder import INDEX
from scoresde.interop.keymaps import NoTwin, Twin
from scoresde.interop.modules import library
from scoresde.interop.native import SIZES
from scoresde.interop.write_text import text_parts
from scoresde.parameterization import Informed, ScoreModel, eps, flow, v, x0
from scoresde.sde import DiscreteVP, LinearFlow

EXACT = 1000
"""Largest difference of a twin from its network, in units of rounding of the largest output."""
PREDICTIONS = {eps: "epsilon", v: "v_prediction", x0: "sample"}


@dataclass(frozen=True)
class Written:
    """A folder to be written.

    Args:
        pipeline: class of the pipeline.
        parts: modules and the scheduler by the names of their folders.
        more: further entries of model_index.json.
        about: contents of ``ABOUT``.
        notes: what diffusers does not do with it.
    """

    pipeline: str
    parts: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write everything into an existing folder."""
        index = {
            "_class_name": self.pipeline,
            "_diffusers_version": library("diffusers").__version__,
            **{
                name: [type(part).__module__.split(".")[0], type(part).__name__]
                for name, part in self.parts.items()
            },
            **self.more,
        }
        for name, contents in ((INDEX, index), (ABOUT, self.about)):
            (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)


def written(model: ScoreModel, config: Mapping[str, Any] | None = None) -> Written:
    """What is to be written of a model; ``config`` is the configuration of its run.

    Raises NoTwin for what diffusers has no place for, and where a part computes something else.
    """
    data, codec = model.data, model.codec
    net: Any = model.net
    if data is None or len(data.shape) != 3:
        raise NoTwin(
            "folders of diffusers hold models of pictures whose size is known; set model.data, or "
            "train on pictures"
        )
    if model.self_conditioning:
        raise NoTwin(
            "self_conditioning: no pipeline of diffusers tells its network what it estimated "
            "before; train without it to export it"
        )
    if not model.normalised:
        raise NoTwin(
            "a distilled network (LCM, TCD) has no folder that says so; copy the folder it is from"
        )
    bounds = (data.scaling.low, data.scaling.high)
    if any(abs(end - wanted) > 0.01 for end, wanted in zip(bounds, (-1, 1), strict=True)):
        raise NoTwin(
            f"pipelines of diffusers have pictures in [-1, 1], and these are in [{bounds[0]:g}, "
            f"{bounds[1]:g}]; train on pictures in [-1, 1] to export it"
        )
    if model.conditions:
        pipeline, parts, more, notes = text_parts(model)
        parts |= {"unet": net.module, "vae": _plain_vae(codec, data.shape, pipeline)}
        parts["scheduler"] = scheduler_of(model, steps_offset=1)  # which the pipeline asks for
        return Written(pipeline, parts, more, about(model, config, tuple(notes)), tuple(notes))
    shape = data.shape if codec is None else codec.latent_shape(data.shape)
    network: Any = getattr(net, "module", None)
    if type(network).__name__ not in SIZES:
        network = _built(keymaps.network(net, shape[1:]), net.state_dict(), model.device)
        _require_same_network(net, network, shape)
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        raise NoTwin("no pipeline of diffusers draws without a text from UNet2DConditionModel")
    parts, more, notes = {}, {}, []
    classes = getattr(net, "classes", None)
    pixels = codec is None
    if kind == "UNet2DModel":
        pipeline, parts["unet"], home = "LDMPipeline", network, "vqvae"
        pipeline = "DDPMPipeline" if pixels else pipeline
        if network.class_embedding is not None:
            none = "" if classes is None else f"; {classes} is no class"
            notes.append(
                f"{pipeline} draws without classes: call its unet with class_labels, which this "
                f"one needs{none}"
            )
        if isinstance(network.config.sample_size, list | tuple) and not pixels:
            notes.append("LDMPipeline draws squares only: give its latents to the unet yourself")
    else:
        pipeline, parts["transformer"], home = "DiTPipeline", network, "vae"
        if pixels:
            more["vae"] = [None, None]
            notes.append(
                "no pipeline of diffusers draws pixels with a DiT: open its transformer with "
                "DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')"
            )
        elif network.config.num_embeds_ada_norm != 1000:
            notes.append(
                "DiTPipeline takes 1000 for no class whatever the network has: give "
                "guidance_scale=1"
            )
        if data.classes is not None and classes == len(data.classes):
            more["id2label"] = {str(i): name for i, name in enumerate(data.classes)}
    parts["scheduler"] = scheduler_of(model)
    if codec is not None:
        parts[home] = vae_of(codec, data.shape)
    return Written(pipeline, parts, more, about(model, config, tuple(notes)), tuple(notes))


def scheduler_of(model: ScoreModel, steps_offset: int = 0) -> Any:
    """The scheduler of a model: DDPMScheduler, or FlowMatchEulerDiscreteScheduler.

    It does not clip. Its steps begin at the noisiest level, and each leads to the level of the
    next call, in DDIM and other schedulers made of its configuration too. Raises NoTwin.
    """
    sde, told = model.sde, model.parameterization
    schedulers = library("diffusers")
    if not isinstance(told, Informed):
        raise NoTwin(
            "networks in folders of diffusers are told the place of a level in a table, or 1000 "
            "t, and this one log(sigma / alpha); train with parameterization.noise: index (with "
            "sde.kind: discrete_vp) or time (with linear_flow) to export it"
        )
    if isinstance(sde, LinearFlow) and told == Informed(flow, Time(1000), scaled=False):
        return schedulers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    if not isinstance(sde, DiscreteVP):
        raise NoTwin(
            f"no scheduler of diffusers is the process {type(sde).__name__} of this model; train "
            "with sde.kind: discrete_vp, or linear_flow with parameterization flow"
        )
    n = len(sde.betas)
    base: Any = told.base
    known = told.noise is place or (isinstance(told.noise, Index) and told.noise.levels == n)
    if not known or base not in PREDICTIONS:
        raise NoTwin(
            "schedulers of diffusers know parameterization eps, v and x0, and a network that is "
            "told the place in their table; train with one of these to export it"
        )
    return schedulers.DDPMScheduler(
        num_train_timesteps=n,
        **_table(sde.betas),
        prediction_type=PREDICTIONS[base],
        variance_type="learned_range" if model.variance else "fixed_small",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=steps_offset,
    )


def _table(betas: tuple[float, ...]) -> dict[str, Any]:
    """The name of a table of variances with its ends, or the table itself."""
    n, ends = len(betas), (betas[0], betas[-1])
    named = {"linear": tables.linear, "scaled_linear": tables.scaled_linear}
    for name, make in named.items():
        if max(ends) < 1 and _close(make(*ends)(n), betas):
            return {"beta_schedule": name, "beta_start": ends[0], "beta_end": ends[1]}
    if _close(tables.cosine()(n), betas):
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": list(betas)}


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) <= 1e-14 * abs(y) for x, y in zip(a, b, strict=True))


def vae_of(codec: Any, shape: tuple[int, ...]) -> Any:
    """The autoencoder of a codec for pictures (C, H, W), with standardised latents.

    Raises NoTwin.
    """
    if isinstance(codec, codecs.Autoencoder):
        return codec.module
    twin = keymaps.autoencoder(codec, shape[1:])
    tensors, factor = keymaps.folded(codec, twin.forth(codec.state_dict()))
    twin = Twin(twin.kind, {**twin.config, "scaling_factor": factor}, (), tensors)
    vae = _built(twin, {}, codec.latents_mean.device)
    generator = torch.Generator().manual_seed(0)
    sides = (2 * codec.factor, 2 * codec.factor)
    x = 2 * torch.rand(2, codec.channels, *sides, generator=generator) - 1
    x = x.to(codec.latents_mean)
    with torch.no_grad():
        w = codec.standardised(codec.encode(x).mean)
        found = vae.encode(x)
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        _require_same(z * factor, w, twin.kind)
        if hasattr(vae, "quantize"):  # a latent between two codes could be rounded to either
            w = codec.standardised(codec.codebook(codec.unstandardised(w)).z)
        _require_same(
            vae.decode(w / factor).sample, codec.decode(codec.unstandardised(w)), twin.kind
        )
    return vae


def _plain_vae(codec: Any, shape: tuple[int, ...], pipeline: str) -> Any:
    """The AutoencoderKL of a pipeline of sentences, all of whose scales that knows.

    Raises NoTwin.
    """
    vae = vae_of(codec, shape)
    if type(vae).__name__ != "AutoencoderKL":
        raise NoTwin(
            f"{pipeline} decodes latents by AutoencoderKL, got {type(vae).__name__}; train on "
            "those of autoencoder.kind kl to export it"
        )
    known = ("latents_mean", "latents_std") if "XL" in pipeline else ()
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if key not in known and vae.config.get(key):
            raise NoTwin(
                f"codec: {pipeline} knows no {key}, which this autoencoder has; train on the "
                "latents of an autoencoder.kind kl to export it"
            )
    return vae


def _built(twin: Twin, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The module of a twin, with the weights of ours."""
    found = twin.forth(tensors)
    module = getattr(library("diffusers"), twin.kind).from_config(dict(twin.config))
    module.load_state_dict(found, assign=True)
    return module.to(device).eval().requires_grad_(False)


def _require_same_network(net: nn.Module, module: Any, shape: tuple[int, ...]) -> None:
    """Raise NoTwin unless a module computes what ours does, of classes and of no class."""
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *shape, generator=generator).to(device)
    noise = torch.tensor([0.0, 500.25, 999.0], device=device)
    classes = getattr(net, "classes", None)
    label = None if classes is None else torch.tensor([0, classes - 1, classes], device=device)
    call: Callable[..., Any] = module
    one = torch.zeros(3, dtype=torch.int64, device=device)
    told = one if label is None and hasattr(module, "transformer_blocks") else label
    before = net.training
    with torch.no_grad():
        ours = net.eval()(x, noise) if label is None else net.eval()(x, noise, label)
        _require_same(call(x, noise, class_labels=told).sample, ours, type(module).__name__)
    net.train(before)


def _require_same(theirs: Tensor, ours: Tensor, kind: str) -> None:
    off = float((theirs - ours).abs().max())
    limit = EXACT * torch.finfo(ours.dtype).eps * float(ours.abs().max())
    if not off <= limit:
        raise NoTwin(
            f"{kind} of diffusers {library('diffusers').__version__} differs from the network by "
            f"{off:.2g}, more than rounding; nothing is written"
        )
