"""Peak memory of a picture from a prompt by a folder of Stable Diffusion: ours and diffusers'.

    python experiments/interop_memory.py [--out experiments/results/interop_memory.json]

A folder in the layout of Stable Diffusion 1 is made, with random weights of some 300 MB in
float32. Each measurement is a program of its own: it loads the folder in a dtype, draws two
pictures of 256 x 256 from one prompt with a negative prompt and guidance in four steps, and
reports the largest resident memory that Linux saw (VmHWM), less that of a program that only
imports what it uses. Theirs is measured as it comes, and with its autoencoder in slices; with the
package accelerate it holds no weight twice. ``--beside`` is a folder with that package, and these
results stand beside the others. The thresholds of the allocator are held fixed: by default glibc
moves them on the way, and what it then keeps differs by 100 MB from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

PROMPT, NEGATIVE, STEPS, PICTURES = "a red cat", "a dog", 4, 2
DTYPES = ("float32", "bfloat16")
WHO = ("ours", "theirs", "theirs in slices")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
SIDE = 256


def main() -> None:
    """Measure every program, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "interop_memory.json")
    parser.add_argument("--beside", type=Path, help="folder with the package accelerate")
    parser.add_argument("--only", choices=WHO, help="measure this; keep the others as stored")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "DTYPE", "FOLDER"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        child(*args.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        run("folder", "float32", folder)
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        stored = json.loads(args.out.read_text())["peak_mb"] if args.only else {}
        whose = (args.only,) if args.only else WHO
        found = {
            dtype: {**stored.get(dtype, {}), **measured(dtype, folder, args.beside, whose)}
            for dtype in DTYPES
        }
    import diffusers
    import transformers

    result = {
        "what": f"peak resident MB, {PICTURES} pictures of {SIDE} x {SIDE}; above the imports",
        "weights_mb": round(size / 2**20, 1),
        "peak_mb": found,
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        "machine": f"one thread of an {platform.machine()} CPU",
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measured(
    dtype: str, folder: Path, beside: Path | None, whose: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The peak of each, and how far it is above that of its imports."""
    found = {}
    for name, path in {"": None, ", with accelerate": beside}.items():
        for who in whose:
            if name and (path is None or who == "ours"):  # ours does not use it
                continue
            peak = run(who, dtype, folder, path)
            above = peak - run(f"imports of {who}", dtype, folder, path)
            found[who + name] = {"peak": round(peak, 1), "above": round(above, 1)}
    return found


def run(who: str, dtype: str, folder: Path, beside: Path | None = None) -> float:
    """The peak in MB that another program reports."""
    paths = [str(Path(__file__).parents[1]), *([str(beside)] if beside else [])]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": os.pathsep.join(paths)}
    command: Sequence[str] = [sys.executable, __file__, "--child", who, dtype, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def child(who: str, dtype: str, folder: str) -> None:
    """One measurement; prints the peak."""
    warnings.simplefilter("ignore")
    diffusers, transformers = import_module("diffusers"), import_module("transformers")
    for name in ("AutoencoderKL", "StableDiffusionPipeline", "UNet2DConditionModel"):
        getattr(diffusers, name)  # both packages import their classes when they are first named
    for name in ("CLIPTextModel", "CLIPTokenizer"):
        getattr(transformers, name)
    transformers.logging.set_verbosity_error()
    number = getattr(torch, dtype)
    if who == "folder":
        make(Path(folder))
    elif who.endswith("ours"):
        ours(Path(folder), number, "imports" in who)
    elif "imports" not in who:
        theirs(folder, number, who == "theirs in slices")
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def ours(folder: Path, dtype: torch.dtype, imports: bool) -> None:
    """Our pictures, or what they import."""
    import scoresde as ss
    from scoresde.interop.folder import Folder
    from scoresde.interop.pipelines import read_folder
    from scoresde.samplers import DDIM

    draw = ss.draw
    if imports:
        return
    model = read_folder(Folder(folder), dtype)
    drawn = draw(
        model, PICTURES, prompt=PROMPT, negative=NEGATIVE, guidance=5.0, step=DDIM(), nfe=STEPS
    )
    assert drawn.x.shape == (PICTURES, 3, SIDE, SIDE)


def theirs(folder: str, dtype: torch.dtype, slices: bool) -> None:
    """The pictures of the pipeline of diffusers."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    if slices:
        pipeline.vae.enable_slicing()
    images = pipeline(
        PROMPT, negative_prompt=NEGATIVE, guidance_scale=5.0, num_inference_steps=STEPS,
        num_images_per_prompt=PICTURES, output_type="np",
    ).images  # fmt: skip
    assert images.shape == (PICTURES, SIDE, SIDE, 3)


def make(folder: Path, width: int = 80) -> None:
    """A folder in the layout of Stable Diffusion 1 with random weights, as wide as is said."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"
    words = [*signs, *(sign + "</w>" for sign in signs), start, end]
    vocabulary = {word: k for k, word in enumerate(words)}
    text: Any = CLIPTextConfig(
        vocab_size=len(words), hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
        intermediate_size=1536, bos_token_id=vocabulary[start], eos_token_id=vocabulary[end],
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        AutoencoderKL(
            block_out_channels=(48, 96, 192, 192), layers_per_block=2, norm_num_groups=16,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4, sample_size=SIDE, scaling_factor=0.18215,
        ),
        CLIPTextModel(text),
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        UNet2DConditionModel(
            sample_size=SIDE // 8, block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=384, attention_head_dim=8, norm_num_groups=16,
        ),
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    main()
