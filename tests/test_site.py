"""The site holds together: links, equations, contents, names and lessons, without Sphinx."""

import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote

import pytest
import torch
import yaml

import scoresde as ss
from scoresde import config, registry
from scoresde.cli import options
from scoresde.cli.flags import parse
from scoresde.cli.main import COMMANDS
from scoresde.config import AutoencoderConfig, load_config
from tests.test_readme import RESULTS, ROOT, blocks

DOCS = ROOT / "docs"
SITE = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "api"]
SITE += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES = [ROOT / "README.md", *SITE]
TEXT = {page: page.read_text() for page in PAGES}
EXECUTED = [DOCS / "start.md", *sorted((DOCS / "course").glob("[0-9]*.md"))]
THEORY = TEXT[DOCS / "theory.md"]
EQUATIONS = re.findall(r"\\tag\{(\d+)\}", THEORY)
NUMBER = re.compile(r"\((\d{1,2})\)")


def named(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(page):
    """The anchors of the headings of a page, as GitHub and the site make them."""
    found = []
    text = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        heading = re.sub(r"\[(.*?)\]\(.*?\)|`", r"\1", heading)
        found.append(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_lines_have_120_columns(page):
    """Rows of tables cannot be broken."""
    assert not [line for line in TEXT[page].splitlines() if len(line) > 120 and line[0] != "|"]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_and_anchor_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_headings_of_a_page_have_anchors_of_their_own(page):
    if page.name != "CHANGELOG.md":
        found = anchors(page)
        assert len(found) == len(set(found))


def test_equations_are_numbered_in_order_and_those_referred_to_are_there():
    assert list(map(int, EQUATIONS)) == list(range(1, len(EQUATIONS) + 1))
    cited = set(NUMBER.findall(re.sub(r"\$.*?\$", "", prose(DOCS / "theory.md"), flags=re.DOTALL)))
    code = [path.read_text() for path in (ROOT / "scoresde").rglob("*.py")]
    for text in [*map(prose, SITE), *code]:
        for paragraph in re.split(r"\n\s*\n", text):
            if re.search(r"theory(\.md|\]| page)", paragraph):
                cited |= set(NUMBER.findall(paragraph))
    assert len(cited) >= 10
    assert cited <= set(EQUATIONS)


def contents(page):
    """The pages below a page in the table of contents."""
    for entries in re.findall(r"```\{toctree\}\n(.*?)```", TEXT[page], re.DOTALL):
        for entry in entries.splitlines():
            if entry and not entry.startswith(":"):
                below = (page.parent / f"{entry}.md").resolve()
                assert below.exists(), entry
                yield below
                yield from contents(below)


def test_every_page_is_in_the_table_of_contents_once():
    assert sorted([DOCS / "index.md", *contents(DOCS / "index.md")]) == sorted(SITE)


def test_every_python_block_is_executed_by_a_test():
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for page in PAGES:
        if page not in EXECUTED and page.name != "CONTRIBUTING.md" and blocks(page, "python"):
            assert any(f'"{page.name}", "python"' in text for text in tests), page


def test_every_extra_is_on_the_page_of_the_installation():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT[DOCS / "install.md"], re.M)) == set(extras)


def test_every_block_of_yaml_is_a_configuration():
    count = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            found = yaml.safe_load(block)
            if "kind: diffusers" in block and find_spec("diffusers") is None:
                continue  # a section constructs its object
            schema = AutoencoderConfig if {"autoencoder", "discriminator"} & set(found) else None
            load_config(None, found, *([schema] if schema else []))
            count += 1
    assert count >= 4


def test_every_public_name_is_in_the_reference():
    text = TEXT[DOCS / "api.md"]
    modules = [
        importlib.import_module(name) for name in re.findall(r"^   (scoresde\S*)$", text, re.M)
    ]
    alone = set(re.findall(r":: scoresde\.(\S+)$", text, re.M))
    shown = {name for each in modules for name in getattr(each, "__all__", vars(each))}
    packages = {each.__name__.removeprefix("scoresde.") for each in modules}
    shown |= {name.rpartition(".")[2] for name in alone}
    assert [name for name in ss.__all__ if name not in shown | packages] == []
    for name in alone:
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(f"scoresde.{module}"), last).__doc__, name


