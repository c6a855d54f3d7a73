"""``ss.score`` and ``ss.evaluate``: models and data of one's own, closed forms, interruptions."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import scoresde as ss
from scoresde import parameterization
from scoresde.data import DataError, Split, dataset_of, digits
from scoresde.evaluation.metrics import METRICS
from scoresde.registry import Scoring
from scoresde.runs.score import Stopped
from scoresde.runs.score_report import page, report_of
from scoresde.training.checkpoint import DataDescription

MEAN, STD = torch.tensor([5000.0, 3.0]), torch.tensor([1000.0, 0.001])


class Nothing(nn.Module):
    """v = 0, which is the exact model of a standard normal law under VP."""

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label=None) -> torch.Tensor:
        return x * 0


class Apart(nn.Module):
    """x0 = 0 or 2, by the label."""

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label=None) -> torch.Tensor:
        return x * 0 if label is None else x * 0 + 2.0 * label[:, None]


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return MEAN + STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model() -> ss.ScoreModel:
    """A model of one's own, which knows the scale of its data."""
    made = ss.ScoreModel(Nothing(), ss.VP(), parameterization.v).eval()
    data = dataset_of(normal(400))
    made.data = DataDescription("normal", (2,), data.scaling)
    return made


def truth(model: ss.ScoreModel, x: torch.Tensor) -> torch.Tensor:
    scaling = model.data.scaling
    law = torch.distributions.Normal(*map(torch.tensor, (scaling.shift, scaling.scale)))
    return law.log_prob(x).sum(1).double()


