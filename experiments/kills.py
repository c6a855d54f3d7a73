"""Kill a training at random moments, resume it, and compare it with one that nobody disturbed.

    python experiments/kills.py [--count 200] [--out experiments/results/kills.json]

A small model is trained on two moons with a checkpoint every step, snapshots of its averages and
validation, so that most of the time goes into writing files. A process is sent SIGKILL after a
random time, at most that of an undisturbed training; then every file under its final name must be
readable, and the next process resumes.
A training that reaches its end must have the weights, the averages and the optimiser of the
undisturbed one, bit for bit; another one begins until there were ``--count`` kills. Every training
is a fork of this process, which has everything imported: needs Linux or macOS, and a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from scoresde.config import Config, load_config
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.train import train_run
from scoresde.training import checkpoint as checkpoints
from scoresde.training.snapshots import snapshots

STEPS = 20
LAZY = ("matplotlib.figure", "PIL.Image", "safetensors.torch", "torch.utils.flop_counter")
"""What a training imports on its way."""
CONFIG = {
    "data.kind": "moons",
    "data.train": 200,
    "data.test": 20,
    "network.kind": "mlp",
    "network.width": 16,
    "network.depth": 1,
    "network.embedding": 8,
    "network.dropout": 0.3,
    "train.steps": STEPS,
    "train.batch": 16,
    "train.log_every": 1,
    "train.validate_every": 3,
    "train.sample_every": STEPS,
    "train.checkpoint_every": 1,
    "train.posthoc": [0.05, 0.1],
    "train.posthoc_every": 5,
}


@dataclass
class Tally:
    """Kills, what they left, and trainings that reached the end of the undisturbed one.

    ``resumes`` are starts of a process that found a run, ``half_files`` kills that left a
    temporary file. A training that ends otherwise raises AssertionError, so is in no tally.
    """

    kills: int = 0
    resumes: int = 0
    before_first_checkpoint: int = 0
    half_files: int = 0
    files_read: int = 0
    files_unreadable: int = 0
    trainings_equal: int = 0


def main() -> None:
    """Kill, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "kills.json"
    )
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"need --count >= 1, got {args.count}")
    torch.set_num_threads(1)
    for name in LAZY:  # once, not in every fork
        import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        for found in killed(args.count, args.seed, Path(folder)):
            report(found, args.out)


def report(found: Tally, out: Path) -> None:
    """Print and store what there is so far."""
    print(
        f"{found.kills} kills, {found.resumes} resumes, {found.files_unreadable} of "
        f"{found.files_read} files unreadable, {found.trainings_equal} trainings equal to the "
        "undisturbed one",
        flush=True,
    )
    hardware = {"hardware": f"one thread of an {platform.machine()} CPU"}
    out.write_text(json.dumps(hardware | asdict(found), indent=1) + "\n")


def killed(count: int, seed: int, folder: Path) -> Iterator[Tally]:
    """Train until so many processes were killed; the tally after every training.

    Raises AssertionError for anything lost.
    """
    config, delays, tally = load_config(None, CONFIG), random.Random(seed), Tally()
    undisturbed = RunFolder(folder / "undisturbed")
    begin = time.monotonic()
    assert trained(config, undisturbed, None), "the undisturbed training failed"
    longest = time.monotonic() - begin
    while tally.kills < count:
        run = RunFolder(folder / f"run-{tally.trainings_equal}")
        while not attempted(config, run, delays.uniform(0, longest), tally):
            tally.kills += 1
            inspect(run, tally)
        compare(run, undisturbed)
        tally.trainings_equal += 1
        yield tally


def attempted(config: Config, run: RunFolder, delay: float, tally: Tally) -> bool:
    """Start or resume a training: whether it ended before the kill."""
    tally.resumes += run.is_run()
    return trained(config, run, delay)


def trained(config: Config, run: RunFolder, delay: float | None) -> bool:
    """Start or resume a training in a process of its own: whether it ended before the kill.

    Raises AssertionError where it ends otherwise.
    """
    child = os.fork()
    if child == 0:
        os._exit(_train(config, run))
    end = time.monotonic() + (600 if delay is None else delay)
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            found = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(found[1])
    assert code in (0, -signal.SIGKILL), f"{run.path}: ended with {code}; see {run.log}"
    return code == 0


def _train(config: Config, run: RunFolder) -> int:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        train_run(config, run.path, resume=run.is_run(), device="cpu")
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return 1
    return 0


def inspect(run: RunFolder, tally: Tally) -> None:
    """Read every file that is under its final name."""
    files = checkpoints.step_files(run.checkpoints)
    tally.before_first_checkpoint += not files
    tally.half_files += any(run.path.rglob("*.tmp"))
    for file in [*files, run.best]:
        if file.exists():
            count(checkpoints.load, file, tally)
    for snapshot in snapshots(run.averages):
        count(checkpoints.load_weights, snapshot.path, tally)
    if run.config.exists():
        assert load_config(run.config) == load_config(None, CONFIG)


def count(load: Callable[[Path], object], file: Path, tally: Tally) -> None:
    """Read a file and say whether it could be."""
    tally.files_read += 1
    try:
        load(file)
    except checkpoints.CheckpointError as error:
        tally.files_unreadable += 1
        print(error, flush=True)


def compare(run: RunFolder, undisturbed: RunFolder) -> None:
    """Raise AssertionError unless two finished trainings left the same numbers."""
    name = checkpoints.step_name(STEPS)
    one, two = (checkpoints.load(r.checkpoints / name) for r in (run, undisturbed))
    assert one.best == two.best
    pairs = [(one.model, two.model), (one.ema, two.ema)]
    pairs += [(one.averages[k], two.averages[k]) for k in two.averages]
    pairs += [(one.optimizer["state"][k], s) for k, s in two.optimizer["state"].items()]
    weights = [checkpoints.load_weights(r.weights).tensors for r in (run, undisturbed)]
    pairs += [(weights[0], weights[1])]
    stored = [snapshots(r.averages) for r in (run, undisturbed)]
    assert [s[:2] for s in stored[0]] == [s[:2] for s in stored[1]]
    for a, b in zip(*stored, strict=True):
        pairs += [tuple(checkpoints.load_weights(s.path).tensors for s in (a, b))]
    for a, b in pairs:
        assert all(torch.equal(a[key], value) for key, value in b.items())
    assert [r["step"] for r in records(run)] == [r["step"] for r in records(undisturbed)]
    assert not any(run.path.rglob("*.tmp"))


if __name__ == "__main__":
    main()