def names_here():
    """The names in the columns "here" of the tables for those who come from elsewhere."""
    for row in re.findall(r"^\| .* \| (.*) \|$", TEXT[DOCS / "coming-from.md"], re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row)


def test_the_names_for_those_who_come_from_elsewhere_exist():
    known = {name for table in registry.TABLES.values() for name in table}
    for function in (ss.draw, ss.train, ss.edit, ss.ScoreModel.denoiser, ss.guidance.free):
        known |= set(inspect.signature(function).parameters)
    prior = ss.VP().prior()
    known |= {name for name in dir(prior) if not name.startswith("_")} | {"runs/mine"}
    bound = {"model": ss.ScoreModel, "denoiser": ss.Denoiser}
    found = list(dict.fromkeys(names_here()))
    assert len(found) > 80
    for name in found:
        if name.startswith("scoresde "):
            command, *rest = shlex.split(name)[1:]
            schema = getattr(config, COMMANDS[command].schema)
            known_options = getattr(options, COMMANDS[command].options)
            parse(known_options, rest, name, COMMANDS[command].sections, schema)
        elif name.startswith("ss."):
            eval(name, {"ss": ss})
        elif re.match(r"[\w.]+: ", name):
            load_config(None, yaml.safe_load(name))
        elif name.startswith("--"):
            assert (
                name.split()[0][2:].replace("-", "_")
                in inspect.signature(options.SampleOptions).parameters
            ), name
        elif call := re.fullmatch(r"(?:(\w+)\.)?(\w+)\(.*\)", name):
            owner = bound.get(call[1] or "denoiser")
            assert call[2] == "denoiser" or hasattr(owner, call[2]), name
        else:
            assert name.split("=")[0] in known, name
    arguments = r"((?:`\w+`(?:, | and )?)+) of\s`(ss\.[\w.]+)`"
    told = re.findall(arguments, TEXT[DOCS / "coming-from.md"])
    assert len(told) >= 4
    for names, owner in told:
        known = inspect.signature(eval(owner, {"ss": ss})).parameters
        assert set(re.findall(r"`(\w+)`", names)) <= set(known), (names, owner)