class TestScore:
    @pytest.mark.parametrize("settings", [{}, {"method": "adaptive"}, {"trace": "exact"}])
    def test_nats_in_the_units_of_the_data(self, model, settings):
        x = normal(50, 1)
        found = ss.score(model, x, **settings)
        torch.testing.assert_close(found.log_prob, truth(model, x), rtol=0, atol=0.02)
        bits = -found.log_prob / 2 / math.log(2)
        assert found.bits_per_dim == pytest.approx(float(bits.mean()))
        assert found.standard_error == pytest.approx(float(bits.std()) / math.sqrt(50))

    def test_the_report_counts_what_stays_uncertain(self, model):
        found = ss.score(model, normal(6), tolerance=1e-9)
        assert (found.solver_error > 1e-9).all()
        report = report_of(found)
        assert report["uncertain"] == {"examples": 6, "above_nats": 1e-9}
        assert "6 of 6 examples uncertain by more than 1e-09 nats" in " ".join(
            page(report).split()
        )
        certain = report_of(ss.score(model, normal(6)))
        assert certain["uncertain"]["examples"] == 0
        assert "uncertain" not in page(certain)
        assert report_of(ss.score(model, normal(6), method="adaptive"))["uncertain"] is None

    def test_the_bound_of_standardised_data_is_tight(self, model):
        x = normal(400, 1)
        found = ss.score(model, x, method="elbo", times=64)
        assert float((found.log_prob - truth(model, x)).mean()) == pytest.approx(0, abs=0.1)

    def test_the_cost_of_the_prior_is_found_in_model_units(self, model):
        report = report_of(ss.score(model, normal(20)))
        assert 0 <= report["prior_gap"] < 1e-3

    def test_data_from_anywhere(self, model, tmp_path):
        x = normal(30)
        np.save(tmp_path / "x.npy", x.numpy())
        expected = ss.score(model, x).log_prob
        for source in (x.numpy(), Split(x), tmp_path / "x.npy", str(tmp_path / "x.npy")):
            torch.testing.assert_close(ss.score(model, source).log_prob, expected)
        data = dataset_of(x)
        assert len(ss.score(model, data).log_prob) == 3
        assert len(ss.score(model, data, split="train", num=5).log_prob) == 5

    def test_labels_condition_only_models_that_know_classes(self, model):
        x, label = normal(6), torch.arange(6) % 2
        torch.testing.assert_close(
            ss.score(model, (x, label)).log_prob, ss.score(model, x).log_prob
        )
        assert not ss.score(model, (x, label)).job.conditional
        model.data = DataDescription("normal", (2,), model.data.scaling, ("0", "1"))
        assert ss.score(model, (x, label)).job.conditional

    def test_a_model_is_scored_in_evaluation_mode(self, model):
        model.net.dropout = nn.Dropout(0.5)
        model.net.forward = lambda x, noise: model.net.dropout(x)
        expected = ss.score(model, normal(6)).log_prob
        model.train()
        torch.testing.assert_close(ss.score(model, normal(6)).log_prob, expected)
        assert model.net.dropout.training

    def test_one_label_is_that_of_every_example(self, model):
        apart = ss.ScoreModel(Apart(), ss.VP(), parameterization.x0)
        apart.data = DataDescription("normal", (2,), model.data.scaling, ("cat", "dog"))
        x = normal(6)
        dogs = ss.score(apart, (x, ["dog"] * 6)).log_prob
        assert float((dogs - ss.score(apart, (x, ["cat"] * 6)).log_prob).abs().min()) > 0.1
        for label in ("dog", 1, torch.tensor(1), np.int8(1)):
            torch.testing.assert_close(ss.score(apart, x, label=label).log_prob, dogs)

    def test_labels_condition_a_model_of_ones_own_that_takes_them(self, model):
        apart = ss.ScoreModel(Apart(), ss.VP(), parameterization.x0)
        x = torch.zeros(2, 2)
        found = ss.score(apart, (x, [0, 1]))
        assert found.job.conditional
        model.data = None
        assert ss.score(model, (x, [0, 1])).job.conditional
        with pytest.raises(ValueError, match="conditional: data has no numbers as labels"):
            ss.score(apart, (x, ["cat", "dog"]))

    def test_examples_of_one_number_may_be_a_row(self):
        x = 100 + 7 * torch.randn(50, generator=torch.Generator().manual_seed(0))
        made = ss.ScoreModel(Nothing(), ss.VP(), parameterization.v)
        made.data = DataDescription("row", (1,), dataset_of(x).scaling)
        expected = truth(made, x[:, None])
        torch.testing.assert_close(ss.score(made, x).log_prob, expected, rtol=0, atol=0.02)

    def test_what_was_drawn(self, model):
        drawn = ss.draw(model, 6, nfe=6)
        expected = ss.score(model, drawn.x).log_prob
        torch.testing.assert_close(ss.score(model, drawn).log_prob, expected)

    @pytest.mark.parametrize("change", ["scaling", "parameterization"])
    def test_values_of_another_model_are_not_taken_over(self, model, tmp_path, change):
        out = tmp_path / "out"
        with pytest.raises(Stopped):
            ss.score(model, normal(20), batch=8, out=out, stopping=lambda: True)
        if change == "scaling":
            scaling = dataset_of(normal(50)).scaling
            model.data = DataDescription("normal", (2,), scaling)
        else:
            model.parameterization = parameterization.flow
        with pytest.raises(ValueError, match="left by other weights, data or settings"):
            ss.score(model, normal(20), batch=8, out=out, resume=True)

    def test_without_a_description_x_is_in_model_units(self, model):
        model.data = None
        x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        law = torch.distributions.Normal(0.0, 1.0)
        found = ss.score(model, x).log_prob
        torch.testing.assert_close(found, law.log_prob(x).sum(1).double(), rtol=0, atol=0.01)
        with pytest.raises(ValueError, match="data: the model does not say"):
            ss.score(model, "x.npy")

    def test_stopped_and_resumed_is_the_same(self, model, tmp_path):
        x, out = normal(20), tmp_path / "out"
        whole = ss.score(model, x, batch=8)
        with pytest.raises(Stopped, match="8 of 20 examples scored, kept in"):
            ss.score(model, x, batch=8, out=out, stopping=lambda: True)
        with pytest.raises(ValueError, match="resume=True, or overwrite=True"):
            ss.score(model, x, batch=8, out=out)
        again = ss.score(model, x, batch=8, out=out, resume=True)
        torch.testing.assert_close(again.log_prob, whole.log_prob)
        assert not list(out.iterdir())

    @pytest.mark.parametrize(
        ("named", "words"),
        [
            ({"tracee": "exact"}, "did you mean 'trace'"),
            ({"trace": "exakt"}, "need trace one of"),
            ({"num": 0}, "need num >= 1, got num=0"),
            ({"num": 7}, "num: there are 6"),
            ({"num": 2.5}, "need a whole number, got num=2.5"),
            ({"steps": "16"}, "need a whole number, got steps='16'"),
            ({"seed": -1}, "need seed >= 0"),
            ({"split": "val"}, "need split one of test, train, got 'val'"),
            ({"label": 1}, "label: this model was trained without classes"),
            ({"resume": True}, "resume and overwrite need out"),
            ({"conditional": True}, "conditional: data has no labels; give label"),
            ({"t0": 5.0}, "t0: need"),
            ({"resume": True, "overwrite": True, "out": "x"}, "exclude each other"),
        ],
    )
    def test_refusals_name_arguments(self, model, named, words):
        with pytest.raises(ValueError, match=words) as found:
            ss.score(model, normal(6), **named)
        assert "--" not in str(found.value)

    def test_classes_that_the_model_has_not(self, model):
        data = dataset_of(normal(40), [0, 1] * 20)
        with pytest.raises(ValueError, match="has not the classes of normal"):
            ss.score(model, data, conditional=True)

    def test_only_a_score_model_is_scored(self, model):
        with pytest.raises(ValueError, match="model: Denoiser is none; give a ScoreModel"):
            ss.score(model.denoiser(), normal(6))

    def test_numbers_that_are_not_finite(self, model):
        with pytest.raises(DataError, match="x: 2 values are NaN"):
            ss.score(model, torch.full((1, 2), math.nan))

    def test_settings_as_an_object(self, model):
        x, settings = normal(4), Scoring(method="adaptive", rtol=1e-3)
        found = ss.score(model, x, settings=settings, atol=1e-3)
        assert found.job.settings == Scoring(method="adaptive", rtol=1e-3, atol=1e-3)


