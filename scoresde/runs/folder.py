"""Folder of a training run: its files, its lock and its records."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import scoresde
from scoresde.atomic import atomic_write, writing
from scoresde.training.checkpoint import BEST, LATEST, step_files
from scoresde.training.snapshots import AVERAGES, NAME, snapshots

PICTURE = re.compile(r"step-\d{8,}\.png")
PACKAGES = ("numpy", "safetensors")
EXPORT = re.compile(r"weights-ema-[\de.-]+\.safetensors")
ARTICLES = {"model": "a model", "autoencoder": "an autoencoder"}
OWN = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "log.txt",
    "loss.png",
    "loss-levels.png",
    "weights-ema.safetensors",
    "codec.safetensors",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run.

    ``env.json`` marks a folder as a run; it is written first.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def loss(self) -> Path:
        return self.path / "loss.png"

    @property
    def levels(self) -> Path:
        return self.path / "loss-levels.png"

    @property
    def weights(self) -> Path:
        return self.path / "weights-ema.safetensors"

    @property
    def codec(self) -> Path:
        return self.path / "codec.safetensors"

    def weights_of(self, decay: str) -> Path:
        """Path of the exported average of a further decay."""
        return self.path / f"weights-ema-{decay}.safetensors"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / BEST

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def reconstructions(self) -> Path:
        return self.path / "reconstructions"

    @property
    def averages(self) -> Path:
        return self.path / AVERAGES

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def sample(self, step: int) -> Path:
        """Path of the sample picture of a step."""
        return self.samples / f"step-{step:08d}.png"

    def reconstruction(self, step: int) -> Path:
        """Path of the picture of reconstructions of a step."""
        return self.reconstructions / f"step-{step:08d}.png"

    def is_run(self) -> bool:
        """True if a run has started in the folder."""
        return "scoresde" in self._environment()

    def require(self, trains: str) -> None:
        """Raise ValueError if the folder holds a run that trains something else."""
        if self.is_run() and self.trains != trains:
            raise ValueError(
                f"{self.path}: holds the run of {ARTICLES[self.trains]}, not of "
                f"{ARTICLES[trains]}; give another folder"
            )

    def _environment(self) -> dict[str, Any]:
        try:
            found = json.loads(self.env.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def trains(self) -> str:
        """What the run in the folder trains: "model" or "autoencoder"."""
        return "autoencoder" if self._environment().get("trains") == "autoencoder" else "model"


def claim(
    path: str | Path, *, resume: bool = False, overwrite: bool = False, trains: str = "model"
) -> RunFolder:
    """Check that a run may use the folder; nothing is written or removed.

    Raises ValueError, naming the remedy, if the folder holds a run (without ``resume`` or
    ``overwrite``) or one that trains something else, if there is no run to resume, or if it holds
    files with the names of a run's files that no run wrote.
    """
    folder = RunFolder(Path(path))
    half = folder.env.with_name(f"{folder.env.name}.tmp")  # left by a run killed at its start
    if resume and overwrite:
        raise ValueError("resume=True and overwrite=True exclude each other; give one of them")
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{path}: a file; give a folder")
    folder.require(trains)
    if folder.is_run():
        if not (resume or overwrite):
            raise ValueError(
                f"{path}: holds a run; continue it with resume=True, replace it with "
                f"overwrite=True, or give another folder"
            )
    elif resume:
        raise ValueError(
            f"{path}: no run to resume; check the folder, or train without resume=True"
        )
    elif foreign := [file for file in own_files(folder) if file.exists() and file != half]:
        raise ValueError(
            f"{path}: holds {foreign[0].relative_to(path)} but no run; give another folder"
        )
    return folder


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Make the folder, and hold an exclusive lock on it.

    The operating system releases the lock when the process ends, for whatever reason. Raises
    ValueError if another process holds the lock, OSError if the folder cannot be written.
    """
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, folder.path)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{path}: another process trains there; wait for it, stop it, or give another folder"
        ) from None
    except OSError:  # a file system without locks
        return


def clear(folder: RunFolder) -> None:
    """Remove the files that a run writes; other files stay."""
    for file in own_files(folder):
        file.unlink(missing_ok=True)


def own_files(folder: RunFolder) -> Iterator[Path]:
    """Yield the files in the folder that have the names of a run's files."""
    # env.json comes last, so that a partly cleared folder is still recognised as a run.
    yield from (folder.path / name for name in OWN if name != folder.env.name)
    yield from (p for p in folder.path.glob("*.safetensors") if EXPORT.fullmatch(p.name))
    yield from step_files(folder.checkpoints)
    yield from (folder.checkpoints / name for name in (BEST, LATEST))
    yield from (snapshot.path for snapshot in snapshots(folder.averages))
    yield from temporaries(folder)
    for pictures in (folder.samples, folder.reconstructions):
        yield from (p for p in pictures.glob("*.png") if PICTURE.fullmatch(p.name))
    yield from folder.tensorboard.glob("events.out.tfevents.*")
    yield folder.env


def temporaries(folder: RunFolder) -> Iterator[Path]:
    """Yield temporary files that interrupted writes left."""
    pattern = re.compile(r"(step-\d{8,}\.pt|best\.pt|latest\.json)\.tmp")
    yield from (p for p in folder.checkpoints.glob("*.tmp") if pattern.fullmatch(p.name))
    yield from (folder.path / f"{name}.tmp" for name in OWN)
    yield from (p for p in folder.path.glob("*.tmp") if EXPORT.fullmatch(p.name[:-4]))
    yield from (p for p in folder.averages.glob("*.tmp") if NAME.fullmatch(p.name[:-4]))


def write_start(folder: RunFolder, config_yaml: str, found: Mapping[str, Any] | None) -> None:
    """Write ``env.json`` (unless ``found`` is None), then the resolved ``config.yaml``."""
    # The empty folder distinguishes a run that has just started from a folder without a run.
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    if found is not None:
        write_text(folder.env, json.dumps(found, indent=2) + "\n")
    write_text(folder.config, config_yaml)


def environment(device: str, trains: str = "model") -> dict[str, Any]:
    """Record for reproducing a run: versions, git commit, command, device and time."""
    return {
        "scoresde": scoresde.__version__,
        "trains": trains,
        # torch.__version__ names the build too, such as 2.13.0+cpu; the metadata may not.
        "packages": {"torch": torch.__version__, **{p: metadata.version(p) for p in PACKAGES}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": git_commit(Path(__file__).resolve().parent),
        "command": sys.argv,
        "device": device,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit(source: Path) -> str | None:
    """Commit of the git checkout that tracks this source folder; None if there is none."""
    try:
        tracked = _git(source, "ls-files", "--error-unmatch", "folder.py")
        return _git(source, "rev-parse", "HEAD") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Add one line to ``metrics.jsonl``."""
    with writing(folder.metrics), folder.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def records(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the records of ``metrics.jsonl``, skipping incomplete lines."""
    try:
        lines = folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := _record(line)) is not None]


def rewind(folder: RunFolder, step: int) -> None:
    """Delete temporary files, and records and averages after ``step``."""
    for stray in temporaries(folder):
        stray.unlink(missing_ok=True)
    for snapshot in snapshots(folder.averages):
        if snapshot.step > step:
            snapshot.path.unlink(missing_ok=True)
    kept = [json.dumps(record) + "\n" for record in records(folder) if record["step"] <= step]
    write_text(folder.metrics, "".join(kept))


def _record(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def _git(source: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(source), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