@pytest.fixture
def lessons(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("lessons")


PAGE = """# A page

```python
import matplotlib.pyplot as plt

x = 2
print("one")
```

Words.

```python
plt.plot([0, x])
plt.title("A line")
```

```python
x * 5
```
"""


def test_a_lesson_shows_what_its_blocks_print_and_draw(lessons, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    shown = lessons.shown(page, tmp_path)
    first, second, third = re.split(r"Words\.|x \* 5", shown)
    assert ":class: output\n\none\n```" in first
    assert ":class: output" not in second + third
    (picture,) = re.findall(r"!\[A line\]\((.+)\)", second)
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert re.sub(r"\n```\{code-block\}.*?```\n|\n!\[.*?\)\n", "", shown, flags=re.DOTALL) == PAGE


def test_an_error_in_a_lesson_names_its_line_and_lessons_share_no_names(lessons):
    list(lessons.run(PAGE, "first.md"))
    with pytest.raises(NameError) as error:
        list(lessons.run("\n\n```python\n1\nprint(x)\n```\n", "second.md"))
    assert str(error.traceback[-1].path) == "second.md"
    assert error.traceback[-1].lineno == 4  # counted from 0


def test_a_lesson_leaves_the_numbers_of_others_as_they_were(lessons):
    setting = "import torch\ntorch.set_default_dtype(torch.float64)\n"
    with pytest.raises(ZeroDivisionError):
        list(lessons.run(f"```python\n{setting}1 / 0\n```\n", "page.md"))
    assert torch.get_default_dtype() == torch.float32


def test_the_five_minutes_run(lessons):
    text = TEXT[DOCS / "start.md"].replace("num=2000", "num=60").replace("[:500]", "[:10]")
    cells = list(lessons.run(text.replace("steps=1500", "steps=2"), "start.md"))
    assert sum(len(cell.figures) for cell in cells) == 1
    assert re.search(r"\d\.\d\d \+- \d\.\d\d bits/dim", cells[2].printed)


FEW = {  # what is replaced in a lesson, so that it takes a second or two
    "01-noise": "steps = 3000 > steps = 2",
    "02-score": "steps = 3000 > steps = 2; 2000 > 200; 1000 > 100; 40_000 > 400",
    "03-sdes": (
        "1001 > 101; 4000 > 200; (100, 300, 1000) > (10, 30, 100); "
        "(600, 800, 900) > (60, 80, 90); [:500] > [:50]; , 160, 320, 640] > ]; "
        "1000) > 100); [:200] > [:50]"
    ),
    "04-digits": (
        "steps = 1000 > steps = 4; steps=20, > steps=2,; steps=40, > steps=4,; "
        '"log_every": 50 > "log_every": 1; "validate_every": 100 > "validate_every": 2; '
        '"checkpoint_every": 100 > "checkpoint_every": 2; "batch": 64 > "batch": 8; '
        '"width": 32 > "width": 8; width=32 > width=8; '
        "(200, 500, 1000) > (2, 4); 100, 200, 400, 700, 1000 > 2, 4; num=60 > num=10; "
        "nfe=20 > nfe=2; 1.5 * d > 0"
    ),
    "05-samplers": (
        "80, 160, 320, 640] > 80]; e[4] > e[3]; 1500 > 150; 4000 > 100; "
        "randn(64 > randn(8; 400 > 40; 1e-11 > 1e-7; 1e-10 > 1e-7; "
        "8, 11, 16, 22, 32, 45, 64] > 8]; (160, 320, 640) > (40, 80, 160); "
        "(320, 640) > (80, 160)"
    ),
    "06-likelihood": (
        'steps=900 > steps=2; "width": 32 > "width": 8; 300 > 20; dim = 24 > dim = 8; '
        "steps=40 > steps=4; steps=60 > steps=20; 61, > 21,; 10, 20] > 10]; "
        "[:200] > [:9]; 200** > 9**; [:100] > [:4]; 100_000 > 40_000; 20_000 > 2000"
    ),
    "07-guidance": (
        "steps = 2500 > steps = 2; steps=700 > steps=2; steps=250 > steps=2; 8000 > 200; "
        "randn(700 > randn(70; 300 > 20; nfe=15 > nfe=3"
    ),
    "08-editing": (
        "steps=700 > steps=2; 1000 > 50; 2000 > 100; nfe=50 > nfe=3; nfe=100 > nfe=5; "
        "num=4000 > num=2000; nfe=30 > nfe=15; < 0.05 > < 0.1"
    ),
    "09-latents": "steps=1500 > steps=2; steps=1000 > steps=2; [:100] > [:10]",
    "10-sentences": (
        "steps=1200 > steps=2; steps=400 > steps=2; [:100] > [:10]; nfe=12 > nfe=2; "
        "(model, 50 > (model, 10"
    ),
    "11-wrong": "20, 40, 80, 160, 320] > 20, 80, 160]; randn(200) > randn(20)",
}


@pytest.mark.parametrize("page", EXECUTED[1:], ids=lambda page: page.stem)
def test_a_lesson_runs_with_few_steps(lessons, page):
    """Names, shapes and the answers to exercises; what lessons show needs the slow test."""
    text = TEXT[page]
    for each in FEW[page.stem].split("; "):
        many, few = each.split(" > ")
        assert many in text
        text = text.replace(many, few)
    printed = [cell.printed for cell in lessons.run(text, named(page))]
    assert sum(each.endswith("right\n") for each in printed) == 2


@pytest.mark.parametrize("page", EXECUTED[1:], ids=lambda page: page.stem)
def test_a_lesson_ends_with_two_exercises_and_our_answers_are_folded(page):
    exercises = TEXT[page].split("## Exercises\n")[1]
    assert re.findall(r"^\*\*(\d)\.\*\*", exercises, re.MULTILINE) == ["1", "2"]
    assert exercises.count("<details><summary>") == exercises.count("</details>\n\n```python") == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED[1:], ids=lambda page: page.stem)
def test_a_lesson_runs_draws_two_pictures_and_finds_its_answers_right(lessons, page):
    cells = list(lessons.run(TEXT[page], named(page)))
    assert sum(len(cell.figures) for cell in cells) >= 2
    assert sum(cell.printed.endswith("right\n") for cell in cells) == 2


def test_docstrings_become_restructured_text(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    as_rst = importlib.import_module("docstrings").as_rst
    text = """The law p(x_t | x_0) of ``x_t`` * 2.

    x = a_ |x|

Then `y`.

- one
- two
  and more

Args:
    first, second: x_ or
        more of it.
    third: y.
"""
    assert as_rst(text.splitlines()) == [
        r"The law p(x\_t \| x\_0) of ``x_t`` \* 2.",
        *("", "::", "", "    x = a_ |x|", ""),
        *("Then ``y``.", "", "- one", "- two", "  and more", "", "", ""),
        *(r":param first second: x\_ or", "    more of it.", ":param third: y.", ""),
    ]


def test_make_says_that_python_is_too_old_before_it_installs(tmp_path):
    """A stand-in says that it is Python 3.10, and would fail if it were asked for more."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.10"
    old.write_text(
        f"#!/bin/sh\n[ $1 = -c ] || {{ touch asked; exit 1; }}\n"
        f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 4); $2"\n'
    )
    old.chmod(0o755)
    for target in ("demo", "test", "docs"):
        done = subprocess.run(
            ["make", target, f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode
        first, *_ = done.stderr.splitlines()
        assert re.fullmatch(r"scoresde needs Python 3.11 or newer, and .*3.10 is 3.10: .*", first)
        assert not (tmp_path / "asked").exists()
        assert not (tmp_path / ".venv").exists()


class Page(HTMLParser):
    """The links, the sources and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.sources, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag in ("img", "script", "link", "source", "iframe"):
            self.sources += [found[key] for key in ("src", "href") if found.get(key)]


def broken(pages):
    """The links of built pages that lead nowhere, and what another host would be asked for."""
    for path, page in pages.items():
        for link in (*page.links, *page.sources):
            if re.match(r"(https?|mailto|data):", link):
                if link in page.sources and not link.startswith("data:"):
                    yield path.name, link
                continue
            file, _, anchor = link.partition("#")
            there = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            lost = anchor and there in pages and unquote(anchor) not in pages[there].ids
            if lost or not there.is_file():
                yield path.name, link


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    """Every lesson is executed. Needs scoresde[docs]; `make test-all` installs it."""
    site, doctrees = tmp_path / "site", tmp_path / "doctrees"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-c",
        DOCS,
        "-d",
        doctrees,
    ]
    done = subprocess.run([*command, ROOT, site], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > len(SITE) + 20
    assert list(broken(pages)) == []
    equations = pages[site / "docs" / "theory.html"].ids
    assert {f"equation-{number}" for number in EQUATIONS} <= equations


def test_the_stored_trial_of_the_wheel_took_less_than_a_minute():
    found = json.loads((RESULTS / "wheel.json").read_text())
    assert found["cpu_seconds_in_all"] < 60
    assert f"takes {found['cpu_seconds_in_all']:.0f} CPU seconds" in TEXT[DOCS / "install.md"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_in_an_empty_environment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    script = importlib.import_module("wheel")
    wheel, source = script.build(tmp_path)
    assert script.missing(wheel, source) == []
    found = script.used(wheel, tmp_path)
    assert found["cpu_seconds"].keys() >= {"help", "train", "draw", "score"}
    assert torch.tensor(found["bits_per_dim"]).isfinite()
