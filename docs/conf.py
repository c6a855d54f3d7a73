"""The site: `make docs` builds it into build/site, with every warning an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_origin

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.logging import getLogger
from sphinx.util.typing import stringify_annotation

HERE = Path(__file__).parent
# Sphinx runs this file from anywhere: what lies beside it and the library of this tree come first.
sys.path[:0] = [str(HERE), str(HERE.parent)]

import docstrings  # noqa: E402

import scoresde  # noqa: E402
from scoresde import arguments  # noqa: E402

project, author = "scoresde", "the authors of scoresde"
version = release = scoresde.__version__

# The repository is the source: pages link to what lies beside docs/, and pictures are where the
# experiments stored them.
root_doc = "docs/index"
include_patterns = ["docs/**", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_*", "build", "dist", "runs", ".*"]
exclude_patterns += ["tests", "experiments", "scoresde", "configs"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
templates_path = [str(HERE / "_templates")]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # the types of torch have no site at hand

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "text"
pygments_style = "friendly"

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
add_module_names = False

html_theme = "furo"
html_title = f"scoresde {version}"
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
MATHS_FONT = Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
html_static_path = ["_static", str(MATHS_FONT)]

FRONT = '<meta http-equiv="refresh" content="0; url=docs/index.html">\n'
TAG, EQUATION = re.compile(r"\\tag\{(\d+)\}"), re.compile(r"\((\d{1,2})\)")
MATHS = LatexToMathML()


def inline_maths(self: Any, node: nodes.math) -> None:
    """MathML needs no script and no other host; the browser draws it in the font of site.css."""
    self.body.append(MATHS.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def block_maths(self: Any, node: nodes.math_block) -> None:
    """A displayed equation; one with a number is the target of its links."""
    number = TAG.search(node.astext())
    text = TAG.sub("", node.astext())
    drawn = MATHS.convert_with_local_state(text, displaystyle=True)
    place, label = "", ""
    if number:
        place = f' id="equation-{number[1]}"'
        label = f'<a href="#equation-{number[1]}">({number[1]})</a>'
    self.body.append(f'<div class="equation"{place}><div>{drawn}</div>{label}</div>\n')
    raise nodes.SkipNode


class Equations(SphinxPostTransform):
    """Links to equations: every "(6)" of the theory page, elsewhere those in a paragraph on it."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        theory = "docs/theory"
        known = set(TAG.findall((HERE / "theory.md").read_text()))
        page = self.app.builder.get_relative_uri(self.env.docname, theory)
        here = self.env.docname == theory
        for paragraph in self.document.findall(nodes.paragraph):
            if not here and "theory" not in paragraph.astext():
                continue
            for text in list(paragraph.findall(nodes.Text)):
                if not isinstance(text.parent, nodes.paragraph | nodes.strong | nodes.emphasis):
                    continue
                parts, done = [], 0
                for found in EQUATION.finditer(text):
                    if found[1] not in known:
                        getLogger(__name__).warning("no equation %s", found[0], location=paragraph)
                    place = f"{page}#equation-{found[1]}"
                    parts.append(nodes.Text(text[done : found.start()]))
                    parts.append(nodes.reference("", found[0], refuri=place, internal=True))
                    done = found.end()
                if parts:
                    text.parent.replace(text, [*parts, nodes.Text(text[done:])])


def read_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list) -> None:
    """Docstrings are plain text."""
    lines[:] = docstrings.as_rst(lines)


def name_ranges(app: Sphinx, what: str, name: str, obj: Any, options: Any, *signature: Any) -> Any:
    """Numbers with a range: the name of their type, or the number alone."""
    found = [part or "" for part in signature]
    for alias, kind in vars(arguments).items():
        if get_origin(kind) is Annotated:
            found = [part.replace(stringify_annotation(kind, "smart"), alias) for part in found]
    ranged = re.compile(r"~?typing.Annotated\[([^()]+), \S+Range\(.*?\)]")
    return tuple(ranged.sub(r"\1", part) or None for part in found)


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """The fields of a class are in its signature."""
    methods = (types.FunctionType, types.MethodType, property, cached_property, type)
    return True if what == "class" and not isinstance(obj, methods) else None


def read_lesson(app: Sphinx, page: str, source: list[str]) -> None:
    """A lesson is executed when its page is read, by a process of its own.

    Not by this one: autodoc has loaded modules of the package a second time, for their types.
    """
    if not re.fullmatch(r"docs/(start|course/\d.*)", page):
        return
    folder, file = Path(app.outdir).parent / "lessons", Path(app.srcdir) / f"{page}.md"
    done = subprocess.run(
        [sys.executable, HERE / "lessons.py", file, "--into", folder],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ExtensionError(f"{page}: {done.stderr}")
    source[0] = (folder / file.name).read_text()
    for used in (HERE / "lessons.py", *(HERE.parent / "scoresde").rglob("*.py")):
        app.env.note_dependency(str(used), docname=page)  # executed again when it changes


def finish(app: Sphinx, error: Exception | None) -> None:
    """The folder opens on the front page."""
    if error is None:
        (Path(app.outdir) / "index.html").write_text(FRONT)


def setup(app: Sphinx) -> None:
    """What this file adds to Sphinx."""
    app.add_html_math_renderer("mathml", (inline_maths, None), (block_maths, None))
    app.add_post_transform(Equations)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", name_ranges)
    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", read_lesson)
    app.connect("build-finished", finish)
