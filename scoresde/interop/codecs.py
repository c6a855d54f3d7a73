"""The autoencoders of diffusers as codecs of this library."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.modules import module_of
from scoresde.latent import Codec
from scoresde.latent.codec import Encoded

CODECS = ("AutoencoderKL", "VQModel")
PIXELS = 2**16
"""Pixels decoded at a time: a picture of 256 x 256, which these decoders hold many times over."""


@final
class Autoencoder(Codec):
    """AutoencoderKL or VQModel of diffusers as a codec of pictures in [-1, 1].

    A score model sees w = (z - shift) scale of the latents z. Numbers are cast to the dtype of the
    weights and back. A VQModel encodes without noise, and finds the nearest codes in its decoder.

    Args:
        module: module of diffusers.
        shift: shift of each channel of the latents.
        scale: scale of each channel.
    """

    def __init__(self, module: Any, shift: Tensor, scale: Tensor) -> None:
        config = module.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(config.in_channels, len(shift), factor)
        self.module = module
        for part in module.modules():
            if isinstance(part, nn.GroupNorm):
                part.register_forward_pre_hook(_contiguous)
        # At least float32: a rounded scale would be an error of every latent.
        wide = torch.promote_types(module.dtype, torch.float32)
        self.latents_mean, self.latents_std = shift.to(wide), (1 / scale).to(wide)

    def encode(self, x: Tensor) -> Encoded:
        found = self.module.encode(self.padded(x).to(self.module.dtype))
        if hasattr(found, "latents"):
            z = found.latents.to(x)
            return Encoded(z, torch.zeros_like(z))
        law = found.latent_dist
        return Encoded(law.mean.to(x), law.std.to(x))

    def output(self, z: Tensor) -> Tensor:
        # The fast attention has no derivative in forward mode.
        forwards = forward_ad.unpack_dual(z).tangent is not None
        with sdpa_kernel(SDPBackend.MATH) if forwards else nullcontext():
            few = max(1, PIXELS // (z.shape[2] * z.shape[3] * self.factor**2))
            parts = [self._decoded(part) for part in z.to(self.module.dtype).split(few)]
        return torch.cat(parts).to(z)

    def _decoded(self, own: Tensor) -> Tensor:
        x: Tensor
        if not hasattr(self.module, "quantize"):
            x = self.module.decode(own).sample
            return x
        # As its decode does, with the gradient of a code, in forward mode too, to its latent.
        index = self.module.quantize(own.detach())[2][2]
        codes = self.module.quantize.embedding(index)
        codes = codes.view(len(own), *own.shape[2:], -1).movedim(-1, 1)
        own = own + (codes - own).detach()
        spatial = own if self.module.config.norm_type == "spatial" else None
        x = self.module.decoder(self.module.post_quant_conv(own), spatial)
        return x


def _contiguous(norm: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
    """A copy whose tangent is contiguous too, without which group norm has no forward mode."""
    if forward_ad.unpack_dual(given[0]).tangent is None:
        return None
    return (given[0].clone(memory_format=torch.contiguous_format),)


def codec_of(folder: Folder, part: str, dtype: torch.dtype) -> Autoencoder:
    """The codec of a part. Raises FolderError.

    Its weights are in ``dtype``. Where the configuration has ``force_upcast`` they would overflow
    in float16, and are in float32 instead; bfloat16 has the range of float32.
    """
    found = folder.part(part)
    if found is not None and found[1] not in CODECS:
        raise FolderError(
            f"{folder.path}: {part} is {found[1]}; codecs of these classes are read: "
            f"{', '.join(CODECS)}"
        )
    config = folder.json(f"{part}/config.json")
    forced = config.get("force_upcast", found is not None and found[1] == "AutoencoderKL")
    if forced and dtype == torch.float16:
        dtype = torch.float32
    module = module_of(folder, part, dtype)
    if type(module).__name__ == "VQModel" and "scaling_factor" not in config:
        config["scaling_factor"] = 1.0
        folder.notes.append(
            f"{folder.path / part / 'config.json'}: scaling_factor is missing; 1 is "
            "taken, that of the published VQ models (the default of VQModel is 0.18215)"
        )
    shift, scale = affine({**module.config, **config}, part)
    return Autoencoder(module, shift, scale).eval().requires_grad_(False)


def affine(config: Mapping[str, Any], part: str) -> tuple[Tensor, Tensor]:
    """shift and scale of w = (z - shift) scale, a number of each channel, in float64.

    w = (z - shift_factor) scaling_factor,   or   (z - latents_mean) scaling_factor / latents_std
    """
    channels = int(config.get("vq_embed_dim") or config["latent_channels"])
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = config.get("shift_factor") or 0.0, 1.0
    try:
        shift, spread = (
            torch.as_tensor(value, dtype=torch.float64).flatten().expand(channels)
            for value in (mean, std)
        )
        scale = float(config["scaling_factor"]) / spread
    except (TypeError, ValueError, RuntimeError) as error:
        raise FolderError(
            f"{part}/config.json: scaling_factor, shift_factor, latents_mean and latents_std need "
            f"numbers, one or {channels}"
        ) from error
    if not bool((shift.isfinite() & scale.isfinite() & (scale > 0)).all()):
        raise FolderError(f"{part}/config.json: the scale of the latents has to be positive")
    return shift, scale
