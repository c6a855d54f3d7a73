"""Time a step beside the schedulers of diffusers: our loop, and our scheduler in their loop.

    python experiments/interop.py [--repeats N] [--out experiments/results/interop.json]

The network is 0.1 x, so that everything timed is the sampler. All three take 50 steps over the
levels of the scheduler, by the same method, in one process, one after the other in every repeat:
``set_timesteps`` and their ``step``; the same loop with ``as_scheduler``; and ``sample`` with a
wrapped network. Medians of the time of the thread are compared; the allocator of Linux is told to
keep its memory. Their draws and ours are torch's. Prints a table in markdown and stores it.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from overhead import interleaved, keep_memory
from torch import Tensor, nn

from scoresde import sample, wrap
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


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "interop.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    results: dict[str, Any] = {"hardware": f"one thread of an {platform.machine()} CPU"}
    for shape in SHAPES:
        found = {name: measured(name, shape, args.repeats) for name in PAIRS}
        results["x".join(map(str, shape))] = found
        print(f"\n{table(shape, found)}\n", flush=True)
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


def table(shape: tuple[int, ...], found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        f"State {list(shape)}, time a network call, of theirs and of ours over theirs:",
        "",
        "| scheduler | theirs, us | as_scheduler | sample |",
        "|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['theirs_us']:.0f} | {row['as_scheduler']:.2f} "
            f"| {row['sample']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
