"""What one GPU makes of the library, within eight minutes of it.

    python experiments/gpu.py [--device cuda] [--minutes 8] [--out FILE]
    python experiments/gpu.py --device cpu --small

The network has 36 M parameters and takes images of 3 x 32 x 32 in bf16; beside it, diffusers'
UNet2D with the settings of DDPM for CIFAR-10, 36 M. A training step is forward, backward and Adam.
Each network runs eager and compiled, with its channels first and last, and the best of each is
compared; ``of_peak`` is the share of the card's dense bf16 operations, by its data sheet where
``runs.cost`` knows the card, else by a large matrix product measured here. The step of a run, with
its data, averages and checks, is that of ``training.fit``. Sampling is that of ``sample`` with 19
calls: eager, compiled, and captured as a graph. Host time is that until a call returns from an
idle device: of an eager training step with one image, and of a network call with the batch. Every
part has a share of the minutes, and what does not fit into it is left out with a note. The tests
marked ``gpu`` are run last.

After each part all results are printed and, for a GPU, stored in experiments/results/gpu.json.
``--small`` takes networks of a few thousand parameters, does not compile the training, and stores
nothing unless told to: it shows that the script works.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scoresde import EDM, Denoiser, ScoreModel, compiled, parameterization, sample
from scoresde.data import Scaling, Split
from scoresde.likelihood import elbo, path_log_likelihood
from scoresde.likelihood.path import Orthogonal
from scoresde.nn import UNet
from scoresde.runs.cost import memory, peak
from scoresde.samplers import per_sample_noise
from scoresde.training import Plan, TrainState, fit
from scoresde.training.precision import autocast

ROOT = Path(__file__).parent.parent
LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
SHARES = {"training": 0.45, "fit": 0.62, "sampling": 0.8, "likelihood": 0.85, "tests": 1.0}
"""Each part may go on to this share of the minutes."""
COMPILING = {"training": 60.0, "fit": 60.0, "sampling": 35.0}
"""Seconds without which no compilation is begun."""


@dataclass(frozen=True)
class Size:
    """The networks and batches that are measured, and the seconds of one measurement."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    peer_blocks: int = 2
    side: int = 32
    batch: int = 256
    drawn: int = 512
    scored: int = 64
    calls: int = 19
    nodes: int = 32
    seconds: float = 4.0
    compile: bool = True

    def ours(self) -> nn.Module:
        return UNet(
            3,
            width=self.width,
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=(len(self.multipliers) - 3,) if len(self.multipliers) > 2 else (),
            dropout=0.0,
        )

    def peer(self) -> nn.Module:
        from diffusers import UNet2DModel

        n = len(self.multipliers)
        plain, attentive = ["DownBlock2D"] * n, ["UpBlock2D"] * n
        if n > 2:
            plain[1], attentive[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
        return Plain(
            UNet2DModel(
                sample_size=self.side,
                in_channels=3,
                out_channels=3,
                block_out_channels=tuple(self.width * m for m in self.multipliers),
                layers_per_block=self.peer_blocks,
                down_block_types=tuple(plain),
                up_block_types=tuple(attentive),
                attention_head_dim=min(64, self.width),
                norm_num_groups=min(32, self.width),
            )
        )

    def images(self, n: int, device: torch.device) -> Tensor:
        return torch.randn(n, 3, self.side, self.side, device=device)


SMALL = Size(
    width=8,
    multipliers=(1, 2),
    blocks=1,
    peer_blocks=1,
    side=8,
    batch=4,
    drawn=4,
    scored=2,
    calls=3,
    nodes=12,
    seconds=0.3,
    compile=False,
)


class Plain(nn.Module):
    """A network of diffusers with our signature."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        found: Tensor = self.net(x, noise, return_dict=False)[0]
        return found


@dataclass
class Bench:
    """The device, what is measured on it, how long, and what has been found."""

    device: torch.device
    size: Size
    seconds: float
    begun: float = field(default_factory=time.perf_counter)
    found: dict[str, Any] = field(default_factory=dict)

    def left(self, part: str) -> float:
        """Seconds that the part may still take."""
        return SHARES[part] * self.seconds - (time.perf_counter() - self.begun)

    def fits(self, part: str, what: str, compiles: bool) -> bool:
        """True if there is time for one more measurement; else there is a note."""
        needed = 2 * self.size.seconds + (COMPILING[part] if compiles else 0)
        if self.left(part) >= needed:
            return True
        self.found.setdefault("left_out", []).append(f"{part}: {what}")
        return False

    def half(self) -> AbstractContextManager[object]:
        """bf16 on a GPU, float32 on a CPU."""
        return autocast("bf16" if self.device.type == "cuda" else "float32", self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Begin to measure the peak of the memory anew, with an empty cache."""
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds a call, over as many calls as take ``size.seconds``, after three."""
        for _ in range(3):
            call()
        self.wait()
        begin, calls = time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin < self.size.seconds:
            call()
            calls += 1
            if calls % 5 == 0:  # or the host would run ahead by more than the seconds
                self.wait()
        self.wait()
        return (time.perf_counter() - begin) / calls

    def host(self, call: Callable[[], object]) -> float:
        """Seconds until a call returns from an idle device, the median of seven."""
        found = []
        for _ in range(7):
            self.wait()
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        self.wait()
        return sorted(found)[3]


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("no CUDA device; --device cpu --small shows that the script works")
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    else:
        torch.set_num_threads(1)
    bench = Bench(device, SMALL if arguments.small else Size(), 60 * arguments.minutes)
    out = arguments.out
    if out is None and device.type == "cuda" and not arguments.small:
        out = ROOT / "experiments" / "results" / "gpu.json"
    bench.found |= {"hardware": hardware(device), "torch": torch.__version__}
    bench.found |= {"small": arguments.small, "bf16_peak": bf16_peak(bench)}
    for part in (training, fitting, sampling, likelihood, tests):
        part(bench)
        bench.found["seconds"] = time.perf_counter() - bench.begun
        print(json.dumps(bench.found, indent=1), flush=True)
        if out is not None:
            out.write_text(json.dumps(bench.found, indent=1) + "\n")


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type != "cuda":
        return f"one thread of an {platform.machine()} CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"one {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def bf16_peak(bench: Bench) -> dict[str, Any]:
    """Dense bf16 operations a second of the device, and where the number is from."""
    if (known := peak(bench.device)) is not None:
        return {"flops_per_second": known, "from": "data sheet"}
    n = 8192 if bench.device.type == "cuda" else 256
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    a, b = torch.randn(2, n, n, device=bench.device, dtype=dtype)
    seconds = bench.timed(lambda: a @ b)
    return {"flops_per_second": 2 * n**3 / seconds, "from": f"a product of {n} x {n}, {dtype}"}


# Training ----------------------------------------------------------------------------------------


def training(bench: Bench) -> None:
    """Images a second of a bare training step, beside diffusers."""
    rows: dict[str, Any] = {}
    networks = {"scoresde": bench.size.ours, "diffusers": bench.size.peer}
    sizes = {name: size_of(make, bench.size.side) for name, make in networks.items()}
    modes = (False, True) if bench.size.compile else (False,)
    # In order of importance: what is compiled takes the longest, and may be left out.
    for compile, layout, name in product(modes, LAYOUTS, networks):
        what = f"{name}, {'compiled' if compile else 'eager'}, channels {layout}"
        if not bench.fits("training", what, compile):
            continue
        rows[what] = updating(bench, networks[name], compile, LAYOUTS[layout])
        share = rows[what]["images_per_second"] * sizes[name]["flops"]
        rows[what]["of_peak"] = share / bench.found["bf16_peak"]["flops_per_second"]
    best = {
        name: max((row for row in rows if row.startswith(name)), key=_rate(rows), default=None)
        for name in networks
    }
    bench.found["training"] = {
        "batch": bench.size.batch,
        "networks": sizes,
        "rows": rows,
        "best": best,
        "ratio_at_equal_operations": ratio(rows, best, sizes),
    }


def updating(
    bench: Bench, make: Callable[[], nn.Module], compile: bool, layout: Any
) -> dict[str, float]:
    """Images a second and memory of a step; the host time of an eager one with one image."""
    bench.forget()
    step = updates(bench, make, compile, layout, bench.size.batch)
    rate = bench.size.batch / bench.timed(lambda: next(step))
    found = {"images_per_second": rate, "memory_bytes": memory(bench.device)}
    if not compile:
        one = updates(bench, make, False, layout, 1)
        next(one)
        found["host_seconds"] = bench.host(lambda: next(one))
    return found


def _rate(rows: dict[str, Any]) -> Callable[[str], float]:
    return lambda row: float(rows[row]["images_per_second"])


def ratio(rows: dict[str, Any], best: dict[str, str | None], sizes: dict[str, Any]) -> Any:
    """Operations a second of our network over those of diffusers', each by its best row."""
    if None in best.values():
        return None
    ours, peers = (
        rows[best[name]]["images_per_second"] * sizes[name]["flops"]
        for name in ("scoresde", "diffusers")
    )
    return ours / peers


def size_of(make: Callable[[], nn.Module], side: int) -> dict[str, int]:
    """Parameters, and operations of a forward and backward pass of an image."""
    with torch.device("meta"):
        net, x, noise = make(), torch.zeros(1, 3, side, side), torch.zeros(1)
    with FlopCounterMode(display=False) as counter:
        net(x, noise).sum().backward()
    count = sum(p.numel() for p in net.parameters())
    return {"parameters": count, "flops": int(counter.get_total_flops())}


def updates(
    bench: Bench, make: Callable[[], nn.Module], compile: bool, layout: Any, batch: int
) -> Iterator[Tensor]:
    """A step of training each: forward, backward, Adam."""
    torch.manual_seed(0)
    net = make().to(bench.device, memory_format=layout).train()
    apply = torch.compile(net) if compile else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    x = bench.size.images(batch, bench.device).contiguous(memory_format=layout)
    noise = torch.rand(batch, device=bench.device)
    while True:
        optimizer.zero_grad(set_to_none=True)
        with bench.half():
            loss = (apply(x, noise).float() - x).square().mean()
        loss.backward()
        optimizer.step()
        yield loss


def fitting(bench: Bench) -> None:
    """Images a second of ``training.fit``, with data, averages and the check of every step."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(
        256, (1024, 3, bench.size.side, bench.size.side), generator=generator, dtype=torch.uint8
    )
    compile = bench.size.compile
    if not bench.fits("fit", "compiled", compile):
        return
    bench.forget()
    plan = Plan(
        steps=1_000_000,
        batch=bench.size.batch,
        precision="bf16" if bench.device.type == "cuda" else "float32",
        compile=compile,
        channels_last=bench.device.type == "cuda",
        prefetch=4,
    )
    state = TrainState.of(model_of(bench).train().requires_grad_(), plan)
    steps = fit(state, plan, Split(levels), Scaling(256))
    rate = bench.size.batch / bench.timed(lambda: next(steps))
    steps.close()
    bench.found["fit"] = {
        "batch": bench.size.batch,
        "compiled": compile,
        "images_per_second": rate,
        "memory_bytes": memory(bench.device),
    }


# Sampling and likelihood -------------------------------------------------------------------------


def model_of(bench: Bench) -> ScoreModel:
    """Our network with random weights, in its last layer too."""
    torch.manual_seed(0)
    net = bench.size.ours()
    nn.init.normal_(net.head.weight, std=0.02)
    model = ScoreModel(net, EDM(), parameterization.edm(0.5))
    return model.to(bench.device).eval().requires_grad_(False)


def sampling(bench: Bench) -> None:
    """Images a second, eager, captured and compiled; host time of a call of the network."""
    denoiser, rows, calls = model_of(bench).denoiser(), {}, bench.size.calls
    x = bench.size.images(bench.size.drawn, bench.device) * denoiser.sde.t_max
    noise = per_sample_noise(range(len(x)))
    ways: dict[str, Callable[[], Denoiser]] = {
        "eager": lambda: denoiser,
        "captured": lambda: compiled(denoiser),
        "compiled": lambda: compiled(denoiser, capture=False),
    }
    if bench.device.type != "cuda":
        del ways["captured"]
    for name, way in ways.items():
        if not bench.fits("sampling", name, name != "eager"):
            continue
        bench.forget()
        with bench.half(), torch.no_grad():
            fast = way()
            seconds = bench.timed(lambda fast=fast: sample(fast, x, nfe=calls, noise=noise))
            t = torch.tensor(1.0, dtype=torch.float64)
            host = bench.host(lambda fast=fast, t=t: fast(x, t))
        rows[name] = {
            "images_per_second": len(x) / seconds,
            "host_seconds_per_call": host,
            "memory_bytes": memory(bench.device),
        }
    bench.found["sampling"] = {"batch": len(x), "calls": calls, "rows": rows}


def likelihood(bench: Bench) -> None:
    """Images a second of the flow with one probe a node, and of the variational bound."""
    denoiser, n = model_of(bench).denoiser(), bench.size.scored
    x = bench.size.images(n, bench.device) / 2
    signs = torch.where(torch.randn_like(x) < 0, -1.0, 1.0).unsqueeze(0)
    ways = {
        "path": lambda: path_log_likelihood(
            denoiser, x, Orthogonal(signs), nodes=bench.size.nodes
        ),
        "bound": lambda: elbo(denoiser, x, times=bench.size.nodes),
    }
    rows = {}
    for name, way in ways.items():
        if not bench.fits("likelihood", name, False):
            continue
        bench.forget()
        with bench.half():
            rate = n / bench.timed(way)
        rows[name] = {"images_per_second": rate, "memory_bytes": memory(bench.device)}
    bench.found["likelihood"] = {"batch": n, "nodes": bench.size.nodes, "rows": rows}


def tests(bench: Bench) -> None:
    """The numbers of tests marked ``gpu`` that passed, failed and were skipped."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "tests/test_gpu.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(bench.left("tests"), 20),
            check=False,
        )
    except subprocess.TimeoutExpired:
        bench.found.setdefault("left_out", []).append("tests: they took too long")
        return
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-500:]]
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped)", lines[-1])}
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    bench.found["tests"] = counts | {"failures": failures, "summary": lines[-1]}


if __name__ == "__main__":
    main()
