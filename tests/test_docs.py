"""The documentation says what the code does: its examples run, its numbers are stored ones."""

import importlib
import json
import re
from pathlib import Path

import pytest

from scoresde import registry
from scoresde.evaluation.metrics import METRICS

ROOT = Path(__file__).parent.parent
SAMPLERS = (ROOT / "docs" / "samplers.md").read_text()
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text()
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text()


def stored(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def test_the_sampler_of_the_documentation_has_the_order_it_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```", SAMPLERS, re.DOTALL)
    assert "class Midpoint" in blocks[0]
    assert blocks[0].count("\n") <= 30
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        exec(block, names)
    assert float(capsys.readouterr().out) == pytest.approx(names["Midpoint"].order, abs=0.15)


def test_the_example_of_the_evaluation_runs_and_every_metric_is_explained(capsys):
    exec(re.findall(r"```python\n(.*?)```", EVALUATION, re.DOTALL)[0], {})
    value, error, limit = map(float, capsys.readouterr().out.split())
    assert 0 < error < value
    assert abs(limit) < value
    assert not [name for name in METRICS if f"`{name}`" not in EVALUATION]


def test_every_name_is_in_the_table_of_names():
    table = SAMPLERS.split("## Names")[1].split("## Noise")[0]
    missing = [name for name in registry.SAMPLERS if f"`{name}`" not in table]
    missing += [name for name in registry.GRIDS if f"`{name}`" not in table]
    assert not missing


def test_no_kill_lost_anything_and_the_page_says_how_many_there_were():
    found = stored("kills")
    assert found["kills"] >= 200
    assert found["files_unreadable"] == 0
    text = " ".join((ROOT / "docs" / "training.md").read_text().split())
    for words in (
        f"{found['kills']} times, and {found['resumes']} times it was resumed",
        f"None of the {found['files_read']:,} files",
        f"and {found['trainings_equal']} trainings",
    ):
        assert words in text


def test_the_speeds_are_the_stored_ones():
    text = (ROOT / "docs" / "training.md").read_text()
    for mode, found in stored("throughput")["modes"].items():
        speeds, best = found["images_per_second"], found["best_layout"]
        cells = [f"{speeds[name][best[name]]:.1f} ({best[name]})" for name in best]
        assert f"| {mode} | {' | '.join(cells)} | {found['ratio']:.2f} |" in text
        assert found["ratio"] >= 0.95  # as fast as the fastest peer, or nearly


def test_the_engine_takes_less_of_a_step_than_it_may():
    found = stored("engine_overhead")
    assert found["overhead_by_parts"] <= found["limit"]
    assert found["overhead"] <= found["limit"]
    text = (ROOT / "docs" / "training.md").read_text()
    assert f"take {100 * found['overhead_by_parts']:.1f} % of a step" in text


def test_the_figures_of_the_samplers_are_the_stored_ones():
    for trial in stored("samplers")["trials"]:
        assert f"{trial['relative']:.1e} ({trial['nfe']})" in SAMPLERS + EXPERIMENTS
    for title, rows in stored("stochastic").items():
        ours = rows["eab_sde points=3 eta=0.25 std=0.5 [arctan]"]
        assert " | ".join(f"{value:.1e}" for value in ours) in SAMPLERS + EXPERIMENTS, title
    for name, row in stored("overhead")["64x3x32x32"]["steps"].items():
        assert f"| {name} | {row['kind']} | {row['ratio']:.1f}" in SAMPLERS + EXPERIMENTS


def test_the_tables_of_the_experiments_are_the_stored_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    found = {
        "images": stored("images"),
        "processes": stored("processes"),
        "ablation": stored("ablation"),
        "needs": stored("needs")["needs"],
    }
    tables = {name: importlib.import_module(name).table(rows) for name, rows in found.items()}
    assert [name for name, table in tables.items() if table not in EXPERIMENTS] == []


def test_the_pictures_of_the_experiments_are_there_and_small():
    linked = re.findall(r"!\[.+?\]\((.+?)\)", EXPERIMENTS)
    files = [ROOT / "docs" / name for name in linked]
    assert len(files) >= len(stored("images"))
    assert all(file.stat().st_size < 100_000 for file in files)
