"""Time a network on two threads that spin or sleep while they wait, beside other programs.

    python experiments/threads.py [--seconds 6] [--out experiments/results/threads.json]

Each case is a process of its own on two cores, since OpenMP reads its settings when it is loaded.
Beside it run 0 or 1 processes that do nothing but count. The medians are stored and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE = Path(__file__).parent / "results" / "threads.json"
CASES = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads that spin": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": ""},
    "two threads that sleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = (0, 1)
BATCH = 64


def main() -> int:
    """Time every case, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=STORE)
    parser.add_argument("--time", action="store_true", help="time this process, print JSON")
    arguments = parser.parse_args()
    if arguments.time:
        print(json.dumps(timed(arguments.seconds)))
        return 0
    found = {
        "hardware": f"two cores of an {platform.machine()} CPU",
        "other_load": os.getloadavg()[0],
        "milliseconds": {str(n): measured(n, arguments.seconds) for n in BUSY},
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0


def measured(busy: int, seconds: float) -> dict[str, dict[str, float]]:
    """The medians of every case beside so many busy processes."""
    command = [sys.executable, __file__, "--time", "--seconds", str(seconds)]
    found = {}
    with counting(busy):
        for name, settings in CASES.items():
            settings = os.environ | settings
            settings = {key: value for key, value in settings.items() if value}
            done = subprocess.run(command, env=settings, capture_output=True, check=True)
            found[name] = json.loads(done.stdout)
    return found


@contextmanager
def counting(n: int) -> Iterator[None]:
    """Processes that take a core each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    code = f"import os; os.sched_setaffinity(0, {cores})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def timed(seconds: float) -> dict[str, float]:
    """Milliseconds of a network call and of a training step, here and now."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    import torch

    from scoresde.nn import UNet

    net = UNet(1, width=64, multipliers=(1, 2), attention=())
    x, noise = torch.randn(BATCH, 1, 8, 8), torch.zeros(BATCH)

    def call() -> None:
        with torch.no_grad():
            net(x, noise)

    def step() -> None:
        net(x, noise).square().mean().backward()

    found = {}
    for name, work in (("call", call), ("step", step)):
        work()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            work()
            times.append(1e3 * (time.perf_counter() - begin))
        found[name] = round(statistics.median(times), 1)
    return found


def table(found: dict[str, Any]) -> str:
    """Milliseconds, as in docs/design.md, with the load average that other programs made."""
    beside = f"load {found['other_load']:.0f}"
    lines = [f"| {beside} | call | step | call, one more program | step, one more program |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in CASES:
        rows = [found["milliseconds"][str(n)][name] for n in BUSY]
        cells = [f"{row[what]:.0f} ms" for row in rows for what in ("call", "step")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
