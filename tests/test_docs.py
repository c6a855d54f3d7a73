"""The documentation does what it says: examples run, commands parse, numbers are stored ones."""

import importlib
import json
import re
import shlex

import pytest
import torch
import yaml
from PIL import Image

import scoresde as ss
from scoresde import config, guidance, parameterization, posterior, registry
from scoresde.cli import options
from scoresde.cli.flags import parse
from scoresde.cli.main import COMMANDS
from scoresde.config import load_config
from scoresde.evaluation.metrics import METRICS
from scoresde.nn import MLP
from scoresde.progress import silent
from scoresde.testing import grid25
from tests.runs import test_editing as editing
from tests.test_readme import RESULTS, ROOT, blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.stem: page.read_text() for page in PAGES}
SAMPLERS, EVALUATION, EXPERIMENTS = TEXT["samplers"], TEXT["evaluation"], TEXT["experiments"]
COMMANDS_SHOWN = [
    (page.stem, line.split("  #")[0])
    for page in PAGES
    if page.stem != "CONTRIBUTING"  # test_contributing.py runs those
    for block in blocks(page, "bash") + blocks(page, "")
    for line in block.splitlines()
    if re.match(r"(torchrun .*-m (-- )?)?scoresde [a-z]", line) and "--help" not in line
]


def stored(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize(("page", "command"), COMMANDS_SHOWN)
def test_a_command_is_understood(page, command):
    words = command.replace("FILE", "f").replace("FOLDER", "r").split("scoresde ", 1)[1]
    name, *rest = shlex.split(words)
    known = COMMANDS[name]
    schema = getattr(config, known.schema)
    parse(getattr(options, known.options), rest, f"scoresde {name}", known.sections, schema)


def test_the_five_lines_of_the_first_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))
    names = {"ss": ss, "parameterization": parameterization, "net": MLP(2), "x": x[0], "y": x[1]}
    (block,) = blocks(ROOT / "docs" / "index.md", "python")
    exec(block.replace("steps=3000", "steps=3"), names)
    assert names["drawn"].x.shape == (64, 2)
    assert names["score"].log_prob.shape == (60,)
    assert names["found"]["recall"].error > 0


def test_the_guidance_of_the_documentation_runs(tmp_path, monkeypatch):
    model = ss.ScoreModel(MLP(2, width=8, classes=10), ss.VP(), parameterization.v)
    names = {"ss": ss, "guidance": guidance, "model": model, "start": torch.randn(4, 2)}
    block, classified = blocks(ROOT / "docs" / "guidance.md", "python")
    exec(block, names)
    assert float(names["x"].abs().max()) <= 1
    monkeypatch.chdir(tmp_path)
    small = {"network": {"width": 8, "blocks": 1}, "conditional": True}
    run = ss.train(small, steps=1, batch=8, out="runs/digits", progress=silent)
    ss.train_classifier(run.model, steps=1, batch=8, out="classifier.pt", progress=silent)
    exec(classified, names)
    x = torch.randn(2, 1, 8, 8)
    assert names["guided"](x, torch.tensor(0.5)).shape == x.shape


def test_the_edits_of_the_documentation_run():
    names = {"ss": ss, "model": editing.model(), "pictures": editing.pictures(2)}
    (block,) = blocks(ROOT / "docs" / "editing.md", "python")
    exec(block, names)
    assert names["edited"].x.shape == (8, 3, 8, 8)
    assert names["edited"].seen.shape == names["varied"].x.shape == (2, 3, 8, 8)


def test_the_autoencoder_of_the_documentation_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"ss": ss, "x": torch.randint(0, 256, (60, 1, 16, 16), dtype=torch.uint8)}
    first, second = blocks(ROOT / "docs" / "latents.md", "python")
    exec(first.replace("steps=2000", "steps=2"), names)
    assert names["run"].step == 2
    assert names["mean"].shape == (60, 2, 4, 4)
    assert (names["pictures"].shape, names["pictures"].dtype) == (names["x"].shape, torch.uint8)
    exec(second, names)
    assert (names["drawn"].x.shape, names["drawn"].x.dtype) == ((4, 1, 16, 16), torch.uint8)


def test_the_posterior_of_the_documentation_is_drawn(capsys):
    model = grid25().denoiser(ss.VP())
    (block,) = blocks(ROOT / "docs" / "posteriors.md", "python")
    exec(block, {"ss": ss, "torch": torch, "posterior": posterior, "model": model})
    assert capsys.readouterr().out.startswith("torch.Size([64, 2]) 50.0 ")


def test_every_method_of_posteriors_is_in_its_tables_and_figures_are_stored_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    found, text = stored("posteriors"), TEXT["posteriors"]
    script = importlib.import_module("posteriors")
    makers = ("table", "comparison", "ratios_table", "bias_table", "coverage_table")
    tables = {name: getattr(script, name)(found) for name in (*makers, "evidence_table")}
    for name in script.MIXTURES[:2]:
        tables[name] = script.particles_table(found, name)
    assert [name for name, table in tables.items() if table not in text] == []
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) >= set(registry.POSTERIORS)
    assert script.ratios(found)["twisted_smc"] <= 0.7


