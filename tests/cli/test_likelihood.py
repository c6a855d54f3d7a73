"""``scoresde likelihood``: closed forms of the normal law, dequantisation, reports, refusals."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal

import scoresde as ss
from scoresde.cli import likelihood as module
from scoresde.cli.main import main
from scoresde.config import build_dataset
from scoresde.data import Scaling, Split, digits
from scoresde.progress import silent
from scoresde.registry import Scoring
from scoresde.runs import score as library
from scoresde.runs import score_report, scoring
from scoresde.runs.load import load_run
from scoresde.runs.log import Quiet
from scoresde.runs.score import Scores
from scoresde.runs.scoring import Job, Values

EXACT = Scoring(trace="exact", batch=4)


def score(capsys, checkpoint: Path, *flags: str) -> dict[str, float]:
    argv = ["likelihood", "--checkpoint", str(checkpoint), "--device", "cpu", "--json", *flags]
    assert main(argv) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys, checkpoint: Path, *flags: str, code: int = 2) -> str:
    argv = ["likelihood", "--checkpoint", str(checkpoint), "--device", "cpu", *flags]
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1
    return error


def normal_nats(x: torch.Tensor) -> torch.Tensor:
    return Normal(0.0, 1.0).log_prob(x.double()).flatten(1).sum(1)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    """A run on the latents of digits, whose codec has a law of pictures."""
    out = tmp_path_factory.mktemp("latents")
    net = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": []}
    kl = {"kind": "kl", "latent_channels": 2, "widths": [8], "groups": 4, "law": "logistic"}
    train = {"steps": 2, "batch": 8}
    quiet = {"listener": Quiet(), "progress": silent}
    ss.train_autoencoder({"autoencoder": kl, "train": train}, out=out / "codec", **quiet)
    found = ss.train(
        {"network": net, "train": train}, codec=out / "codec", out=out / "run", **quiet
    )
    return found.folder


class TestLatents:
    def test_pictures_with_the_parts_of_their_bound(self, latents, capsys, tmp_path):
        flags = ("--num", "4", "--out", str(tmp_path), "--likelihood.repeats", "2")
        flags += ("--likelihood.steps", "12")
        found = score(capsys, latents, *flags)
        parts = {name: part["bits_per_dim"] for name, part in found["parts"].items()}
        total = parts["distortion"] + parts["rate"]
        assert found["bits_per_dim"] == pytest.approx(total)
        assert found["levels"] == 17
        values = np.load(tmp_path / "values.npz")
        assert values["rate_bits_per_dim"].mean() == pytest.approx(parts["rate"])
        # The library gives the same numbers, from the file alone.
        of_library = library.score(
            load_run(latents).model, digits().test, num=4, repeats=2, steps=12
        )
        assert of_library.bits_per_dim == pytest.approx(found["bits_per_dim"], abs=1e-4)

    def test_latents_alone(self, latents, capsys):
        found = score(capsys, latents, "--num", "4", "--likelihood.of", "latents")
        assert found["parts"] is None
        assert found["levels"] is None
        assert "picture" not in found["is"]

    def test_relative_is_for_codecs_only(self, points, capsys):
        said = refusal(capsys, points, "--likelihood.relative", "true")
        assert "likelihood.relative=true: this model has no codec" in said


class TestScores:
    def test_points_of_a_normal_model(self, points):
        run = load_run(points)
        split = build_dataset(run.config.data).test
        scores = library.score(run.model, split, settings=EXACT)
        assert torch.allclose(scores.log_prob, normal_nats(split.x), atol=2e-4)
        assert torch.allclose(scores.bits, -scores.log_prob / 2 / math.log(2), atol=1e-12)
        assert score_report.report_of(scores)["offset"] == 0

    @pytest.mark.parametrize("trace", ["exact", "hutchinson"])
    def test_along_the_path_of_a_normal_model(self, points, trace):
        """Its Jacobian is diagonal, where probes of signs are exact."""
        run = load_run(points)
        split = build_dataset(run.config.data).test
        settings = Scoring(method="path", trace=trace, steps=60, batch=4)
        scores = library.score(run.model, split, settings=settings)
        assert torch.allclose(scores.log_prob, normal_nats(split.x), atol=2e-4)
        assert scores.nfe == 60 + 3

    def test_a_pixel_is_scored_within_its_level(self, images):
        """log p of a level lies between its least and its largest density times its width."""
        run = load_run(images)
        scaling = run.data.scaling
        level = torch.arange(9, 17, dtype=torch.uint8)  # x > 0, where the density falls
        split = Split(level.reshape(8, 1, 1, 1).expand(8, 1, 8, 8).contiguous())
        scores = library.score(run.model, split, settings=EXACT)
        edges = [scaling.low + scaling.step * (level + u).double() for u in (0.0, 1.0)]
        most, least = (-(Normal(0.0, 1.0).log_prob(x) + math.log(scaling.step)) for x in edges)
        assert bool((scores.bits * math.log(2) > most - 1e-4).all())
        assert bool((scores.bits * math.log(2) < least + 1e-4).all())
        assert score_report.report_of(scores)["offset"] == pytest.approx(math.log2(17 / 2))

    @pytest.mark.parametrize("method", ["rk4", "path"])
    @pytest.mark.parametrize("trace", ["exact", "hutchinson"])
    def test_a_score_depends_on_its_example_and_the_seed_alone(self, wild, trace, method):
        run = load_run(wild)
        split = build_dataset(run.config.data).test.take(torch.arange(3))
        steps = 4 if method == "rk4" else 12
        settings = {"trace": trace, "method": method, "steps": steps, "repeats": 2}
        settings |= {"check": 0, "tolerance": 1e6}  # finer paths of a wild network are long

        def bits(batch: int, seed: int) -> torch.Tensor:
            chosen = Scoring(**settings, batch=batch)
            return library.score(run.model, split, settings=chosen, seed=seed).bits

        assert torch.allclose(bits(2, 0), bits(3, 0), rtol=1e-5)
        assert not torch.allclose(bits(3, 0), bits(3, 1), rtol=1e-5)

    def test_repeats_average_the_draws(self, images):
        run = load_run(images)
        split = build_dataset(run.config.data).test.take(torch.arange(4))

        def spread(repeats: int) -> float:
            settings = Scoring(trace="exact", method="euler", steps=1, repeats=repeats)
            several = [
                library.score(run.model, split, settings=settings, seed=s).bits for s in range(12)
            ]
            return float(torch.stack(several).std(0).mean())

        assert spread(8) < 0.6 * spread(1)

    def test_labels_condition(self, wild):
        run = load_run(wild)
        split = build_dataset(run.config.data).test.take(torch.arange(3))
        settings = Scoring(method="rk4", steps=3)
        plain, given = (
            library.score(run.model, split, settings=settings, conditional=c).bits
            for c in (False, True)
        )
        assert not torch.allclose(plain, given)

    def test_the_error_is_that_of_the_mean(self, points):
        run = load_run(points)
        job = Job(run.model, build_dataset(run.config.data).test, Scaling(None), EXACT)

        def error(bits: list[float]) -> float:
            values = Values.empty(len(bits))
            nats = -torch.tensor(bits) * 2 * math.log(2)
            values.put(torch.arange(len(bits)), {"nats": nats})
            return Scores(job, values, 0.0).standard_error

        assert error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3 / 4))
        assert math.isnan(error([1.0]))


class TestCommand:
    def test_every_test_image_is_counted(self, images, capsys):
        flags = ("--likelihood.method", "euler", "--likelihood.steps", "1")
        report = score(capsys, images, *flags)
        assert report["examples"] == 360
        assert report["dequantisation"] == "uniform"
        assert report["nfe"] == 1

    def test_csv_agrees_with_the_report(self, points, capsys, tmp_path):
        file = tmp_path / "scores.csv"
        report = score(capsys, points, "--csv", str(file))
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == report["examples"] == 20
        mean = sum(float(row["bits_per_dim"]) for row in rows) / 20
        assert mean == pytest.approx(report["bits_per_dim"])
        assert {row["label"] for row in rows} == {"0", "1"}

    def test_continuous_data_say_so(self, points, capsys):
        assert main(["likelihood", "--checkpoint", str(points), "--num", "3"]) == 0
        page = capsys.readouterr().out
        assert "nats per sample" in page
        assert "units of the data" in page

    def test_pixels_say_their_dequantisation(self, images, capsys):
        flags = ["--likelihood.method", "euler", "--likelihood.steps", "1", "--num", "2"]
        assert main(["likelihood", "--checkpoint", str(images), *flags]) == 0
        page = capsys.readouterr().out
        assert "uniform dequantisation" in page
        assert "would have 3.0875 bits less" in page
        assert "bits/dim, 95% interval" in page

    def test_fixed_steps_have_no_tolerance(self, points, capsys):
        flags = ["--likelihood.method", "rk4", "--likelihood.steps", "7", "--num", "1"]
        assert main(["likelihood", "--checkpoint", str(points), *flags]) == 0
        page = capsys.readouterr().out
        assert "rk4, 7 steps" in page
        assert "rtol" not in page

    def test_one_example_has_no_error(self, points, capsys):
        report = score(capsys, points, "--num", "1")
        assert report["bits_per_dim_se"] is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--num", "0"), "--num"),
            (("--seed", "-1"), "--seed: must be greater than or equal to 0"),
            (("--csv", ""), "--csv: empty"),
            (("--num", "21"), "there are 20 examples"),
            (("--conditional",), "trained without classes"),
            (("--csv", "none/scores.csv"), "--csv: none/scores.csv: no such folder"),
            (("--data", "digits"), "the model was trained on"),
            (("--likelihood.rtol", "0"), "--likelihood.rtol"),
            (("--likelihood.method", "rk5"), "--likelihood.method"),
        ],
    )
    def test_bad_flags(self, points, capsys, flags, words):
        assert words in refusal(capsys, points, *flags)

    def test_a_model_that_never_did_without_a_class(self, unlabelled, capsys):
        flags = ("--likelihood.method", "euler", "--likelihood.steps", "1", "--num", "1")
        assert "give --conditional" in refusal(capsys, unlabelled, *flags)
        assert score(capsys, unlabelled, "--conditional", *flags)["conditional"]

    @pytest.mark.parametrize("where", ["folder", "file/scores.csv", "missing/scores.csv"])
    def test_a_csv_that_cannot_be_written(self, points, tmp_path, capsys, monkeypatch, where):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("mine")
        monkeypatch.setattr(module, "load_chosen", None)  # refused before anything is read
        assert str(tmp_path / where) in refusal(capsys, points, "--csv", str(tmp_path / where))

    def test_a_full_disk_keeps_the_earlier_csv_and_the_report(
        self, points, tmp_path, capsys, monkeypatch
    ):
        def full(*args):
            raise OSError(28, "No space left on device")

        file = tmp_path / "scores.csv"
        file.write_text("earlier")
        monkeypatch.setattr(os, "replace", full)
        argv = ["likelihood", "--checkpoint", str(points), "--num", "2", "--csv", str(file)]
        assert main(argv) == 1
        captured = capsys.readouterr()
        assert "2 examples" in captured.out
        assert f"{file}: No space left on device; free some space" in captured.err
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(file.name, "earlier")]

    @pytest.mark.parametrize("flag", ["--data.seed", "--data.holdout"])
    def test_another_split_of_the_same_data(self, split_points, capsys, flag):
        same, other = {"--data.seed": ("0", "1"), "--data.holdout": ("0.1", "0.4")}[flag]
        assert "would take training examples" in refusal(capsys, split_points, flag, other)
        assert score(capsys, split_points, flag, same)["examples"] == 2

    def test_too_few_nodes(self, points, capsys):
        flags = ("--likelihood.method", "path", "--likelihood.steps", "11")
        assert "needs steps >= 12" in refusal(capsys, points, *flags)

    def test_a_tolerance_that_cannot_be_reached(self, wild, capsys):
        flags = ("--likelihood.rtol", "1e-15", "--likelihood.atol", "1e-300", "--num", "1")
        flags += ("--likelihood.method", "dopri5")
        message = refusal(capsys, wild, *flags, code=1)
        assert "torchdiffeq dopri5" in message
        assert "loosen rtol and atol" in message


CHEAP = ("--likelihood.method", "euler", "--likelihood.steps", "1", "--likelihood.check", "3")


class TestReport:
    def test_errors_of_images_draws_and_solver_are_told_apart(self, wild, capsys):
        flags = ("--likelihood.steps", "24", "--num", "6", "--likelihood.check", "4", "--bound")
        report = score(capsys, wild, *flags)
        low, high = report["interval"]
        assert low < report["bits_per_dim"] < high
        assert 0 < report["draws_se"] < report["bits_per_dim_se"]
        assert report["solver_error"]["examples"] == 4
        assert report["solver_error"]["change"] != 0
        assert report["lower_bound"]["is"].startswith("variational lower bound")
        assert report["is"].startswith("uniform dequantisation")
        first, doubt = report["warnings"]
        assert first == "the first 6 examples only"
        assert doubt.startswith("the interval cannot be trusted: 6 values are too few")
        assert 0 < report["prior_gap"] < 1e-3

    def test_without_a_check_nothing_is_said_of_draws_and_solver(self, points, capsys):
        report = score(capsys, points, "--num", "3", "--likelihood.check", "0")
        assert report["draws_se"] is None
        assert report["solver_error"] is None

    @pytest.mark.parametrize("law", ["truncated_normal", "decoder"])
    def test_a_bound_for_levels_on_a_model_of_dithered_ones_is_labelled(self, wild, capsys, law):
        flags = (*CHEAP, "--num", "3", "--likelihood.dequantisation", law)
        report = score(capsys, wild, *flags)
        assert "lower bound" in report["is"]
        assert any("trained on dithered levels" in warning for warning in report["warnings"])

    @pytest.mark.parametrize("law", ["uniform", "decoder"])
    def test_the_variational_bound_alone(self, wild, capsys, law):
        flags = ("--likelihood.method", "elbo", "--likelihood.times", "4", "--num", "3")
        report = score(capsys, wild, *flags, "--likelihood.dequantisation", law)
        assert report["is"].startswith("variational lower bound")
        assert report["nfe"] >= 4
        assert report["solver_error"] is None

    def test_the_bound_of_a_chain(self, wild, capsys):
        flags = ("--likelihood.method", "discrete", "--likelihood.steps", "8", "--num", "3")
        report = score(capsys, wild, *flags)
        assert report["is"] == "variational lower bound of a chain of 8 times"
        learned = refusal(capsys, wild, *flags, "--likelihood.variance", "learned")
        assert "no learned variance" in learned

    def test_a_chain_is_said_to_decode(self, wild, capsys):
        flags = ("--likelihood.method", "discrete", "--likelihood.steps", "8", "--num", "2")
        report = score(capsys, wild, *flags)
        assert report["dequantisation"] == "decoder"
        assert any("dithered levels: decoder" in text for text in report["warnings"])

    def test_steps_that_cannot_be_halved_are_labelled(self, wild, capsys):
        report = score(capsys, wild, "--likelihood.steps", "12", "--num", "2")
        assert report["solver_error"] is None
        assert any("too few to halve" in text for text in report["warnings"])

    @pytest.mark.parametrize("t0", ["1e-9", "1", "5"])
    def test_a_start_outside_the_training(self, points, capsys, t0):
        assert "where the model was trained" in refusal(capsys, points, "--likelihood.t0", t0)

    def test_the_bound_takes_over_where_it_is_told(self, points, capsys):
        flags = ("--likelihood.method", "elbo", "--num", "2", "--likelihood.t0", "0.5")
        assert score(capsys, points, *flags)["t0"] == 0.5
        chain = ("--likelihood.method", "discrete", "--likelihood.t0", "0.5")
        assert "leave t0 out" in refusal(capsys, points, *chain)

    def test_importance_weights_never_lower_the_bound(self, wild, capsys):
        flags = (*CHEAP, "--num", "4", "--likelihood.repeats", "4")
        plain = score(capsys, wild, *flags)
        joined = score(capsys, wild, *flags, "--likelihood.importance", "true")
        assert joined["bits_per_dim"] <= plain["bits_per_dim"]

    def test_importance_weights_leave_the_bound_beside_as_it_is(self, wild, capsys):
        """Its terms are estimates: their exponents would lift it above the truth."""
        flags = (*CHEAP, "--num", "2", "--likelihood.repeats", "4", "--bound")
        plain = score(capsys, wild, *flags)
        joined = score(capsys, wild, *flags, "--likelihood.importance", "true")
        assert joined["lower_bound"] == plain["lower_bound"]
        assert any("random probes raise" in text for text in joined["warnings"])

    @pytest.mark.parametrize("method", ["elbo", "discrete"])
    def test_importance_weights_of_a_bound_are_refused(self, wild, capsys, method):
        flags = ("--likelihood.method", method, "--likelihood.repeats", "4")
        error = refusal(capsys, wild, *flags, "--likelihood.importance", "true")
        assert "joins densities" in error

    def test_another_set_is_told_apart(self, images, capsys, tmp_path):
        """Under a standard normal model bright pixels are less likely than middling ones."""
        np.save(tmp_path / "white.npy", np.full((5, 8, 8), 255, np.uint8))
        flags = (*CHEAP, "--against", str(tmp_path / "white.npy"), "--out", str(tmp_path / "o"))
        report = score(capsys, images, *flags, "--num", "5")
        assert report["against"]["examples"] == 5
        assert report["against"]["auroc"] > 0.9
        assert (tmp_path / "o" / "histogram.png").stat().st_size > 1000


class TestFolder:
    def test_the_files_agree(self, points, capsys, tmp_path):
        report = score(capsys, points, "--out", str(tmp_path), "--num", "5", "--bound")
        assert json.loads((tmp_path / "likelihood.json").read_text()) == report
        with np.load(tmp_path / "values.npz") as arrays:
            assert arrays["bits_per_dim"].mean() == pytest.approx(report["bits_per_dim"])
            assert arrays["label"].shape == (5,)
        with (tmp_path / "values.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        assert sum(float(r["bound_bits_per_dim"]) for r in rows) / 5 == pytest.approx(
            report["lower_bound"]["bits_per_dim"]
        )
        assert not list(tmp_path.glob("partial*"))

    def test_a_full_disk_keeps_the_earlier_report(self, points, capsys, tmp_path, monkeypatch):
        flags = ("--out", str(tmp_path), "--num", "2")
        score(capsys, points, *flags)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def full(path: Path, **contents: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(score_report, "histogram", full)
        argv = ["likelihood", "--checkpoint", str(points), "--device", "cpu", *flags]
        assert main([*argv, "--seed", "1", "--overwrite"]) == 1
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_table_after_the_report_in_one_file(self, points, tmp_path, monkeypatch):
        argv = ["likelihood", "--checkpoint", str(points), "--device", "cpu", "--num", "2"]
        with standard_output_to(tmp_path / "out.txt", monkeypatch):
            assert main([*argv, "--json", "--csv", "/dev/stdout"]) == 0
        text = (tmp_path / "out.txt").read_text()
        assert text.startswith("{")
        assert text.count("index,label,nats") == 1

    def test_a_second_evaluation_needs_leave(self, points, capsys, tmp_path):
        score(capsys, points, "--out", str(tmp_path), "--num", "2")
        flags = ("--out", str(tmp_path), "--num", "2")
        assert "--overwrite" in refusal(capsys, points, *flags)
        assert score(capsys, points, *flags, "--overwrite")["examples"] == 2

    def test_own_samples_are_scored(self, images, capsys, tmp_path):
        argv = ["sample", "--checkpoint", str(images), "--out", str(tmp_path), "--num", "3"]
        assert main([*argv, "--sample.steps", "2"]) == 0
        capsys.readouterr()
        report = score(capsys, images, *CHEAP, "--images", str(tmp_path))
        assert report["examples"] == 3

    def test_pictures_are_fitted_as_the_data_were(self, tmp_path, capsys):
        """Pictures of another size and kind go through the size and channels of the data."""
        (tmp_path / "train").mkdir()
        for k in range(24):
            shade = np.random.default_rng(k).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(shade).save(tmp_path / "train" / f"{k}.png")
        data = ["--data", "folder", "--data.path", str(tmp_path / "train")]
        fitted = ["--data.size", "8", "--data.channels", "1", "--network.width", "8"]
        few = ["--train.steps", "1", "--train.batch", "4", "--train.warmup", "0"]
        out = tmp_path / "run"
        assert main(["train", *data, *fitted, *few, "--out", str(out), "--device", "cpu"]) == 0
        capsys.readouterr()
        report = score(capsys, out, *CHEAP, "--images", str(tmp_path / "train"))
        assert report["examples"] == 24

    def test_training_examples_are_labelled(self, points, capsys):
        report = score(capsys, points, "--split", "train", "--num", "2")
        assert "examples that the model was trained on" in report["warnings"]

    def test_interrupted_and_resumed_is_the_same_as_in_one_go(
        self, wild, capsys, tmp_path, monkeypatch
    ):
        flags = (*CHEAP, "--num", "7", "--likelihood.batch", "2", "--bound")
        whole = score(capsys, wild, *flags)
        interrupt_after(2, monkeypatch)
        argv = ["likelihood", "--checkpoint", str(wild), "--device", "cpu", *flags]
        assert main([*argv, "--out", str(tmp_path)]) == 130
        captured = capsys.readouterr()
        assert captured.out == ""  # a part is never reported as a whole
        assert "SIGINT: 4 of 7 examples scored" in captured.err
        assert [p.name for p in tmp_path.iterdir()] == ["partial-0.npz"]
        monkeypatch.undo()
        assert "--resume, or --overwrite" in refusal(capsys, wild, *flags, "--out", str(tmp_path))
        batches = counted(monkeypatch)
        resumed = score(capsys, wild, *flags, "--out", str(tmp_path), "--resume")
        assert batches == [2, 1]
        different = {"seconds"}
        assert {k: v for k, v in resumed.items() if k not in different} == {
            k: v for k, v in whole.items() if k not in different
        }

    def test_values_of_another_job_are_not_taken_over(self, wild, capsys, tmp_path, monkeypatch):
        flags = (*CHEAP, "--num", "4", "--likelihood.batch", "2", "--out", str(tmp_path))
        interrupt_after(1, monkeypatch)
        assert main(["likelihood", "--checkpoint", str(wild), "--device", "cpu", *flags]) == 130
        monkeypatch.undo()
        capsys.readouterr()
        other = refusal(capsys, wild, *flags, "--resume", "--seed", "1")
        assert "left by other weights, data or settings" in other
        for content in (b"", b"PK\x03\x04 torn"):
            (tmp_path / "partial-0.npz").write_bytes(content)
            assert "damaged" in refusal(capsys, wild, *flags, "--resume")

    def test_what_other_processes_kept_is_kept_again_first(
        self, wild, capsys, tmp_path, monkeypatch
    ):
        """A second process would replace its file, and a kill then lose what it held."""
        flags = (*CHEAP, "--num", "4", "--likelihood.batch", "2", "--out", str(tmp_path))
        interrupt_after(1, monkeypatch)
        argv = ["likelihood", "--checkpoint", str(wild), "--device", "cpu", *flags]
        assert main(argv) == 130
        monkeypatch.undo()
        (tmp_path / "partial-0.npz").rename(tmp_path / "partial-1.npz")

        def killed(job, rows):
            raise RuntimeError("killed")
            yield

        monkeypatch.setattr(scoring, "batches", killed)
        assert main([*argv, "--resume"]) == 1
        with np.load(tmp_path / "partial-0.npz") as kept:
            assert kept["rows"].tolist() == [0, 1]

    def test_go_on_or_start_anew(self, points, capsys, tmp_path):
        flags = ("--out", str(tmp_path), "--resume", "--overwrite")
        assert "exclude each other" in refusal(capsys, points, *flags)

    @pytest.mark.parametrize("flags", [("--split", "train"), ("--data.kind", "digits")])
    def test_two_sets_to_score(self, images, capsys, tmp_path, flags):
        np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
        error = refusal(capsys, images, "--images", str(tmp_path / "x.npy"), *flags)
        assert "leave one of them out" in error

    def test_an_interruption_in_the_other_set_keeps_the_data(
        self, images, capsys, tmp_path, monkeypatch
    ):
        np.save(tmp_path / "white.npy", np.full((4, 8, 8), 255, np.uint8))
        flags = (*CHEAP, "--num", "2", "--likelihood.batch", "2", "--device", "cpu")
        other = ("--against", str(tmp_path / "white.npy"), "--out", str(tmp_path / "o"))
        monkeypatch.setattr(library, "KEEP_SECONDS", 0.0)
        interrupt_after(1, monkeypatch, examples=4)
        assert main(["likelihood", "--checkpoint", str(images), *flags, *other]) == 130
        error = capsys.readouterr().err
        assert "2 of 4 examples scored, nothing is kept" in error
        assert "those of the data are kept" in error
        monkeypatch.undo()
        batches = counted(monkeypatch)
        score(capsys, images, *flags, *other, "--resume")
        assert batches == [2, 2]  # the other set alone

    def test_nothing_to_resume(self, points, capsys, tmp_path):
        assert "give the --out folder" in refusal(capsys, points, "--resume")
        flags = ("--resume", "--out", str(tmp_path))
        assert "holds nothing to go on with" in refusal(capsys, points, *flags)


@pytest.mark.slow
def test_two_processes_score_what_one_does(wild, tmp_path, capsys):
    """Under torchrun, with gloo; slow because each of the two imports torch."""
    flags = [*CHEAP, "--num", "7", "--likelihood.batch", "2"]
    alone = score(capsys, wild, *flags)
    argv = ["likelihood", "--checkpoint", str(wild), "--device", "cpu", *flags]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        # Without -- torchrun takes --num for one of its own.
        [*launch, "-m", "--", "scoresde", *argv, "--out", str(tmp_path)],
        check=True,
        timeout=200,
    )
    together = json.loads((tmp_path / "likelihood.json").read_text())
    assert together["bits_per_dim"] == pytest.approx(alone["bits_per_dim"], abs=1e-9)
    assert together["examples"] == 7
    assert not list(tmp_path.glob("partial*"))


@contextmanager
def standard_output_to(file: Path, monkeypatch) -> Iterator[None]:
    """As a shell's > would: the descriptor, and what Python writes to it."""
    kept = os.dup(1)
    try:
        with file.open("w") as out:
            os.dup2(out.fileno(), 1)
        with monkeypatch.context() as patch, open(1, "w", closefd=False) as stdout:
            patch.setattr(sys, "stdout", stdout)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def interrupt_after(batches: int, monkeypatch, examples: int | None = None) -> None:
    """SIGINT comes after so many batches, of a set of so many examples if told."""
    score_rows = scoring.batches

    def interrupted(job, rows):
        for i, found in enumerate(score_rows(job, rows), 1):
            if i == batches and examples in (None, len(job.split)):
                os.kill(os.getpid(), signal.SIGINT)
            yield found

    monkeypatch.setattr(scoring, "batches", interrupted)


def counted(monkeypatch) -> list[int]:
    """The sizes of the batches that are scored."""
    sizes, score_rows = [], scoring.batches

    def counting(job, rows):
        for some, found in score_rows(job, rows):
            sizes.append(len(some))
            yield some, found

    monkeypatch.setattr(scoring, "batches", counting)
    return sizes
