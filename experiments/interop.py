"""Time a step beside diffusers: its schedulers with a free network, and its whole pipeline.

    python experiments/interop.py [--repeats N] [--only schedulers | pipeline] [--out FILE]

Schedulers: our loop, and our scheduler in their loop.
The network is 0.1 x, so that everything timed is the sampler. All three take 50 steps over the
levels of the scheduler, by the same method, in one process, one after the other in every repeat:
``set_timesteps`` and their ``step``; the same loop with ``as_scheduler``; and ``sample`` with a
wrapped network. Medians of the time of the thread are compared; the allocator of Linux is told to
keep its memory. Their draws and ours are torch's.

Pipeline: a folder in the layout of Stable Diffusion 1 with a small U-Net and random weights, 10
steps with a prompt, a negative prompt and guidance, from latents to latents: their pipeline called
with the states of the encoder, and ``sample`` with the grid of its scheduler. The time within the
module of the network, one and the same, is measured in both and taken off. Prints tables in
markdown and stores them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interop_memory import NEGATIVE, PROMPT, make
from overhead import interleaved, keep_memory
from torch import Tensor, nn

import scoresde as ss
from scoresde import sample, wrap
from scoresde.guidance import free
from scoresde.interop import as_scheduler
from scoresde.interop.schedulers import grid_of
from scoresde.samplers import DDIM, Heun, Step, ddpm, dpmpp_2m, euler_a, unipc

SHAPES = ((64, 3, 32, 32), (1, 4, 64, 64), (4096, 2))
STEPS_TAKEN = 50
PAIRS: dict[str, tuple[Step, dict[str, Any]]] = {
    "DDIMScheduler": (DDIM(), {"clip_sample": False}),
    "DDPMScheduler": (ddpm(), {"clip_sample": False}),
    "EulerDiscreteScheduler": (DDIM(), {"timestep_spacing": "leading"}),
    "EulerAncestralDiscreteScheduler": (euler_a(), {"timestep_spacing": "leading"}),
    "HeunDiscreteScheduler": (Heun(published=True), {"timestep_spacing": "leading"}),
    "DPMSolverMultistepScheduler": (dpmpp_2m(), {}),
    "UniPCMultistepScheduler": (unipc(2, published=True), {}),
}
PIPELINE_STEPS, GUIDANCE = 10, 5.0
WHOLE: dict[str, Step] = {
    "DDIMScheduler": DDIM(),
    "EulerDiscreteScheduler": DDIM(),
    "DPMSolverMultistepScheduler": dpmpp_2m(),
}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=("schedulers", "pipeline"))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "interop.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.only else {}
    results["hardware"] = f"one thread of an {platform.machine()} CPU"
    if args.only != "schedulers":
        results["pipeline"] = pipelines(args.repeats)
        print(pipeline_table(results["pipeline"]), flush=True)
    for shape in () if args.only == "pipeline" else SHAPES:
        found = {name: measured(name, shape, args.repeats) for name in PAIRS}
        results["x".join(map(str, shape))] = found
    print(table(results))
    args.out.write_text(json.dumps(results, indent=1) + "\n")


class Network(nn.Module):
    """As good as free."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.scale * x


