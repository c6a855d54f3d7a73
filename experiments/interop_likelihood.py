"""Bits per dimension of a folder of diffusers, by three estimators and by a sum of its own.

    python experiments/interop_likelihood.py [--seconds N] [--folder DIR] [--num N]

Trains a ``UNet2DModel`` as in diffusers' own examples (``DDPMScheduler.add_noise``, the squared
error of the noise, an average of the weights) on the digits of 8 x 8 pixels, whose levels k are
spread over 256 as 15 k + 0 .. 14, and saves a ``DDPMPipeline``, unless the folder is there. Then
``ss.load`` reads it and ``ss.score`` scores the first test pictures by

- ``flow``: the probability flow, from a draw at t_0 = 1 / N;
- ``bound``: the variational bound in continuous time, with the same draw and decoder;
- ``chain``: the variational bound of the chain, all terms;

and ``summed`` is the bound of the chain by the equations of DDPM (arXiv 2006.11239: 5, 7, 13),
written here, which calls the module of diffusers with whole timesteps and uses nothing of this
library. Errors are standard errors over pictures, which hold those of all draws; of a difference
they are of the differences of each picture.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde.data import digits

RESULTS = Path(__file__).parent / "results" / "interop_likelihood.json"
FEWER = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "layers_per_block": 1}
BLOCKS = {
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "flow": {"method": "path", "probes": 4, "dequantisation": "decoder"},
    "bound": {"method": "elbo", "times": 256, "dequantisation": "decoder"},
    "chain": {"method": "discrete", "steps": 1000, "times": 1000},
}
MEANING = {
    "flow": "probability flow",
    "bound": "bound in continuous time",
    "chain": "bound of the chain of 1000 levels",
    "summed": "the same by the equations of DDPM",
}


def main() -> None:
    """Train, score, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=200.0, help="CPU seconds of training")
    parser.add_argument("--folder", type=Path, default=Path("runs/interop_likelihood"))
    parser.add_argument("--num", type=int, default=16, help="number of test pictures")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not (args.folder / "model_index.json").exists():
        train(args.folder, args.seconds)
    pictures = spread(digits().test.x[: args.num])
    nats: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    model = ss.load(args.folder)
    for name in ("chain", "summed", "bound", "flow"):
        started = time.process_time()
        if name in SETTINGS:
            found = ss.score(model, pictures, check=0, batch=16, **SETTINGS[name])
            nats[name] = found.log_prob
        else:
            nats[name] = -summed(args.folder, pictures)
        seconds[name] = time.process_time() - started
        print(f"{name}: {seconds[name]:.0f} s, {float(nats[name].mean()):.3f} nats", flush=True)
    results = report(nats, pictures[0].numel(), seconds)
    results["coarse"] = coarse(args.folder)
    results["training"] = json.loads((args.folder / "training.json").read_text())
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def spread(k: Tensor) -> Tensor:
    """Levels 0 .. 16 as 256 levels, 15 to each of them."""
    return (15 * k + torch.randint(0, 15, k.shape)).to(torch.uint8)


def train(folder: Path, seconds: float) -> None:
    """A DDPM in the way of diffusers' examples, saved in the folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    net, scheduler = UNet2DModel(**FEWER, **BLOCKS), DDPMScheduler(clip_sample=False)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    data = digits().train.x
    started, steps = time.process_time(), 0
    while (spent := time.process_time() - started) < seconds:
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1, 4 * (1 - spent / seconds))
        x = spread(data[torch.randint(len(data), (64,))]) / 127.5 - 1
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = (net(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        averaged.update_parameters(net)
        steps += 1
        if steps % 200 == 0:
            print(f"{steps} steps, {spent:.0f} s, loss {float(loss):.3f}", flush=True)
    DDPMPipeline(averaged.module, scheduler).save_pretrained(folder)
    count = sum(p.numel() for p in net.parameters())
    said = {"steps": steps, "cpu_seconds": round(spent), "parameters": count}
    (folder / "training.json").write_text(json.dumps(said) + "\n")


def table_of(folder: Path) -> Tensor:
    """The variances beta of the folder, in float64."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    ends = config["beta_start"], config["beta_end"]
    return torch.linspace(*ends, config["num_train_timesteps"], dtype=torch.float64)


