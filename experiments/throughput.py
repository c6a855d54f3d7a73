"""Images a second in training, beside diffusers' UNet2D on the same thread.

    python experiments/throughput.py [--repeats N] [--modes float32 bf16 ...]

A step is forward, backward and Adam on images 28 x 28 x 1 in batches of 32. Both networks have
about 1.1 M parameters and 0.37 GFLOP an image in the forward pass; what is compared is images a
second times these, so that the networks count as equal. In each mode both are timed with the
channels first and last, step by step in turn, and the better layout of each is taken. Times are of
the thread: those of other programs do not count, but their use of the caches does. Prints the
table in markdown and stores it; modes left out stay as they are stored. Needs diffusers: pip
install scoresde[parity].
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scoresde.nn import UNet
from scoresde.training.precision import autocast

SHAPE, BATCH = (1, 28, 28), 32
MODES = ("float32", "bf16", "compile", "compile + bf16")
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


@dataclass(frozen=True)
class Setting:
    """One way to run one network."""

    network: str
    mode: str
    layout: str


class Peer(nn.Module):
    """diffusers' UNet2D with attention in the middle."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=SHAPE[1],
            in_channels=SHAPE[0],
            out_channels=SHAPE[0],
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        result: Tensor = self.net(x, noise, return_dict=False)[0]
        return result


def ours() -> nn.Module:
    """Three levels of one block each way, attention at the lowest."""
    return UNet(1, width=64, multipliers=(1, 1, 2), blocks=1, attention=(2,), heads=4, dropout=0.0)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"scoresde": ours, "diffusers": Peer}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "throughput.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "hardware": f"one thread of an {platform.machine()} CPU ({cpu_name()}) with "
        f"{torch.backends.cpu.get_cpu_capability()} and "
        f"{'' if has_bf16() else 'no '}instructions for bf16",
        "networks": {name: size_of(make()) for name, make in NETWORKS.items()},
        "modes": stored(arguments.out),
    }
    print(f"{result['hardware']}\n{json.dumps(result['networks'])}", flush=True)
    for mode in arguments.modes:
        result["modes"][mode] = compare(mode, arguments.repeats, result["networks"])
        print(row(mode, result["modes"][mode]), flush=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def cpu_name() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unnamed"
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unnamed")


def stored(out: Path) -> dict[str, Any]:
    """The modes measured before."""
    found: dict[str, Any] = json.loads(out.read_text())["modes"] if out.exists() else {}
    return found


def compare(mode: str, repeats: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Images a second of both networks in a mode, and the ratio at equal operations.

    The ratio is the median over repeats, in each of which all settings are timed side by side.
    """
    settings = [Setting(name, mode, layout) for name in NETWORKS for layout in LAYOUTS]
    steps = {setting: training(setting) for setting in settings}
    seconds: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _ in range(repeats):
        for setting, step in steps.items():
            begin = time.thread_time()
            next(step)
            seconds[setting].append(time.thread_time() - begin)
    best = {
        name: min(
            (s for s in settings if s.network == name), key=lambda s: statistics.median(seconds[s])
        )
        for name in NETWORKS
    }
    work = sizes["scoresde"]["forward_flops"] / sizes["diffusers"]["forward_flops"]
    pairs = zip(seconds[best["diffusers"]], seconds[best["scoresde"]], strict=True)
    return {
        "images_per_second": {
            name: {
                layout: BATCH / statistics.median(seconds[Setting(name, mode, layout)])
                for layout in LAYOUTS
            }
            for name in NETWORKS
        },
        "best_layout": {name: setting.layout for name, setting in best.items()},
        "repeats": repeats,
        "ratio": work * statistics.median(theirs / our for theirs, our in pairs),
    }


def training(setting: Setting) -> Iterator[None]:
    """An update of the network a step; the first two, which compile and allocate, are done."""
    torch.manual_seed(0)
    layout = LAYOUTS[setting.layout]
    network = NETWORKS[setting.network]().train().to(memory_format=layout)
    apply = torch.compile(network) if "compile" in setting.mode else network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    x = torch.randn(BATCH, *SHAPE).contiguous(memory_format=layout)
    noise = torch.rand(BATCH)

    def steps() -> Iterator[None]:
        while True:
            optimizer.zero_grad(set_to_none=True)
            with precision(setting):
                loss = (apply(x, noise).float() - x).square().mean()
            loss.backward()
            optimizer.step()
            yield

    found = steps()
    next(found)
    next(found)
    return found


def precision(setting: Setting) -> AbstractContextManager[object]:
    """bf16 where the mode says so: both by torch.autocast."""
    if "bf16" not in setting.mode:
        return nullcontext()
    if setting.network == "scoresde":
        return autocast("bf16", torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16)


def size_of(network: nn.Module) -> dict[str, float]:
    """Parameters, and operations an image in the forward pass, two a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, *SHAPE), torch.zeros(1))
    count = sum(p.numel() for p in network.parameters())
    return {"parameters": count, "forward_flops": counter.get_total_flops()}


def has_bf16() -> bool:
    """Whether the CPU computes in bf16 itself."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()


def row(mode: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    speeds = found["images_per_second"]
    cells = [
        f"{max(speeds[name].values()):.1f} ({found['best_layout'][name]})" for name in NETWORKS
    ]
    return f"| {mode} | {' | '.join(cells)} | {found['ratio']:.2f} |"


def table(result: dict[str, Any]) -> str:
    """Images a second of both with the better layout, and the ratio at equal operations."""
    head = ["| mode | scoresde, images/s (channels) | diffusers | ratio |", "| --- " * 4 + "|"]
    return "\n".join(head + [row(mode, found) for mode, found in result["modes"].items()])


if __name__ == "__main__":
    main()
