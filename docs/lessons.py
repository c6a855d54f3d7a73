"""Lessons are pages whose Python blocks are run one after the other, in one namespace.

    python docs/lessons.py docs/course/1-noise.md ...

runs pages and says how many CPU seconds each takes. The site shows below every block what it
printed and drew. As `jupytext --to ipynb` reads them, the pages are notebooks.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class Cell(NamedTuple):
    """Where a block ends in its page, what it printed, and the figures it left open."""

    end: int
    printed: str
    figures: list[Any]


def run(text: str, page: str) -> Iterator[Cell]:
    """Run the blocks of a page in a new namespace and an empty folder; an error ends the page.

    As in a notebook, the value of an expression at the end of a block is printed, unless a
    semicolon follows it.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "lesson"}
    with tempfile.TemporaryDirectory() as folder:
        for block in BLOCK.finditer(text):
            first = text.count("\n", 0, block.start(1))
            tree = ast.parse("\n" * first + block[1], page)
            last = tree.body[-1] if tree.body else None
            echo = isinstance(last, ast.Expr) and not block[1].rstrip().endswith(";")
            if echo:
                tree.body.pop()
            out = io.StringIO()
            with chdir(folder), redirect_stdout(out), redirect_stderr(io.StringIO()):
                exec(compile(tree, page, "exec"), names)
                if echo:
                    value = eval(compile(ast.Expression(last.value), page, "eval"), names)
                    if value is not None:
                        print(value)
            yield Cell(block.end(), out.getvalue(), list(map(pyplot.figure, pyplot.get_fignums())))
            pyplot.close("all")


def shown(text: str, page: str, folder: Path, beside: str) -> str:
    """The page with what its blocks printed and drew; pictures are written into the folder."""
    parts, done = [], 0
    for cell in run(text, page):
        parts.append(text[done : cell.end])
        done = cell.end
        if cell.printed.strip():
            printed = cell.printed.rstrip("\n")
            parts.append(f"\n```{{code-block}} text\n:class: output\n\n{printed}\n```\n")
        for figure in cell.figures:
            name = f"{Path(page).stem}-{len(parts)}-{figure.number}.png"
            figure.savefig(folder / name, dpi=144, bbox_inches="tight")
            parts.append(f"\n![{title(figure)}]({beside}/{name})\n")
    return "".join([*parts, text[done:]])


def title(figure: Any) -> str:
    """What a figure shows, for who cannot see it."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    return ", ".join(each for each in titles if each) or "the figure of the code above"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        began = time.process_time()
        for cell in run(path.read_text(), str(path)):
            print(cell.printed, end="")
        print(f"{path.name}: {time.process_time() - began:.0f} CPU seconds")