class TestEvaluate:
    def test_a_tensor_against_a_tensor(self):
        found = ss.evaluate(normal(60, 1), normal(80, 2), resamples=10)
        assert {"precision", "recall", "sliced"} <= set(found)
        assert found["sliced"].value > 0
        assert found["sliced"].error > 0
        assert found["sliced"].real is None

    def test_drawn_samples_and_a_data_set(self, model):
        data = dataset_of(normal(200))
        drawn = ss.draw(model, 40, nfe=6)
        found = ss.evaluate(drawn, data, ("frechet", "copies"), against="train")
        assert list(found) == ["frechet", "copies"]
        assert found["frechet"].value >= 0
        assert found["frechet"].real is not None

    def test_classes_of_images_need_no_data_set(self):
        data = digits()
        found = ss.evaluate(data.train.x[:50], data.test.x, "recall", features="pixels")
        assert 0 <= found["recall"].value <= 1
        assert found["recall"].references == 360

    def test_a_row_of_numbers_is_examples_of_one_number(self):
        x, y = normal(60, 1)[:, 0], normal(80, 2)[:, 0]
        expected = ss.evaluate(x[:, None], y[:, None], "frechet", resamples=0)
        assert ss.evaluate(x, y, "frechet", resamples=0) == expected

    def test_metrics_between_commas(self):
        assert list(ss.evaluate(normal(9), normal(9), "kid, frechet")) == ["kid", "frechet"]

    @pytest.mark.parametrize("kind", ["classes", "parts", "zip", "arrays"])
    def test_references_at_a_path_are_all_that_lie_there(self, tmp_path, kind):
        pictures = torch.randint(0, 256, (40, 4, 4), generator=torch.Generator().manual_seed(0))
        pictures = pictures.to(torch.uint8).numpy()
        folders = ["train/a", "train/b", "test/a", "test/b"] if kind == "parts" else ["a", "b"]
        path, root = tmp_path / "set", tmp_path / "set"
        for k, picture in enumerate(pictures):
            file = root / folders[k % len(folders)] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        if kind == "zip":
            path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
        if kind == "arrays":
            path = tmp_path / "arrays"
            path.mkdir()
            np.save(path / "x.npy", pictures)
        options = {"features": "pixels", "resamples": 0}
        found = ss.evaluate(pictures[:20], path, "frechet", **options)["frechet"]
        expected = ss.evaluate(pictures[:20], pictures, "frechet", **options)["frechet"]
        assert found.references == 40
        assert found.value == pytest.approx(expected.value)

    def test_samples_in_an_archive(self, tmp_path):
        pictures = digits().test.x[:20] * 15
        (tmp_path / "set").mkdir()
        for k, picture in enumerate(pictures[:, 0].numpy()):
            Image.fromarray(picture).save(tmp_path / "set" / f"{k:03}.png")
        path = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")
        options = {"features": "pixels", "resamples": 0}
        found = ss.evaluate(path, pictures, "frechet", **options)["frechet"]
        assert found == ss.evaluate(pictures, pictures, "frechet", **options)["frechet"]

    @pytest.mark.parametrize(
        ("named", "words"),
        [
            ({"against": "val"}, "need against one of test, train, got 'val'"),
            ({"resamples": 2.5}, "need a whole number, got resamples=2.5"),
            ({"resamples": 1}, "resamples: need 0, or at least 2"),
            ({"seed": "a"}, "need a whole number, got seed='a'"),
        ],
    )
    def test_refusals_name_arguments(self, named, words):
        with pytest.raises(ValueError, match=words):
            ss.evaluate(normal(9), dataset_of(normal(40)), "kid", **named)

    def test_a_negative_distance_says_why(self):
        seeds = (ss.evaluate(normal(60, k), normal(60, k + 50), "mmd") for k in range(20))
        negative = next(row for found in seeds if (row := found["mmd"]).value < 0)
        assert any("unbiased" in note for note in negative.notes)

    @pytest.mark.parametrize(
        ("samples", "reference", "metrics", "words"),
        [
            (normal(9), normal(9), "kidd", "metrics: unknown name 'kidd'; did you mean 'kid'"),
            (normal(9)[:, :1], normal(9), "kid", r"the data needs \(N, 2\)"),
            (normal(9) * math.nan, normal(9), "kid", "NaN"),
            (normal(9), normal(9) * math.nan, "kid", "NaN"),
            (normal(3), normal(9), "kid", "kid needs 4 samples"),
            (normal(9), normal(9), "FID", "unknown name 'FID'; did you mean 'frechet'"),
            (normal(9), normal(9), [], "metrics: names nothing"),
            (dataset_of(normal(9)), normal(9), "kid", "has two parts; give its train or its test"),
        ],
    )
    def test_refusals(self, samples, reference, metrics, words):
        with pytest.raises(ValueError, match=words):
            ss.evaluate(samples, reference, metrics)


@pytest.mark.parametrize("name", list(METRICS))
@pytest.mark.parametrize("where", ["samples", "references"])
def test_every_metric_refuses_what_is_not_finite(name, where):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 60, 3, generator=g)
    (x if where == "samples" else y)[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 of 60 .* not finite"):
        METRICS[name].compare(x, y, 0, g)
