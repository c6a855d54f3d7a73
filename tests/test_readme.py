"""What the README and the configurations claim is what the experiments stored."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def test_the_readme_quotes_the_stored_demonstration():
    text = (ROOT / "README.md").read_text()
    found = json.loads((RESULTS / "demo.json").read_text())
    quoted = [f"{found[k]:.3f}" for k in ("bits_per_dim", "bits_per_dim_given_class")]
    for sampler in found["samplers"].values():
        quoted += [f"{sampler['class_accuracy']:.1%}", f"{sampler['copy_rate']:.1%}"]
    missing = [number for number in quoted if number not in text]
    assert not missing


def test_the_stored_demonstration_meets_what_it_must_show():
    found = json.loads((RESULTS / "demo.json").read_text())
    assert found["bits_per_dim"] <= 2.0
    assert found["class_accuracy"] >= 0.95
    assert found["classifier_test_accuracy"] >= 0.98
    assert found["copy_rate"] < found["copy_rate_of_test_images"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_quotes_its_stored_result(path):
    text = path.read_text()
    launch = f"scoresde train --config configs/{path.name}"
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
    # The demonstration is the run of the class-conditional configuration.
    file = RESULTS / f"{'demo' if name == 'digits_vp_conditional' else name}.json"
    return [json.loads(file.read_text())["bits_per_dim"]] if file.exists() else []
