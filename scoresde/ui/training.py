"""Trainings as processes of their own, watched by what they write into their run folders."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoresde.arguments import unwrapped
from scoresde.atomic import atomic_write
from scoresde.config import Config, load_config, override, to_plain
from scoresde.config.sections import Group, options
from scoresde.config.values import is_path
from scoresde.evaluation import loss_curve
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.train_resume import stored_config
from scoresde.ui.folders import Folders
from scoresde.ui.jobs import Busy, NotFound

MOST_RUNNING, PATIENCE = 2, 60.0
"""The most trainings at once, and the seconds in which one saves its checkpoint when it stops."""
LINES = 12
"""Lines of the log that are shown."""


@dataclass
class Training:
    """A training: its process, who started it, and whether it was asked to end."""

    process: subprocess.Popen[bytes]
    owner: str
    asked: bool = False

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Ask it to save a checkpoint and end, once: a second signal would end it without."""
        if not self.asked:
            self.asked = True
            self.process.send_signal(signal.SIGTERM)


@dataclass
class Trainings:
    """The trainings that this server has started, by the folder of their run.

    Args:
        folders: where configurations and runs are.
        logs: folder of what the processes print.
        device: device of the trainings.
    """

    folders: Folders
    logs: Path
    device: str = "auto"
    _running: dict[Path, Training] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)

    def start(
        self,
        out: str,
        configuration: str | None = None,
        changes: str = "",
        resume: bool = False,
        owner: str = "",
    ) -> None:
        """Start a training in the folder ``out``, or go on with the run there.

        ``changes`` are keys of the configuration, such as train.steps=500 sde.kind=ve. Raises
        ValueError for bad input, NotFound for folders that were not named, Busy.
        """
        folder, file = self._folder(out), None
        keys = _keys(changes)
        if resume:
            if not RunFolder(folder).is_run():
                raise ValueError(f"out: {out} holds no run to resume; choose one")
            config = override(stored_config(folder, Config), keys)
        else:
            if RunFolder(folder).is_run():
                raise ValueError(f"out: {out} holds a run; resume it, or give another folder")
            file = self.folders.find(configuration) if configuration else None
            config = load_config(file, keys)
        self._require_inside(config)
        words = [sys.executable, "-m", "scoresde", "train", "--out", str(folder)]
        words += ["--device", self.device, *(["--resume"] if resume else [])]
        if file is not None:
            words += ["--config", str(file)]
        words += [f"--{name}={value}" for name, value in keys.items()]
        key = folder.resolve()
        with self._lock:
            if key in self._running and self._running[key].runs:
                raise ValueError(f"out: {out} is being trained already; stop it first")
            if sum(training.runs for training in self._running.values()) >= MOST_RUNNING:
                raise Busy(f"busy: {MOST_RUNNING} trainings run; stop one, or wait")
            self.logs.mkdir(exist_ok=True)
            with self._log(key).open("wb") as log:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            self._running[key] = Training(process, owner)

    def stop(self, out: str, owner: str = "", sure: bool = False) -> None:
        """Ask a training to save a checkpoint and end.

        Raises ValueError if none runs there, or, unless ``sure``, if another started it.
        """
        training = self._running.get(self._folder(out).resolve())
        if training is None or not training.runs:
            raise ValueError(f"out: no training that was started here runs in {out}")
        if training.owner != owner and not sure:
            raise ValueError(f"out: {out} was started from another page; stop again to end it")
        training.end()

    def report(self, out: str) -> dict[str, Any]:
        """What a run has done: its state, step, pictures of loss and samples, and last lines.

        The state of one that was not started here is "".
        """
        path = self._folder(out)
        folder, key = RunFolder(path), path.resolve()
        training, state = self._running.get(key), ""
        if training is not None:
            states = {None: "running", 0: "done", 128 + signal.SIGTERM: "stopped"}
            states[-signal.SIGTERM] = "stopped"  # before it had begun
            state = states.get(training.process.poll(), "failed")
        log = self._log(key) if training is not None else folder.log
        pictures, found = sorted(folder.samples.glob("step-*.png")), records(folder)
        return {
            "state": state,
            "step": found[-1]["step"] if found else None,
            "loss": self._loss(folder, key, found),
            "samples": [str(path) for path in pictures],
            "lines": _last_lines(log),
        }

    def close(self) -> None:
        """Stop all trainings, and wait until their checkpoints are saved."""
        running = [training for training in self._running.values() if training.runs]
        for training in running:
            training.end()
        for training in running:
            try:
                training.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                training.process.kill()

    def _folder(self, out: str) -> Path:
        """A folder in those named at the start, which need not exist. Raises NotFound."""
        path = Path(out or "").expanduser()
        if path.exists():
            return self.folders.find(out)
        if not re.fullmatch(r"[\w][\w.+-]*", path.name):
            raise NotFound(f"out: {out!r:.80} is no name of a folder; write one such as runs/mine")
        return self.folders.find(str(path.parent)) / path.name

    def _require_inside(self, config: Config) -> None:
        """Raise NotFound if the training would read outside the folders named at the start."""
        names = {
            key.rpartition(".")[2]
            for key, argument in options(Group((Config,)))
            if is_path(unwrapped(argument.type)[0])
        }
        for value in _values(to_plain(config), names | {"path"}):
            self.folders.find(value)

    def _loss(self, folder: RunFolder, key: Path, found: list[dict[str, Any]]) -> str | None:
        """The picture of the losses, drawn anew after new records; None without any."""
        picture = self._log(key).with_suffix(".png")
        if not any(isinstance(record.get("loss"), float) for record in found):
            return None
        with self._lock:
            if not picture.exists() or picture.stat().st_mtime < folder.metrics.stat().st_mtime:
                self.logs.mkdir(exist_ok=True)
                try:
                    atomic_write(picture, lambda path: loss_curve(path, found))
                except ValueError:  # none is finite
                    return None
        return str(picture)

    def _log(self, key: Path) -> Path:
        return self.logs / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.log"


def _keys(changes: str) -> dict[str, str]:
    """Keys of a configuration written as words. Raises ValueError."""
    pairs = [word.partition("=") for word in changes.split()]
    if stray := ["".join(pair) for pair in pairs if not all(pair) or pair[0].startswith("-")]:
        raise ValueError(f"changes: write keys such as train.steps=500, got {stray[0]!r:.60}")
    return {name: value for name, _, value in pairs}


def _values(plain: Any, names: set[str]) -> list[str]:
    """The texts below a configuration whose key is one of the names."""
    if not isinstance(plain, dict):
        return []
    own = [value for key, value in plain.items() if key in names and isinstance(value, str)]
    return own + [found for value in plain.values() for found in _values(value, names)]


def _last_lines(path: Path) -> list[str]:
    """The last lines of a text file; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8000))
            return file.read().decode(errors="replace").splitlines()[-LINES:]
    except OSError:
        return []
