"""The worked examples of CONTRIBUTING.md, followed in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {"A sampler": 2, "A process": 2, "A data set": 2, "A key of the training": 3}
"""The examples, and the most files of the package that each may touch."""


def example(title: str) -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return page.split(f"### {title}\n")[1].split("\n### ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def add(folder: Path, block: str) -> Path:
    """A new file, or the end of one: its name is in the first line."""
    head, _, body = block.partition("\n")
    path = folder / head.removeprefix("# ")
    path.write_text((path.read_text() if path.exists() else "") + body)
    return path


def patch(folder: Path, block: str) -> Path:
    """Lines with + added and lines with - taken out, in every part between empty lines."""
    head, _, body = block.partition("\n")
    path = folder / head.removeprefix("--- ")
    text = path.read_text()
    for part in body.strip("\n").split("\n\n"):
        lines = part.splitlines()
        old, new = (
            "".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +")
        )
        assert text.count(old) == 1, f"{path.name} has not one place like\n{old}"
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.mark.parametrize("title", FILES)
def test_an_example_is_followed(tmp_path, title):
    text = example(title)
    shutil.copytree(ROOT / "scoresde", tmp_path / "scoresde")
    touched = {add(tmp_path, block) for block in blocks(text, "python")}
    touched |= {patch(tmp_path, block) for block in blocks(text, "diff")}
    assert len(touched) <= FILES[title]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (commands,) = blocks(text, "bash")
    for command in commands.splitlines():
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