def test_the_cost_of_guidance_is_the_stored_one():
    found, text = stored("guidance_cost"), TEXT["guidance"]
    for row in found["rows"]:
        cells = f"| {row['batch']} | {row['settings']} | {row['network_ms']:.1f} ms "
        assert f"{cells}| {100 * row['extra']:.1f} % | {row['wrapper_us']:.0f} us |" in text
        if row["settings"] == "a scale":
            assert row["extra"] <= found["limit"]


def test_the_columns_of_the_documentation_are_read(capsys):
    (block,) = blocks(ROOT / "docs" / "data.md", "python")
    exec(block, {})
    sentences = "['none', 'one', 'two', 'a pair', 'three']"
    assert sentences in capsys.readouterr().out


def test_a_model_of_ones_own_pictures_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, kind in enumerate(["cat", "dog"] * 4):
        (tmp_path / "PICTURES" / kind).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (40, 36, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "PICTURES" / kind / f"{k}.png")
    (settings,) = blocks(ROOT / "docs" / "pictures.md", "yaml")
    small = settings.replace("width: 32", "width: 8").replace("size: 32", "size: 8")
    (tmp_path / "mine.yaml").write_text(small)
    (block,) = blocks(ROOT / "docs" / "pictures.md", "python")
    names = {"ss": ss}
    exec(block.replace("steps=20000", "steps=1").replace("num=16", "num=2, nfe=3"), names)
    assert names["drawn"].x.shape == (2, 3, 8, 8)


def test_the_conditions_of_the_documentation_are_told():
    n = torch.arange(40)
    names = {"ss": ss, "parameterization": parameterization, "x": torch.randn(40, 2)}
    names |= {"kinds": [["cat", "dog"][k] for k in n % 2], "places": torch.randn(40, 2)}
    (block,) = blocks(ROOT / "docs" / "conditions.md", "python")
    exec(block.replace("steps=3000", "steps=3"), names)
    assert [each["kind"] for each in names["drawn"].said] == ["cat", "dog"]
    assert names["score"].log_prob.shape == (40,)
    assert names["score"].job.conditional
    listed = set(re.findall(r"^\| `(\w+)` \|", TEXT["conditions"].split("## In a")[0], re.M))
    assert listed == set(registry.CONDITIONS) | {"kind"}
    load_config(None, yaml.safe_load(blocks(ROOT / "docs" / "conditions.md", "yaml")[0]))


def test_the_training_of_the_documentation_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names = {
        "ss": ss,
        "parameterization": parameterization,
        "net": MLP(2),
        "x": torch.eye(64)[:, :2],
    }
    (block,) = blocks(ROOT / "docs" / "training.md", "python")
    exec(block.replace("clip=1.0)", "clip=1.0); first = run"), names)
    assert names["first"].step == 20
    assert names["run"].step == 2
    assert ss.load("runs/mine", names["model"]) is names["model"]


def test_the_sampler_of_the_documentation_has_the_order_it_says(capsys):
    names: dict[str, object] = {"__name__": "example"}
    found = blocks(ROOT / "docs" / "samplers.md", "python")
    assert "class Midpoint" in found[0]
    assert found[0].count("\n") <= 30
    for block in found:
        exec(block, names)
    assert float(capsys.readouterr().out) == pytest.approx(names["Midpoint"].order, abs=0.15)


def test_the_example_of_the_likelihood_is_exact(capsys):
    """Of a standard normal law in the plane: log2(2 pi e) / 2 = 2.05 bits a dimension."""
    torch.manual_seed(0)
    (block,) = blocks(ROOT / "docs" / "likelihood.md", "python")
    exec(block, {})
    value, error, _ = capsys.readouterr().out.split(" ", 2)
    assert abs(float(value) - 2.047) < 4 * float(error)


def test_the_example_of_the_evaluation_runs_and_every_metric_is_explained(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "evaluation.md", "python"):
        exec(block, {})
    _, posterior, first, second = capsys.readouterr().out.splitlines()
    p, covered, residual = map(float, posterior.split())
    assert 0 <= p <= 1
    assert 0.7 < covered <= 1
    assert residual > 1  # of a Gaussian heuristic on two modes
    assert (tmp_path / "calibration.png").exists()
    value, error, limit = map(float, first.split())
    assert 0 < float(second.split()[1]) < float(second.split()[0])
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
    text = " ".join(TEXT["training"].split())
    for words in (
        f"{found['kills']} times, and {found['resumes']} times it was resumed",
        f"None of the {found['files_read']:,} files",
        f"and {found['trainings_equal']} trainings",
    ):
        assert words in text


