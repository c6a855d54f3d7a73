"""What the tests of faults share: a command line and its one line, a finished run, a fork."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scoresde.cli.main import main
from scoresde.runs.folder import RunFolder
from tests.cli.conftest import IMAGES, POINTS, finished, plain_layout, save_model

__all__ = ["finished", "plain_layout"]  # fixtures


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Run a command line that fails with this code, and give the one line it says."""

    def run(*argv: str, code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(part) for part in argv]) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("scoresde: error: ")
        return lines[0]

    return run


@pytest.fixture
def copied(finished, tmp_path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copy")))


@pytest.fixture(scope="session")
def points(tmp_path_factory) -> Path:
    """A checkpoint whose model is the standard normal law in the plane."""
    return save_model(tmp_path_factory.mktemp("points") / "model.pt", POINTS)


@pytest.fixture(scope="session")
def broken(tmp_path_factory) -> Path:
    """A checkpoint on the digits whose finite weights make numbers that overflow."""
    unconditional = IMAGES | {"conditional": False}
    return save_model(tmp_path_factory.mktemp("broken") / "model.pt", unconditional, spread=1e20)


@pytest.fixture
def forked(tmp_path) -> Callable[[Callable[[], int]], tuple[int, str]]:
    """Do something in a process of its own: its exit code, negative for a signal, and errors."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")

    def run(action: Callable[[], int]) -> tuple[int, str]:
        errors = tmp_path / "errors.txt"
        child = os.fork()
        if child == 0:
            code = 70
            try:
                sys.stdout = io.StringIO()  # not what pytest keeps
                sys.stderr = errors.open("w", buffering=1)
                code = action()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), errors.read_text()

    return run