def measured(name: str, shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Microseconds a network call of the three, and the ratios of ours to theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
    step, fields = PAIRS[name]
    scheduler = getattr(diffusers, name)(**fields)
    net, x = Network(), torch.randn(*shape)
    model = wrap(net, scheduler)
    grid = grid_of({**scheduler.config, "_class_name": name})
    ts, denoiser = grid(model.sde, STEPS_TAKEN), model.denoiser()
    ours = as_scheduler(scheduler, step, grid)

    def pipeline(stepper: Any) -> Callable[[], int]:
        def run() -> int:
            stepper.set_timesteps(STEPS_TAKEN)
            y = x
            with torch.no_grad():
                for t in stepper.timesteps:
                    y = stepper.step(net(stepper.scale_model_input(y, t), t), t, y).prev_sample
            return len(stepper.timesteps)

        return run

    def loop() -> int:
        sample(denoiser, x, ts, step)
        return len(scheduler.timesteps)

    runs = {"theirs": pipeline(scheduler), "as_scheduler": pipeline(ours), "sample": loop}
    seconds = interleaved(runs, repeats)
    found = {f"{which}_us": 1e6 * s for which, s in seconds.items()}
    ratios = {which: seconds[which] / seconds["theirs"] for which in ("as_scheduler", "sample")}
    return found | ratios


def pipelines(repeats: int) -> dict[str, Any]:
    """Milliseconds a step of their pipeline and of ours, of the network, and of the rest."""
    warnings.simplefilter("ignore")
    import diffusers

    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), 16)
        model = ss.load(scratch)
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(scratch)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        states, none = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    guided = free(model, {"text": PROMPT}, {"text": NEGATIVE}, GUIDANCE)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline.unet = model.net.module  # the same weights at the same place of the memory
    clock = Clock(pipeline.unet)
    found: dict[str, Any] = {}
    for name, step in WHOLE.items():
        kind = getattr(diffusers, name)
        pipeline.scheduler = scheduler = kind.from_config(
            pipeline.scheduler.config, set_alpha_to_one=True
        )
        grid = grid_of({**scheduler.config, "_class_name": name})

        def ours(grid: Any = grid, step: Step = step) -> Tensor:
            return sample(guided, x, grid(model.sde, PIPELINE_STEPS), step)

        def theirs() -> Tensor:
            drawn: Tensor = pipeline(
                prompt_embeds=states, negative_prompt_embeds=none, guidance_scale=GUIDANCE,
                num_inference_steps=PIPELINE_STEPS, latents=x, output_type="latent",
            ).images  # fmt: skip
            return drawn

        rows: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        runs = dict(zip(rows, (ours, theirs), strict=True))
        ends = {who: run() for who, run in runs.items()}
        for _ in range(repeats):
            for who, run in runs.items():
                clock.calls, clock.seconds = 0, 0.0
                started = time.thread_time()
                run()
                whole = time.thread_time() - started
                assert clock.calls == PIPELINE_STEPS, (name, who, clock.calls)
                rows[who].append((whole, clock.seconds))
        unit = 1000 / PIPELINE_STEPS
        found[name] = {
            who: {
                "step_ms": unit * statistics.median(whole for whole, _ in each),
                "rest_ms": unit * statistics.median(whole - net for whole, net in each),
            }
            for who, each in rows.items()
        }
        gap = (ends["ours"] - ends["theirs"]).abs().max() / ends["theirs"].abs().max()
        found[name]["difference"] = float(gap)
    return found


class Clock:
    """Counts the calls of a module and the time of the thread within them."""

    def __init__(self, module: nn.Module) -> None:
        self.calls, self.seconds, forward = 0, 0.0, module.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            result = forward(*args, **kwargs)
            self.seconds += time.thread_time() - started
            self.calls += 1
            return result

        module.forward = timed


def pipeline_table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| scheduler | theirs, ms | ours | their rest, ms | our rest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        (whole, rest), (our, own) = (
            (row[who]["step_ms"], row[who]["rest_ms"]) for who in ("theirs", "ours")
        )
        lines.append(f"| `{name}` | {whole:.2f} | {our:.2f} | {rest:.3f} | {own:.3f} |")
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    """Markdown: microseconds a call of theirs, and ours over theirs, for each shape."""
    names = ["x".join(map(str, shape)) for shape in SHAPES]
    head = [f"{name}, us | as_scheduler | sample" for name in names]
    lines = [f"| | {' | '.join(head)} |", "| --- " * (1 + 3 * len(names)) + "|"]
    for scheduler in PAIRS:
        rows = [found[name][scheduler] for name in names]
        cells = [
            f"{row['theirs_us']:.0f} | {row['as_scheduler']:.2f} | {row['sample']:.2f}"
            for row in rows
        ]
        lines.append(f"| `{scheduler}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
