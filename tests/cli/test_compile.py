"""--compile of the commands that draw samples."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from scoresde import denoiser as denoisers
from scoresde.cli.main import main

COMPILE = torch.compile
SAMPLING = ("--num", "24", "--sample.steps", "2", "--device", "cpu")


@pytest.fixture
def counter(monkeypatch) -> CompileCounter:
    """Counts the graphs in place of a compiler."""
    torch._dynamo.reset()
    found = CompileCounter()
    monkeypatch.setattr(denoisers.torch, "compile", lambda f, mode=None: COMPILE(f, backend=found))
    return found


def test_samples_are_drawn_by_the_compiled_network(tmp_path, points, counter):
    flags = ("--checkpoint", str(points), *SAMPLING, "--compile", "--out")
    assert main(["sample", *flags, str(tmp_path / "out")]) == 0
    assert counter.frame_count == 1
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["compile"] is True


def test_samples_are_judged_from_the_compiled_network(capsys, points, counter):
    flags = ("--checkpoint", str(points), *SAMPLING, "--resamples", "0", "--compile")
    assert main(["evaluate", *flags]) == 0
    assert counter.frame_count == 1


def test_nothing_is_compiled_that_is_drawn_already(capsys, tmp_path, points):
    assert main(["evaluate", "--samples", str(tmp_path), "--compile"]) == 2
    assert "--compile has no effect with --samples" in capsys.readouterr().err


def test_a_compiler_that_fails_is_a_line(monkeypatch, capsys, tmp_path: Path, points):
    def failing(*args: object) -> None:
        raise OSError("no such compiler")

    torch._dynamo.reset()
    broken = partial(COMPILE, backend=failing)
    monkeypatch.setattr(denoisers.torch, "compile", lambda f, mode=None: broken(f))
    flags = ("--checkpoint", str(points), *SAMPLING, "--compile", "--out")
    assert main(["sample", *flags, str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("scoresde: error: ")
    assert "--compile: compilation failed" in said
    assert "no such compiler" in said