def test_the_speeds_are_the_stored_ones():
    text = TEXT["training"]
    for mode, found in stored("throughput")["modes"].items():
        speeds, best = found["images_per_second"], found["best_layout"]
        cells = [f"{speeds[name][best[name]]:.1f} ({best[name]})" for name in best]
        assert f"| {mode} | {' | '.join(cells)} | {found['ratio']:.2f} |" in text
        assert found["ratio"] >= 0.95  # as fast as the fastest peer, or nearly


def test_the_engine_takes_less_of_a_step_than_it_may():
    found = stored("engine_overhead")
    assert found["overhead_by_parts"] <= found["limit"]
    assert found["overhead"] <= found["limit"]
    text = " ".join(TEXT["training"].split())
    assert f"take {100 * found['overhead_by_parts']:.1f} % of a step" in text


def test_threads_that_sleep_do_not_suffer_beside_others_and_the_page_says_how_fast_they_are(
    monkeypatch,
):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    found = stored("threads")
    assert importlib.import_module("threads").table(found) in TEXT["design"]
    for rows in found["milliseconds"].values():
        one, two = rows["one thread"], rows["two threads that sleep"]
        assert all(two[what] < 1.5 * one[what] for what in one)


def test_the_figures_of_the_samplers_are_the_stored_ones():
    for trial in stored("samplers")["trials"]:
        assert f"{trial['relative']:.1e} ({trial['nfe']})" in SAMPLERS
    for title, rows in stored("stochastic").items():
        ours = rows["eab_sde points=3 eta=0.25 std=0.5 [arctan]"]
        assert " | ".join(f"{value:.1e}" for value in ours) in EXPERIMENTS, title
    for name, row in stored("overhead")["64x3x32x32"]["steps"].items():
        assert f"| {name} | {row['kind']} | {row['ratio']:.1f}" in EXPERIMENTS


def test_the_load_of_the_page_is_the_stored_one():
    found, text = stored("ui_load"), " ".join(TEXT["ui"].split())
    rounds, crowd = found["rounds"], found["crowd"]
    requests = sum(each["requests"] for each in rounds)
    assert all(each["answers"] == {"200 done": each["requests"]} for each in rounds)
    assert crowd["drawn_after_cancelling_all"]
    first, last = (round(each["memory_mib"]) for each in (rounds[0], rounds[-1]))
    assert last <= 1.02 * first
    cost = 1000 * sum(each["cpu_seconds"] for each in rounds) / requests
    for words in (
        f"({found['parameters'] / 1e6:.2f} million parameters)",
        f"pictures {found['first_picture']['cpu_seconds']:.1f} CPU seconds after",
        f"{requests} requests of 8 clients",
        f"with {cost:.0f} ms of CPU time each",
        f"holds {first} MiB after 200 of them and {last} MiB after {requests}",
        f"Of {crowd['asked']} long jobs at once {crowd['queued']} are",
        f"{crowd['refused']} refused",
    ):
        assert words in text


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


def test_the_ceilings_of_the_judges():
    judges = stored("judges")["judges"]
    names = list(judges["avatars"]["accuracy"]["test"])
    row = "| " + " | ".join(f"{100 * judges['avatars']['accuracy']['test'][n]:.1f}" for n in names)
    assert row in EVALUATION
    assert f"{round(judges['avatars']['cpu_seconds'])} CPU seconds" in EVALUATION
    pairs = judges["digit_pairs"]["accuracy"]
    for part, words in (("test", "test canvases"), ("held_out", "canvases of held-out pairs")):
        count = judges["digit_pairs"]["pictures"][part]
        assert f"{100 * pairs[part]['all']:.1f} % of {count} {words}" in EVALUATION


def test_the_tables_beside_diffusers_are_the_stored_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    text, times = TEXT["parity"], stored("interop")
    script = importlib.import_module("interop")
    assert script.pipeline_table(times["pipeline"]) in text
    assert script.table(times) in text
    few = [row for shape in ("1x4x64x64", "4096x2") for row in times[shape].values()]
    most = max((row["sample"] - 1) * row["theirs_us"] for row in few)
    assert f"up to {most:.0f}\nmicroseconds more" in text
    for row in times["pipeline"].values():
        assert row["ours"]["rest_ms"] <= row["theirs"]["rest_ms"]
        assert row["ours"]["step_ms"] <= 1.05 * row["theirs"]["step_ms"]
    found = stored("interop_likelihood")
    assert importlib.import_module("interop_likelihood").table(found) in text
    assert f"trained for {found['training']['cpu_seconds']} CPU seconds" in text
    coarse, gap = found["coarse"], found["above_the_sum"]["chain"]
    assert f"cost {coarse['lost_in_steps']:.2f} bits" in text
    assert f"the decoder {coarse['lost_in_decoder']:.2f}" in text
    assert abs(gap["mean"]) < 4 * gap["error"]
