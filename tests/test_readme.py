"""What the README and the configurations claim is what the experiments stored."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def blocks(page, language):
    """The code blocks of a page in a language, one after the other."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_a_model_of_ones_own_is_trained_saved_loaded_drawn_scored_and_evaluated(
    tmp_path, monkeypatch, capsys
):
    """The first block of the README, in about twenty lines; 2.84 bits/dim are exact."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    first = blocks(ROOT / "README.md", "python")[0]
    assert sum(1 for line in first.splitlines() if line) <= 25
    names = {"__name__": "example"}
    exec(first, names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:3]] == ["recommended", "heun", "ancestral"]
    assert all(float(re.search(r"distance ([\d.]+)", line)[1]) < 0.3 for line in printed[:3])
    assert names["score"].bits_per_dim == pytest.approx(2.84, abs=0.1)
    assert (tmp_path / "runs" / "mine" / "metrics.jsonl").exists()


def test_the_other_blocks_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trained, parts = blocks(ROOT / "README.md", "python")[1:]
    names = {"__name__": "example"}
    exec(trained, names)
    assert names["drawn"].x.dtype == torch.uint8
    assert names["drawn"].label.tolist() == [3] * 4
    exec(parts, names)
    assert names["y"].shape == (256, 2)
    assert names["found"].log_prob.isfinite().all()


def test_the_readme_quotes_the_stored_demonstrations():
    text = (ROOT / "README.md").read_text()
    found = json.loads((RESULTS / "demo.json").read_text())
    quoted = [f"{found[k]:.3f}" for k in ("bits_per_dim", "bits_per_dim_given_sentence")]
    for accuracy in (*found["accuracy"].values(), found["judge_on_real_portraits"]):
        quoted += [f"{accuracy[name]:.1%}" for name in ("mood", "all")]
    quoted.append(f"{found['copy_rate']:.1%}")
    digits = json.loads((RESULTS / "demo_digits.json").read_text())
    quoted += [f"{digits['bits_per_dim']:.3f}", f"{digits['class_accuracy']:.1%}"]
    missing = [number for number in quoted if number not in text]
    assert not missing


def test_the_stored_demonstrations_meet_what_they_must_show():
    found = json.loads((RESULTS / "demo.json").read_text())
    best = list(found["accuracy"].values())[-1]
    easy = [value for name, value in best.items() if name not in ("mood", "all")]
    assert sum(easy) / len(easy) >= 0.95
    assert found["against"]["hat"]["said_against"] >= 0.95
    assert found["copy_rate"] < found["copy_rate_of_test_images"]
    assert found["bits_per_dim_given_sentence"] < found["bits_per_dim"]
    digits = json.loads((RESULTS / "demo_digits.json").read_text())
    assert digits["bits_per_dim"] <= 2.0
    assert digits["class_accuracy"] >= 0.95
    assert digits["classifier_test_accuracy"] >= 0.98
    assert digits["copy_rate"] < digits["copy_rate_of_test_images"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_quotes_its_stored_result(path):
    text = path.read_text()
    command = "train-autoencoder" if "\nautoencoder:" in text else "train"
    launch = f"scoresde {command} --config configs/{path.name}"
    assert launch in text.split("\ndata:")[0]
    found = stored(path.stem)
    if not found:
        assert not re.search(r"# Reached.*\d\.\d{3}", text), "a number without a stored result"
    assert all(f"{value:.3f} +- " in text for value in found)


def stored(name):
    """The bits per dimension that an experiment stored for a configuration."""
    bounds = json.loads((RESULTS / "bits.json").read_text()).get(name)
    if bounds is not None:
        return [bounds[way]["bits_per_dim"] for way in ("flow", "elbo")]
    images = json.loads((RESULTS / "images.json").read_text()).get(name)
    if images is not None:
        return [images["bits_per_dim"]]
    # The smaller demonstration is the run of the class-conditional configuration.
    file = RESULTS / f"{'demo_digits' if name == 'digits_vp_conditional' else name}.json"
    return [json.loads(file.read_text())["bits_per_dim"]] if file.exists() else []