def coarse(folder: Path, steps: int = 10) -> dict[str, float]:
    """Bits that the chain loses in a number whose density is flat over the noise of its end.

    There the error of x0 is sigma / alpha, and a step to r times the SNR costs (r - 1) / 2 where
    the bound in continuous time has log(r) / 2; so does a decoder of an r-th of the variance.
    """
    beta = table_of(folder)
    after = (1 - beta).cumprod(0)
    ratio = after / (1 - after)
    steps_of = ratio[:steps] / ratio[1 : steps + 1]
    decoder = (1 - after[1]) / beta[1] / ratio[0] / (1 - after[0])

    def lost(r: Tensor) -> float:
        return float((r - 1 - r.log()).sum()) / 2 / math.log(2)

    return {"steps": steps, "lost_in_steps": lost(steps_of), "lost_in_decoder": lost(decoder)}


@torch.no_grad()
def summed(
    folder: Path,
    pictures: Tensor,
    draws: int = 8,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """-log p (B,) in nats: L_T + sum L_{t-1} + L_0, the last over several draws."""
    from diffusers import UNet2DModel

    net = UNet2DModel.from_pretrained(folder, subfolder="unet").eval().to(dtype)
    beta = table_of(folder)
    n = len(beta)
    after = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
    small = beta * (1 - before) / (1 - after)
    x = pictures.double() / 127.5 - 1

    def noised(i: int) -> tuple[Tensor, Tensor]:
        """x_t, and the x0 that the network finds in it."""
        z = after[i].sqrt() * x + (1 - after[i]).sqrt() * noise(x)
        out = net(z.to(dtype), torch.full((len(x),), i)).sample.double()
        return z, (z - (1 - after[i]).sqrt() * out) / after[i].sqrt()

    def mean(x0: Tensor, z: Tensor, i: int) -> Tensor:  # (7)
        first = before[i].sqrt() * beta[i] / (1 - after[i])
        return first * x0 + (1 - beta[i]).sqrt() * (1 - before[i]) / (1 - after[i]) * z

    nats = (after[-1] * x.square() - after[-1] - (1 - after[-1]).log()).flatten(1).sum(1) / 2
    for i in reversed(range(1, n)):
        z, x0 = noised(i)
        gap = (mean(x, z, i) - mean(x0, z, i)).square()
        nats += gap.flatten(1).sum(1) / (2 * small[i])
    for _ in range(draws):
        z, x0 = noised(0)
        law = torch.distributions.Normal(mean(x0, z, 0), small[1].sqrt())
        upper = law.cdf(x + 1 / 255).masked_fill(pictures == 255, 1)
        lower = law.cdf(x - 1 / 255).masked_fill(pictures == 0, 0)
        nats -= (upper - lower).clamp(min=1e-300).log().flatten(1).sum(1) / draws
    return nats


def report(nats: dict[str, Tensor], numbers: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Bits per dimension with errors, and the differences from the sum."""
    bits = {name: -values / (numbers * math.log(2)) for name, values in nats.items()}

    def measured(values: Tensor) -> dict[str, float]:
        return {"mean": float(values.mean()), "error": float(values.std() / len(values) ** 0.5)}

    return {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "pictures": len(bits["flow"]),
        "bits": {name: measured(values) for name, values in bits.items()},
        "above_the_sum": {
            name: measured(values - bits["summed"]) for name, values in bits.items()
        },
        "cpu_seconds": seconds,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| estimator | bits/dim | less than the sum |", "| --- | --- | --- |"]
    for name, meaning in MEANING.items():
        bits, above = found["bits"][name], found["above_the_sum"][name]
        less = "" if name == "summed" else f"{-above['mean']:.4f} +- {above['error']:.4f}"
        lines.append(f"| {meaning} | {bits['mean']:.3f} +- {bits['error']:.3f} | {less} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
