"""Build the package, install the wheel into an empty environment, and use it there.

    python experiments/wheel.py [--out dist] [--store]

Builds the source distribution and, from it, the wheel; compares their contents with the files of
the repository; makes a virtual environment outside of it, with torch and the wheel alone; and
there trains, draws and scores two moons by the command line. --store writes the CPU seconds
to experiments/results/wheel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
COMMANDS = {
    "help": "--help",
    "train": "train --data moons --network mlp --network.width 64 --train.weighting sigma2 "
    "--train.times log_snr --train.steps 1000 --train.batch 256 --train.lr 2e-3 --out run",
    "draw": "sample --checkpoint run --out drawn --num 1000",
    "score": "likelihood --checkpoint run --out scored --num 500 --likelihood.trace exact",
}
DATA = "from scoresde.data import avatars; print(len(avatars().train.columns['text'].sentences))"
"""A data set that is a file of the package."""


def main() -> int:
    """Build, compare, install, use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheel")
    parser.add_argument(
        "--store", action="store_true", help="write experiments/results/wheel.json"
    )
    arguments = parser.parse_args()
    wheel, source = build(arguments.out)
    if lacking := missing(wheel, source):
        print("not in the wheel or the sdist:", *lacking, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        found = used(wheel, Path(folder))
    print(json.dumps(found, indent=2))
    if arguments.store:
        (HERE / "results" / "wheel.json").write_text(json.dumps(found, indent=2) + "\n")
    return 0


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution; the wheel is built from the latter."""
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    newest = [max(out.glob(kind), key=os.path.getmtime) for kind in ("*.whl", "*.tar.gz")]
    return newest[0], newest[1]


def missing(wheel: Path, source: Path) -> list[str]:
    """Files of the repository that are not in the wheel (the package) or the sdist (all)."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    with zipfile.ZipFile(wheel) as file, tarfile.open(source) as archive:
        inside = set(file.namelist())
        beside = {name.partition("/")[2] for name in archive.getnames()}
    package = [name for name in tracked if name.startswith("scoresde/") and name not in inside]
    every = [name for name in tracked if name[0] != "." and name not in beside]
    return sorted({*package, *every})


def used(wheel: Path, folder: Path) -> dict[str, object]:
    """What the commands took, in CPU seconds, in an environment that has the wheel alone."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    work = folder / "work"
    work.mkdir()

    def seconds(*command: str | Path) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
        return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)

    torch = next(x for x in (ROOT / "constraints.txt").read_text().split() if x[:7] == "torch==")
    pins = ("-c", ROOT / "constraints.txt")
    installed = seconds(python, *PIP, *pins, torch) + seconds(python, *PIP, *pins, wheel)
    took = {
        name: seconds(python.parent / "scoresde", *line.split()) for name, line in COMMANDS.items()
    }
    took["data"] = seconds(python, "-c", DATA)
    scored = json.loads((work / "scored" / "likelihood.json").read_text())
    return {
        "wheel": wheel.name,
        "wheel_kb": round(wheel.stat().st_size / 1024),
        "cpu_seconds_to_install": round(installed, 1),
        "cpu_seconds": took,
        "cpu_seconds_in_all": round(sum(took.values()), 1),
        "bits_per_dim": scored["bits_per_dim"],
        "machine": f"{platform.machine()} CPU, {os.environ.get('OMP_NUM_THREADS')} thread(s)",
    }


if __name__ == "__main__":
    sys.exit(main())
