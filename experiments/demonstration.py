"""What the two demonstrations share: their command line, their report and where its time went."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import scoresde as ss
from scoresde.progress import bar
from scoresde.runs.folder import RunFolder
from scoresde.runs.train import Trained

HERE = Path(__file__).parent
RESULTS, CONFIGS = HERE / "results", HERE.parent / "configs"

Report = dict[str, Any]


def demonstrate(
    name: str,
    about: str | None,
    folder: str,
    picture: str,
    work: Callable[[Path], Report],
    table: Callable[[Report], Table],
) -> int:
    """Parse, do the work in a folder, print its table; the exit status.

    Args:
        name: name of the script and of the stored results.
        about: docstring of the script.
        folder: run folder by default.
        picture: picture of the folder that is stored.
        work: the demonstration itself.
        table: what was reached, of its report.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(folder), help="the run folder")
    parser.add_argument("--store", action="store_true", help="renew the numbers of the README")
    arguments = parser.parse_args()
    out: Path = arguments.out
    try:
        report = work(out)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if arguments.store:
        shutil.copy(out / "report.json", RESULTS / f"{name}.json")
        shutil.copy(out / picture, RESULTS / f"{name}.png")
    Console().print(table(report))
    seconds = [f"{report[f'{part}_seconds']:.0f} {part}" for part in PARTS]
    print(f"{report['seconds']:.0f} seconds: {', '.join(seconds)}")
    print(f"pictures and report.json are in {out}")
    return 0


PARTS = ("training", "sampling", "scoring")


def say(part: int, text: str) -> None:
    """A line that names a part of the demonstration."""
    print(f"{part}/4  {text}", flush=True)


def trained(config: Path, out: Path, steps: int | None = None) -> Trained:
    """Train by a configuration, or go on; an interrupt ends the program."""
    say(1, f"training by {config.name}, in {out}")
    run = ss.train(config, out=out, steps=steps, resume=RunFolder(out).is_run(), progress=bar)
    if run.stopped:
        print("stopped in the training; the same command goes on", file=sys.stderr)
        raise SystemExit(130)
    return run


def spent(*times: float) -> Report:
    """The seconds of the parts between these times, and the machine."""
    parts = zip(PARTS, times[:-1], times[1:], strict=True)
    return {
        **{f"{part}_seconds": end - start for part, start, end in parts},
        "seconds": times[-1] - times[0],
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
