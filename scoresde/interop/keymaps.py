"""Which of our networks is which module of diffusers, and where each weight goes.

A map is exact or there is none. It is a list of ``Pair``, read in either direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.latent import Codec
from scoresde.latent.autoencoder import Convolutional, KLAutoencoder, VQAutoencoder
from scoresde.latent.networks import Block, Halved
from scoresde.nn import ConcatUNet, DiT, LateConditioning
from scoresde.nn.blocks import SelfAttention
from scoresde.nn.concat import Descent
from scoresde.nn.embeddings import Timesteps
from scoresde.nn.resample import Down
from scoresde.nn.residual import Modulated, Residual


class NoTwin(ValueError):
    """A network that diffusers has no module for; the message says which to train."""


class Pair(NamedTuple):
    """Where a tensor of ours is in a state dict of diffusers.

    Args:
        ours: its name.
        theirs: its names there.
        parts: it is there in as many parts, along its first axis; else it is there as often.
        rows: the order of its first axis there.
        columns: the order of its second axis there.
    """

    ours: str
    theirs: tuple[str, ...]
    parts: bool = False
    rows: Tensor | None = None
    columns: Tensor | None = None

    def forth(self, tensor: Tensor) -> dict[str, Tensor]:
        """The tensors of diffusers."""
        if self.rows is not None:
            tensor = tensor[self.rows]
        if self.columns is not None and tensor.ndim > 1:
            tensor = tensor[:, self.columns]
        n = len(self.theirs)
        found = tensor.chunk(n) if self.parts else [tensor] * n
        return {k: x.clone() for k, x in zip(self.theirs, found, strict=True)}

    def back(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor. Raises ValueError for copies that differ."""
        found = [tensors[name] for name in self.theirs]
        tensor = torch.cat(found) if self.parts else found[0]
        if not self.parts and not all(torch.equal(tensor, x) for x in found):
            raise NoTwin(
                f"{self.theirs[0]}: differs from the same weights in other blocks, which one "
                "network of ours has in common; keep the module of diffusers"
            )
        if self.columns is not None and tensor.ndim > 1:
            tensor = tensor[:, self.columns.argsort()]
        return tensor if self.rows is None else tensor[self.rows.argsort()]


