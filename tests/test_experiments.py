"""The experiments measure what they say."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

from scoresde import VP
from scoresde.config import build_dataset, build_model, build_plan, load_config
from scoresde.data import Dataset, Scaling, Split, avatars
from scoresde.evaluation import Judge, fit_classifier
from scoresde.registry import PARAMETERIZATIONS
from scoresde.testing import Mixture
from scoresde.training import describe


@pytest.fixture
def script(monkeypatch):
    """The scripts, by name."""
    root = importlib.import_module("tests.test_readme").ROOT
    monkeypatch.syspath_prepend(root / "experiments")
    return importlib.import_module


def test_the_ablation_takes_for_equal_only_what_is_the_same_loss(script):
    ablation = script("ablation")
    data = build_dataset(ablation.configured(ablation.Cell("v", "unit"), 0, 100).data)
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)

    def on_x0(cell):
        config = ablation.configured(cell, 0, 100)
        weight = build_plan(config, data).weight
        if weight is not None:
            return weight(VP(), t)
        return PARAMETERIZATIONS[cell.parameterization]()(VP(), t).out ** -2

    parameterizations = (*ablation.PARAMETERIZATIONS, "score")
    every = [ablation.Cell(p, w) for p in parameterizations for w in ablation.WEIGHTINGS]
    for cell in every:
        torch.testing.assert_close(on_x0(cell), on_x0(ablation.same_as(cell)))
    losses = {c: tuple(on_x0(c).tolist()) for c in every if c.parameterization == "v"}
    assert len(set(losses.values())) == len(losses)


def test_the_error_by_level_is_that_of_the_exact_denoiser(script):
    """Of Gaussian data of deviation s it is s^2 / (s^2 + r^2) at r = sigma / alpha."""
    std, n, ratios = 0.5, 4000, torch.tensor([0.05, 0.5, 5.0])
    x = std * torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = Mixture(torch.ones(1), torch.zeros(1, 4), torch.full((1, 4), std))
    data = Dataset("normal", Split(x), Split(x), Scaling(None), None)
    model = type("Exact", (), {"sde": VP(), "denoiser": lambda self: exact.denoiser(VP())})()
    found = script("judging").errors_by_level(model, data.test, data, ratios)
    expected = std**2 / (std**2 + ratios.double() ** 2)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), expected, rtol=0.05, atol=0
    )


def test_guided_samples_are_judged_by_laws(script):
    """The test images in the samples' place are as good as can be, and guidance 1 is none."""
    guidance_scale, judging = script("guidance_scale"), script("judging")
    config = load_config(None, {"conditional": True, "network.width": 8, "network.blocks": 1})
    data = build_dataset(config.data)
    data = replace(data, test=data.test.take(torch.arange(40)))
    classifier = fit_classifier(data.train.x, data.train.label, 10, steps=2)
    judge = judging.Judge(data, classifier, classifier.features(data.test.x))
    found = guidance_scale.judged(judge, data.test.x, classifier.predict(data.test.x))
    assert (found["precision"], found["recall"], found["accuracy"]) == (1, 1, 1)
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["accuracy_error"] == 0
    model = build_model(config, data)
    model.data = describe(data)
    plain, same, none = (
        guidance_scale.at_scale(model.eval(), judge, 20, scale, interval)
        for scale, interval in ((1.0, None), (5.0, (1e5, 1e6)), (0.0, None))
    )
    keys = ("nfe", "accuracy", *guidance_scale.METRICS)
    assert [plain[key] for key in keys] == [same[key] for key in keys]
    assert none["accuracy"] is None


def test_the_page_quotes_the_stored_guidance_scales(script):
    guidance_scale = script("guidance_scale")
    stored = json.loads(guidance_scale.STORE.read_text())
    page = (guidance_scale.HERE.parent / "docs" / "experiments.md").read_text()
    assert all(guidance_scale.table(result) in page for result in stored.values())
    best = max(row["accuracy"] or 0 for row in stored["digits"]["rows"])
    assert best >= 0.985


