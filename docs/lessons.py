"""Lessons are pages whose Python blocks are run one after the other, in one namespace.

    python docs/lessons.py docs/course/01-noise.md ... [--into FOLDER]

runs pages and says how many CPU seconds each takes. With --into it writes each page again, with
what its blocks printed and drew: this is what the site shows. `jupytext --to ipynb` makes a page a
notebook.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class Cell(NamedTuple):
    """Where a block ends in its page, what it printed, and the figures it left open."""

    end: int
    printed: str
    figures: list[Any]


def run(text: str, page: str) -> Iterator[Cell]:
    """Run the blocks of a page in a new namespace and an empty folder; an error ends the page."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "lesson"}
    numbers = torch.get_default_dtype()  # a lesson may set it
    try:
        with tempfile.TemporaryDirectory() as folder:
            for block in BLOCK.finditer(text):
                first = text.count("\n", 0, block.start(1))
                out = io.StringIO()
                with chdir(folder), redirect_stdout(out), redirect_stderr(io.StringIO()):
                    exec(compile("\n" * first + block[1], page, "exec"), names)
                figures = list(map(pyplot.figure, pyplot.get_fignums()))
                yield Cell(block.end(), out.getvalue(), figures)
                pyplot.close("all")
    finally:
        torch.set_default_dtype(numbers)
        pyplot.close("all")


def shown(page: Path, folder: Path) -> str:
    """The page with what its blocks printed and drew; its pictures are written into the folder."""
    text, beside = page.read_text(), os.path.relpath(folder, page.parent)
    parts, done = [], 0
    for cell in run(text, str(page)):
        parts.append(text[done : cell.end])
        done = cell.end
        if cell.printed.strip():
            printed = cell.printed.rstrip("\n")
            parts.append(f"\n```{{code-block}} text\n:class: output\n\n{printed}\n```\n")
        for figure in cell.figures:
            name = f"{page.stem}-{len(parts)}.png"
            figure.savefig(folder / name, dpi=144, bbox_inches="tight")
            parts.append(f"\n![{title(figure)}]({beside}/{name})\n")
    return "".join([*parts, text[done:]])


def title(figure: Any) -> str:
    """What a figure shows, for who cannot see it."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    return " ".join(", ".join(filter(None, titles)).split()) or "What the code above draws"


def main() -> None:
    """Run the pages named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, help="folder for the pages with their output")
    arguments = parser.parse_args()
    for page in arguments.pages:
        began = time.process_time()
        if arguments.into is None:
            for cell in run(page.read_text(), str(page)):
                print(cell.printed, end="")
        else:
            arguments.into.mkdir(parents=True, exist_ok=True)
            text = shown(page, arguments.into)
            (arguments.into / page.name).write_text(text)
        print(f"{page.name}: {time.process_time() - began:.0f} CPU seconds", file=sys.stderr)


if __name__ == "__main__":
    main()