@dataclass(frozen=True)
class Twin:
    """A module of diffusers that computes what a network of ours does.

    Args:
        kind: name of its class.
        config: arguments of the class.
        pairs: where our weights go.
        constant: tensors that ours has no weights for.
        unused: beginnings of the names of weights of ours that are at work in training only.
    """

    kind: str
    config: Mapping[str, Any]
    pairs: Sequence[Pair]
    constant: Mapping[str, Tensor]
    unused: tuple[str, ...] = ()

    def forth(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict as that of the module. Raises NoTwin for a weight without a place."""
        names = {pair.ours for pair in self.pairs}
        if stray := [k for k in tensors if k not in names and not k.startswith(self.unused)]:
            raise NoTwin(f"{stray[0]}: {self.kind} of diffusers has no place for it")
        found = dict(self.constant)
        for pair in self.pairs:
            found |= pair.forth(tensors[pair.ours])
        return found

    def back(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the module as ours, without what is at work in training only.

        Raises NoTwin for tensors that are missing, or that ours has no place for.
        """
        names = {name for pair in self.pairs for name in pair.theirs} | self.constant.keys()
        if odd := sorted(names ^ tensors.keys()):
            raise NoTwin(f"{odd[0]}: not in both networks; give weights of {self.kind}")
        return {pair.ours: pair.back(tensors) for pair in self.pairs}


def layer(
    ours: str,
    *theirs: str,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    parts: bool = False,
) -> Iterator[Pair]:
    """The weight and the bias of a layer."""
    for name in ("weight", "bias"):
        yield Pair(f"{ours}.{name}", tuple(f"{k}.{name}" for k in theirs), parts, rows, columns)


def attention(ours: str, theirs: str) -> Iterator[Pair]:
    """Self-attention over pixels."""
    yield from layer(f"{ours}.norm", f"{theirs}.group_norm")
    yield from layer(f"{ours}.qkv", *(f"{theirs}.to_{c}" for c in "qkv"), parts=True)
    yield from layer(f"{ours}.project", f"{theirs}.to_out.0")


def network(net: nn.Module, size: tuple[int, ...]) -> Twin:
    """The twin of a network for pictures of (height, width). Raises NoTwin."""
    if isinstance(net, ConcatUNet):
        return unet(net, size)
    if isinstance(net, DiT):
        return dit(net, size)
    raise NoTwin(
        f"{type(net).__name__} has no twin in diffusers; train network.kind adm, dit or diffusers "
        "to export it"
    )


def unet(net: ConcatUNet, size: tuple[int, ...]) -> Twin:
    """``adm`` as UNet2DModel. Raises NoTwin for another network of its class."""
    condition: Any = net.condition
    encoder: Any = net.encoder
    _require_plain(net, condition)
    blocks = [m for m in net.modules() if isinstance(m, Residual)]
    one = blocks[0]
    if not (
        isinstance(condition, LateConditioning)
        and all(isinstance(b.conditioned, Modulated) and b.merge is torch.add for b in blocks)
        and all(isinstance(d, Descent) and _boxes(d) for d in net.descents)
    ):
        raise NoTwin(
            "this U-Net has no twin in diffusers, whose blocks divide no sums by sqrt 2 and take "
            "no picture beside; train network.kind adm, dit or diffusers to export it"
        )
    widths = [cells[0].residual.inner.out_channels for cells in encoder]
    attends = [isinstance(cells[0].attention, SelfAttention) for cells in encoder]
    features = condition.hidden.in_features
    if (net.stem.out_channels, features) != (widths[0], widths[0]):
        raise NoTwin(
            f"UNet2DModel of diffusers has as many channels behind its first layer and as many "
            f"features of the noise as channels at full resolution, {widths[0]}, got "
            f"{net.stem.out_channels} and {features}; train with network.multipliers from 1 and "
            "network.embedding null"
        )
    if not isinstance(net.head, nn.Conv2d):
        raise NoTwin("network.head=levels has no twin in diffusers; train with head: value")
    _require_divisible(size, 2 ** (len(widths) - 1))
    found = [m for m in net.modules() if isinstance(m, SelfAttention)]
    each = {m.project.in_features // m.heads for m in found}
    single = all(m.heads == 1 for m in found)
    config = {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": net.channels,
        "out_channels": net.head.out_channels,
        "time_embedding_dim": condition.out.out_features,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "down_block_types": [
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ],
        "up_block_types": [
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)
        ],
        "block_out_channels": widths,
        "layers_per_block": len(encoder[0]),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "dropout": one.dropout.p,
        "attention_head_dim": None if single else each.pop(),
        "norm_num_groups": (groups := _groups(net)),
        "attn_norm_num_groups": groups,
        "norm_eps": one.norm.eps,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": None if condition.labels is None else condition.labels.num_embeddings,
    }
    return Twin("UNet2DModel", config, list(_unet(net)), {}, ("condition.augments",))


def _unet(net: ConcatUNet) -> Iterator[Pair]:
    last = len(net.descents)
    yield from _shared(net, "time_embedding", "class_embedding.weight")
    yield from layer("stem", "conv_in")
    for i in range(last + 1):
        down, up = f"down_blocks.{i}", f"up_blocks.{i}"
        yield from _cells(net.encoder[i], f"encoder.{i}", down)
        yield from _cells(net.decoder[i], f"decoder.{i}", up)
        if i < last:
            descent: Any = net.descents[i]
            ascent: Any = net.ascents[i]
            yield from _residual(descent.block, f"descents.{i}.block", f"{down}.downsamplers.0")
            yield from _residual(ascent, f"ascents.{i}", f"{up}.upsamplers.0")
    yield from _cells(net.middle, "middle", "mid_block")
    yield from layer("norm", "conv_norm_out")
    yield from layer("head", "conv_out")


def _cells(cells: Any, ours: str, theirs: str) -> Iterator[Pair]:
    for j, cell in enumerate(cells):
        yield from _residual(cell.residual, f"{ours}.{j}.residual", f"{theirs}.resnets.{j}")
        if isinstance(cell.attention, SelfAttention):
            yield from attention(f"{ours}.{j}.attention", f"{theirs}.attentions.{j}")


def _residual(block: Residual, ours: str, theirs: str) -> Iterator[Pair]:
    names = {
        "norm": "norm1",
        "inner": "conv1",
        "conditioned.norm": "norm2",
        "conditioned.modulation": "time_emb_proj",
        "outer": "conv2",
    }
    if isinstance(block.skip, nn.Conv2d):
        names["skip"] = "conv_shortcut"
    for mine, other in names.items():
        yield from layer(f"{ours}.{mine}", f"{theirs}.{other}")


def _shared(
    net: Any, embedding: str, table: str, copies: Sequence[str] = ("",), flip: bool = False
) -> Iterator[Pair]:
    """The two layers of the noise level and the table of classes."""
    half = net.condition.hidden.in_features // 2
    columns = torch.arange(2 * half).roll(half) if flip else None
    for mine, other in (("hidden", "linear_1"), ("out", "linear_2")):
        places = (f"{copy}{embedding}.{other}" for copy in copies)
        yield from layer(
            f"condition.{mine}", *places, columns=columns if mine == "hidden" else None
        )
    if net.classes is not None:
        yield Pair("condition.labels.weight", tuple(f"{copy}{table}" for copy in copies))


def dit(net: DiT, size: tuple[int, ...]) -> Twin:
    """``dit`` as DiTTransformer2DModel. Raises NoTwin.

    The channels of a token are there in another order, since columns come before rows in its
    encoding of positions. A network without classes has one class there, whose embedding is 0.
    """
    condition: Any = net.condition
    _require_plain(net, condition)
    if net.classes is not None and not isinstance(condition, LateConditioning):
        raise NoTwin(
            "DiTTransformer2DModel of diffusers adds the class behind the layers of the noise "
            "level; train with network.late: true to export it"
        )
    if condition.hidden.in_features != 256:
        raise NoTwin(
            "DiTTransformer2DModel of diffusers has 256 features of the noise level, got "
            f"{condition.hidden.in_features}; train with network.embedding: 256 to export it"
        )
    if size[0] != size[1]:
        raise NoTwin(
            f"DiTTransformer2DModel of diffusers is for square pictures, got {size[0]} x {size[1]}"
            "; train network.kind adm or diffusers to export it"
        )
    _require_divisible(size, net.patch)
    blocks: Any = net.blocks
    width, p = net.stem.out_channels, net.patch
    heads = blocks[0].attention.heads
    outputs = net.head.out_features // p**2
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": net.channels,
        "out_channels": outputs,
        "num_layers": len(blocks),
        "dropout": blocks[0].dropout.p,
        "sample_size": size[0],
        "patch_size": p,
        "num_embeds_ada_norm": net.classes or 1,
        "norm_eps": 1e-6,
    }
    emb = [f"transformer_blocks.{i}.norm1.emb." for i in range(len(blocks))]
    table = "class_embedder.embedding_table.weight"
    none = {} if net.classes else {f"{place}{table}": torch.zeros(2, width) for place in emb}
    swap = torch.arange(width).roll(width // 2)

    def pairs() -> Iterator[Pair]:
        yield from _shared(net, "timestep_embedder", table, emb, flip=True)
        yield from layer("stem", "pos_embed.proj", rows=swap)
        six, two = (torch.cat([swap + k * width for k in range(n)]) for n in (6, 2))
        for i in range(len(blocks)):
            ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            attn = f"{theirs}.attn1"
            yield from layer(f"{ours}.modulation", f"{theirs}.norm1.linear", rows=six)
            yield from layer(
                f"{ours}.attention.qkv",
                *(f"{attn}.to_{c}" for c in "qkv"),
                columns=swap,
                parts=True,
            )
            yield from layer(f"{ours}.attention.project", f"{attn}.to_out.0", rows=swap)
            yield from layer(f"{ours}.inner", f"{theirs}.ff.net.0.proj", columns=swap)
            yield from layer(f"{ours}.outer", f"{theirs}.ff.net.2", rows=swap)
        yield from layer("modulation", "proj_out_1", rows=two)
        pixels = torch.arange(outputs * p**2).view(outputs, p * p).T.flatten()
        yield from layer("head", "proj_out_2", rows=pixels, columns=swap)

    return Twin("DiTTransformer2DModel", config, list(pairs()), none, ("condition.augments",))


def autoencoder(codec: Codec, size: tuple[int, ...]) -> Twin:
    """``kl`` as AutoencoderKL and ``vq`` as VQModel, for pictures of (height, width).

    Of a law of pictures its mean stays. The latents are those before they are standardised, which
    ``folded`` changes. Raises NoTwin.
    """
    if not isinstance(codec, KLAutoencoder | VQAutoencoder):
        raise NoTwin(
            f"codec: {type(codec).__name__} has no twin in diffusers; train autoencoder.kind kl "
            "or vq to export it"
        )
    encoder: Any = codec.encoder
    if encoder.patch != 1:
        raise NoTwin(
            f"codec: autoencoders of diffusers do not stack pixels, got patch={encoder.patch}; "
            "train it with autoencoder.patch: 1 to export it"
        )
    _require_divisible(size, codec.factor)
    blocks = [m for m in encoder.layers if isinstance(m, Block)]
    widths = [m.conv.in_channels for m in encoder.layers if isinstance(m, Halved)]
    widths.append(blocks[-1].outer.out_channels)
    each = (len(blocks) - 2) // len(widths)  # without those of the middle
    attends = any(isinstance(m, SelfAttention) for m in encoder.layers)
    config = {
        "in_channels": codec.channels,
        "out_channels": codec.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": each,
        "latent_channels": codec.latent_channels,
        "norm_num_groups": _groups(codec),
        "sample_size": size[0],
        "scaling_factor": 1.0,
        "force_upcast": False,
        "mid_block_add_attention": attends,
    }
    pairs = [
        *_coder(codec, "encoder", len(widths), each),
        *_coder(codec, "decoder", len(widths), each + 1),
        *layer("moments", "quant_conv"),
        *layer("entry", "post_quant_conv"),
    ]
    kind = "AutoencoderKL"
    unused: tuple[str, ...] = ("latents_",)
    if isinstance(codec, VQAutoencoder):
        kind, unused = "VQModel", ("latents_", "codebook.")
        config["num_vq_embeddings"] = len(codec.codebook.codes)
        pairs.append(Pair("codebook.codes", ("quantize.embedding.weight",)))
    return Twin(kind, config, pairs, {}, unused)


def _coder(codec: Convolutional, name: str, levels: int, blocks: int) -> Iterator[Pair]:
    """The encoder, or the decoder with its levels from the coarsest."""
    coder: Any = getattr(codec, name)
    encodes = name == "encoder"
    places = [
        f"{name}.{'down' if encodes else 'up'}_blocks.{i}.{part}"
        for i in range(levels)
        for part in (
            *(f"resnets.{j}" for j in range(blocks)),
            *([f"{'down' if encodes else 'up'}samplers.0.conv"] if i < levels - 1 else []),
        )
    ]
    attends = any(isinstance(m, SelfAttention) for m in coder.layers)
    middle = ["resnets.0", *(["attentions.0"] if attends else []), "resnets.1"]
    middle = [f"{name}.mid_block.{part}" for part in middle]
    places = [*places, *middle] if encodes else [*middle, *places]
    for i, (module, place) in enumerate(zip(coder.layers, places, strict=True)):
        ours = f"{name}.layers.{i}"
        if isinstance(module, SelfAttention):
            yield from attention(ours, place)
        elif isinstance(module, Block):
            names = {"norm": "norm1", "inner": "conv1", "inner_norm": "norm2", "outer": "conv2"}
            names |= {"skip": "conv_shortcut"} if isinstance(module.skip, nn.Conv2d) else {}
            for mine, other in names.items():
                yield from layer(f"{ours}.{mine}", f"{place}.{other}")
        else:
            yield from layer(f"{ours}.conv", place)
    yield from layer(f"{name}.first", f"{name}.conv_in")
    yield from layer(f"{name}.norm", f"{name}.conv_norm_out")
    mean = None if encodes else torch.arange(codec.channels)
    yield from layer(f"{name}.last", f"{name}.conv_out", rows=mean)


def folded(codec: Any, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Tensors of a module whose latents times a factor are the standardised ones of ours.

    The factor is its ``scaling_factor``. Mean and deviation go into the 1 x 1 convolutions beside
    the latents, and the mean of a VQModel into its codes too. Distances between latents decide
    which code is nearest, so its deviation has to be one number. Raises NoTwin where it is not.
    """
    found = {k: x.double() if x.is_floating_point() else x for k, x in tensors.items()}
    mean, std = (x.detach().double().cpu() for x in (codec.latents_mean, codec.latents_std))
    factor, c = 1.0, len(mean)
    if "quantize.embedding.weight" in found:
        if not bool((std == std[0]).all()):
            raise NoTwin(
                "codec: the latents of a VQModel in diffusers are scaled by one number, and these "
                "have a deviation for each channel; train it with autoencoder.isotropic: true to "
                "export it"
            )
        if not bool(codec.codebook.started):
            raise NoTwin("codec: its codes have not begun; train it for more than wait steps")
        factor, std = 1 / float(std[0]), torch.ones_like(std)
        found["quantize.embedding.weight"] -= mean
    into, log_std = found["quant_conv.bias"], std.log()
    into[:c] = (into[:c] - mean) / std
    into[c:] -= 2 * log_std[: len(into) - c]
    found["quant_conv.weight"][:c] /= std[:, None, None, None]
    found["post_quant_conv.bias"] += found["post_quant_conv.weight"][:, :, 0, 0] @ mean
    found["post_quant_conv.weight"] *= std[:, None, None]
    return {k: x.to(tensors[k]) for k, x in found.items()}, factor


def _require_plain(net: Any, condition: Any) -> None:
    """Raise NoTwin for what no module of diffusers is told."""
    if not isinstance(condition.features, Timesteps):
        raise NoTwin(
            "modules of diffusers are told the place of a level in a table, or 1000 t, and this "
            "network log(sigma / alpha); train with parameterization.noise: index (with "
            "sde.kind: discrete_vp) or time (with linear_flow) to export it"
        )
    if condition.embed is not None or net.context is not None or net.concat:
        raise NoTwin(
            "this network is told more than a class, which its twin in diffusers is not; train "
            "with conditional: true in place of conditions, or network.kind: diffusers"
        )


def _require_divisible(size: tuple[int, ...], by: int) -> None:
    if any(side % by for side in size):
        raise NoTwin(
            f"a module of diffusers of this depth takes sizes that {by} divides, got "
            f"{size[0]} x {size[1]}; train on pictures of such a size, or with fewer resolutions"
        )


def _groups(net: nn.Module) -> int:
    """The number of groups of all normalisations. Raises NoTwin where it varies."""
    found = {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    if len(found) > 1:
        raise NoTwin(
            "a module of diffusers has one number of groups for all normalisations, and this one "
            f"has {', '.join(map(str, sorted(found)))}; train with a width that 32 divides, of "
            "128 or more, to export it"
        )
    return found.pop()


def _boxes(descent: Descent) -> bool:
    change = getattr(descent.block, "change", None)
    return isinstance(change, Down) and len(change.kernel) == 2