def test_memory_is_linear_in_the_images(script):
    needs = script("needs")
    config = load_config(None, {"network.width": 8})
    model = build_model(config, needs.GREY)
    one, two, three = (needs.saved(config, needs.GREY, model, n) for n in (1, 2, 3))
    assert three - two == two - one == needs.activations(config, needs.GREY, model)


@pytest.mark.parity
def test_networks_compared_on_a_gpu_have_equal_sizes(script):
    gpu = script("gpu")
    ours, peers = (gpu.size_of(make, 32) for make in (gpu.Size().ours, gpu.Size().peer))
    for name, size in ours.items():
        assert size == pytest.approx(peers[name], rel=0.05)


@pytest.mark.parity
@pytest.mark.slow
def test_the_experiment_for_a_gpu_works_on_a_cpu(script, monkeypatch, tmp_path):
    gpu, out = script("gpu"), tmp_path / "gpu.json"
    flags = ["--device", "cpu", "--small", "--minutes", "4", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["gpu.py", *flags])
    gpu.main()
    found = json.loads(out.read_text())
    assert found.keys() >= {"training", "fit", "sampling", "likelihood", "tests"}
    assert found["tests"]["failures"] == []
    assert "left_out" not in found


def test_the_hidden_combination_is_asked_for_and_never_trained_on(script):
    sentences = script("sentences")
    data = sentences.without_hidden(avatars(partial=0.4))
    said = sentences.texts_of(data.train).sentences
    assert not [text for text in said if all(words in text for words in sentences.HIDDEN)]
    assert 6800 < len(data.train) < 7000
    words = set(" ".join(said).replace(",", "").split())
    for text in sentences.hidden_sentences(data, 50):
        assert all(words in text for words in sentences.HIDDEN)
        assert set(text.replace(",", "").split()) <= words
        assert " an purple" not in text
    for text in sentences.open_sentences(data, 50):
        assert "shirt" in text
        assert not any(word in text for word in ("glasses", "hat", "beard", "background"))


def test_the_page_quotes_the_stored_edits(script):
    editing = script("editing")
    stored = json.loads(editing.STORE.read_text())
    page = (editing.RESULTS.parent.parent / "docs" / "editing.md").read_text()
    assert all(table in page for table in editing.tables(stored))
    restoring = script("restoring")
    found = json.loads(restoring.STORE.read_text())
    assert all(restoring.table(result) in page for result in found.values())
    for name in ("digits", "mnist"):
        read = {row["method"]: row["read"] for row in found[name]["rows"]}
        assert max(read[method] for method in restoring.METHODS) > read["upper half"] + 0.2
    strengths = stored["strengths"]
    assert strengths["0"]["nfe"] == 0
    assert strengths["0"]["correlation"] == pytest.approx(1)
    assert abs(strengths["1"]["correlation"]) < 0.05
    left = [found["correlation"] for found in strengths.values()]
    assert left == sorted(left, reverse=True)
    assert len({found["nfe"] for strength, found in strengths.items() if strength != "0"}) == 1


def test_pairs_are_right_or_swapped(script):
    """A judge that reads what the pictures hold finds the shares that were put in."""
    latent = script("latent_sentences")
    pair = torch.tensor([[1, 2], [1, 2], [3, 3], [4, 5]])
    read = torch.tensor([[1, 2], [2, 1], [3, 3], [4, 6]])
    columns = {"left": pair[:, 0], "right": pair[:, 1], "template": torch.tensor([0, 0, 1, 1])}
    asked = Split(torch.zeros(4, 1), columns=columns)
    found = latent.pairs_right(Judge(("left", "right"), lambda x: x), read, asked, ("a", "b"))
    assert (found["right"], found["swapped"]) == (0.5, 0.25)
    assert found["by_template"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("name", ["autoencoders", "latent_likelihood", "latent_sentences"])
def test_the_page_quotes_what_latents_reach(script, name):
    module = script(name)
    stored = json.loads(module.STORE.read_text())
    page = (module.HERE.parent / "docs" / "experiments.md").read_text()
    tables = module.tables(stored)
    assert tables
    assert all(table in page for table in tables)
