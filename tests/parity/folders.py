"""Tiny pipelines of diffusers with random weights, saved as their users save them."""

from pathlib import Path

import torch

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}
CODEC = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def pipeline(d, name, seed=0, **scheduler):
    """A pipeline of the package ``d`` by a name of this file; further fields of its scheduler."""
    torch.manual_seed(seed)
    ddim = {"clip_sample": False, **scheduler}
    match name:
        case "ddpm":
            return d.DDPMPipeline(d.UNet2DModel(**UNET), d.DDPMScheduler(**ddim))
        case "ddim":
            return d.DDIMPipeline(d.UNet2DModel(**UNET), d.DDIMScheduler(**ddim))
        case "pndm":
            return d.PNDMPipeline(d.UNet2DModel(**UNET), d.PNDMScheduler(**scheduler))
        case "learned":
            unet = d.UNet2DModel(**UNET, out_channels=6)
            made = d.DDPMScheduler(variance_type="learned_range", **ddim)
            return d.DDPMPipeline(unet, made)
        case "odd":
            return d.DDPMPipeline(d.UNet2DModel(**UNET, out_channels=4), d.DDPMScheduler())
        case "centred":
            unet = d.UNet2DModel(**UNET, center_input_sample=True)
            return d.DDIMPipeline(unet, d.DDIMScheduler(prediction_type="v_prediction", **ddim))
        case "classes":
            unet = d.UNet2DModel(**UNET, num_class_embeds=5)
            return d.DDPMPipeline(unet, d.DDPMScheduler(**ddim))
        case "ve":
            unet = d.UNet2DModel(**UNET, time_embedding_type="fourier")
            return d.ScoreSdeVePipeline(unet, d.ScoreSdeVeScheduler(**scheduler))
        case "vq":
            vq = d.VQModel(**CODEC, num_vq_embeddings=32, latent_channels=3, scaling_factor=0.5)
            # Of unit size, so that latents of all kinds have different nearest codes.
            vq.quantize.embedding.weight.data.normal_()
            return d.LDMPipeline(vq, d.UNet2DModel(**UNET), d.DDIMScheduler(**SD, **ddim))
        case "ldm":
            vae = d.AutoencoderKL(**CODEC, latent_channels=3)
            return d.LDMPipeline(vae, d.UNet2DModel(**UNET), d.DDIMScheduler(**SD, **ddim))
        case "dit":
            net = d.DiTTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                out_channels=8,
                num_layers=2,
                sample_size=8,
            )
            vae = d.AutoencoderKL(**CODEC, scaling_factor=0.7)
            # The last layers of DiT are zero in the beginning.
            for value in net.parameters():
                value.data.add_(0.1 * torch.randn_like(value))
            return d.DiTPipeline(net, vae, d.DDIMScheduler(**ddim))
    raise ValueError(name)


def folder(d, path: Path, name, seed=0, **scheduler):
    """The same, saved in a folder below ``path``."""
    made = path / name
    pipeline(d, name, seed, **scheduler).save_pretrained(made)
    return made
