"""The page and the JSON API under load, on a run that is trained for it.

    python experiments/ui_load.py [--folder runs/ui_load] [--store]

starts ``scoresde ui``, measures the seconds to its first picture, sends 200 requests of 8 clients,
cancels jobs, and follows the memory of the server. Needs ``pip install scoresde[ui]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde.progress import bar
from scoresde.runs.folder import RunFolder

HERE = Path(__file__).parent
RESULTS, CONFIG = HERE / "results", HERE.parent / "configs" / "avatars.yaml"
STEPS = 200
CLIENTS, EACH, ROUNDS = 8, 25, 3
FIRST, MANY = "0-3", "0-63"


class Server:
    """``scoresde ui`` on a folder, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "scoresde", "ui", str(folder), "--port", "0"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*words, "--device", "cpu"], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        found = re.search(r"http://[\d.:]+", self.process.stdout.readline())
        assert found is not None
        self.address = found[0]

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON value of an answer; a value is posted."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def memory(self) -> float:
        """Resident memory in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (found,) = re.findall(r"VmRSS:\s+(\d+)", text)
        return int(found) / 1024

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def first_picture(folder: Path, model: str) -> dict[str, float]:
    """Seconds from the command to the first picture of four, and of them those of the CPU."""
    began = time.perf_counter()
    server = Server(folder)
    served = time.perf_counter() - began
    try:
        body = {"model": model, "seeds": FIRST, "prompt": "a happy person with a red hat"}
        status, told = server.ask("/sample?wait=60", body | {"guidance": 3.0})
        assert (status, told["state"]) == (200, "done"), told
        seconds = time.perf_counter() - began
        return {"served_seconds": served, "seconds": seconds, "cpu_seconds": server.cpu()}
    finally:
        server.end()


def loaded(server: Server, model: str) -> dict[str, Any]:
    """200 requests of 8 clients, each of which waits for its picture before it asks again."""
    statuses: Counter[str] = Counter()
    waits: list[float] = []

    def use(k: int) -> None:
        for n in range(EACH):
            began = time.perf_counter()
            body = {"model": model, "seeds": str(1000 * k + n), "steps": 2}
            status, told = server.ask("/sample?wait=60", body)
            statuses[f"{status} {told.get('state', 'refused')}"] += 1
            waits.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), server.cpu()
    threads = [threading.Thread(target=use, args=(k,)) for k in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits.sort()
    return {
        "answers": dict(statuses),
        "requests": len(waits),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": server.cpu() - cpu,
        "median_wait": waits[len(waits) // 2],
        "longest_wait": waits[-1],
        "memory_mib": server.memory(),
    }


def crowded(server: Server, model: str) -> dict[str, Any]:
    """Long jobs at once until the queue refuses; then all are cancelled, and one is drawn."""
    body = {"model": model, "seeds": MANY, "steps": 1000}
    answers = [server.ask("/sample", body) for _ in range(100)]
    jobs = [told["job"] for status, told in answers if status == 200]
    refused = [told["error"] for status, told in answers if status == 503]
    for job in jobs:
        server.ask("/interrupt", {"job": job})
    status, told = server.ask("/sample?wait=60", {"model": model, "seeds": "0", "steps": 2})
    return {
        "asked": len(answers),
        "queued": len(jobs),
        "refused": len(refused),
        "message": refused[0],
        "drawn_after_cancelling_all": (status, told["state"]) == (200, "done"),
    }


def main() -> int:
    """Train, measure, and print or store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/ui_load"))
    parser.add_argument("--store", action="store_true", help="renew experiments/results")
    arguments = parser.parse_args()
    run = arguments.folder / "demo"
    if not RunFolder(run).is_run():
        torch.set_num_threads(1)
        ss.train(CONFIG, out=run, steps=STEPS, warmup=STEPS // 10, ema=0.95, progress=bar)
    model = str(run)
    found: dict[str, Any] = {"first_picture": first_picture(arguments.folder, model)}
    server = Server(arguments.folder)
    try:
        found["rounds"] = [loaded(server, model) for _ in range(ROUNDS)]
        found["crowd"] = crowded(server, model)
    finally:
        server.end()
    found["parameters"] = sum(p.numel() for p in ss.load(run).parameters())
    found |= {"machine": f"one thread of an {platform.machine()} CPU", "torch": torch.__version__}
    text = json.dumps(found, indent=2) + "\n"
    if arguments.store:
        (RESULTS / "ui_load.json").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
