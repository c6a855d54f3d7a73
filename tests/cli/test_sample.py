"""``scoresde sample``: what is drawn, what is written, what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import registry
from scoresde.cli import sample as module
from scoresde.cli.main import main
from scoresde.config import Section, override
from scoresde.parameterization import ScoreModel
from scoresde.runs import pictures, results
from scoresde.runs.draw import draw
from scoresde.runs.load import load_run
from scoresde.runs.written import chosen_seeds
from scoresde.samplers import per_sample_noise
from tests.cli.test_processes import ended, started


def sample(checkpoint: Path, out: Path, *flags: str) -> Path:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert main(["sample", *common, "--sample.steps", "3", *flags]) == 0
    return out


def refusal(capsys, checkpoint: Path, out: Path, *flags: str, code: int = 2) -> str:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert main(["sample", *common, "--sample.steps", "3", *flags]) == code
    error = capsys.readouterr().err
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1
    return error


def changed(run: registry.LoadedRun, overrides: dict[str, object]) -> Section:
    return override(run.config, overrides).sample


def arrays(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "samples.npz", allow_pickle=False) as found:
        return dict(found)


def record(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "sample.json").read_text())
    return found


class TestSeeds:
    def test_seeds(self):
        assert chosen_seeds(None, None) == range(64)
        assert chosen_seeds(3, None) == range(3)
        assert chosen_seeds(None, "0-2, 7,5-5") == [0, 1, 2, 7, 5]


class TestChoices:
    def test_without_a_choice_it_is_the_recommended_sampler(self, points, tmp_path):
        found = record(sample(points, tmp_path / "out", "--num", "3"))
        assert found["sampler"] == {"kind": "recommended", "eta": 0.0, "std": None}
        assert found["grid"]["kind"] == "recommended"
        assert found["nfe"] == 4  # 3 steps and the denoising
        run = load_run(points)
        drawn = draw(run.model, 3, nfe=4).x
        assert np.allclose(drawn, arrays(tmp_path / "out")["arr_0"], atol=1e-6)

    def test_grid_is_short_for_its_kind(self, points, tmp_path):
        one = sample(points, tmp_path / "one", "--num", "3", "--grid", "log_snr")
        two = sample(points, tmp_path / "two", "--num", "3", "--sample.grid", "log_snr")
        assert record(one)["grid"] == record(two)["grid"] == {"kind": "log_snr"}
        assert np.array_equal(arrays(one)["arr_0"], arrays(two)["arr_0"])

    def test_an_optimised_grid_is_found_once_and_kept(self, wild, tmp_path, capsys):
        flags = ("--num", "2", "--classes", "1,2", "--sample.sampler", "dpmpp_2m", "--npz")
        flags += (
            "--grid",
            "optimised",
            "--sample.grid.budget",
            "500",
            "--sample.grid.starts",
            "3",
        )
        checkpoint = tmp_path / "model.pt"
        checkpoint.write_bytes(wild.read_bytes())
        one = sample(checkpoint, tmp_path / "one", *flags)
        (kept,) = (tmp_path / "grids").glob("*.json")
        assert kept.name.startswith("dpmpp_2m-3-")
        notes = json.loads(kept.read_text())
        assert notes["log_error"] <= notes["log_error_before"]
        assert notes["network_calls"] <= 600
        assert "grid: found in" in capsys.readouterr().err
        before = kept.stat().st_mtime_ns
        two = sample(checkpoint, tmp_path / "two", *flags)
        assert f"grid: {kept}" in capsys.readouterr().err
        assert kept.stat().st_mtime_ns == before
        assert np.array_equal(arrays(one)["arr_0"], arrays(two)["arr_0"])
        kept.write_text('{"times": [1.0')
        sample(checkpoint, tmp_path / "three", *flags)
        assert "grid: found in" in capsys.readouterr().err
        assert json.loads(kept.read_text()) == notes

    def test_an_optimised_grid_is_for_its_weights_and_its_effort(self, wild, tmp_path, capsys):
        flags = ["--num", "2", "--class", "1", "--sample.sampler", "euler", "--grid", "optimised"]
        flags += ["--sample.grid.starts", "3", "--sample.grid.budget"]
        checkpoint, grids = tmp_path / "model.pt", tmp_path / "grids"
        stored = torch.load(wild, weights_only=True)
        stored["ema"] = {k: v * 1.1 for k, v in stored["ema"].items()}
        torch.save(stored, checkpoint)

        def drawn(name, budget, *more):
            sample(checkpoint, tmp_path / name, *flags, budget, *more)
            return len(list(grids.glob("euler-3-*.json"))), capsys.readouterr().err

        assert drawn("ema", "500")[0] == 1
        assert drawn("raw", "500", "--no-ema")[0] == 2
        assert drawn("effort", "600")[0] == 3
        count, said = drawn("again", "600")
        assert count == 3
        assert "grid: found in" not in said
        checkpoint.write_bytes(wild.read_bytes())  # trained anew, to the same step
        # Its EMA weights are the raw ones of before, whose grid serves.
        count, said = drawn("anew", "500")
        assert count == 3
        assert "grid: found in" not in said

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--grid", "optimised", "--sample.sampler", "euler_a"), "euler_a draws noise"),
            (("--grid", "optimised", "--sample.sampler", "ode"), "ode paces itself"),
            (("--grid", "karras", "--sample.grid", "uniform"), "--grid and --sample.grid"),
            (("--grid", "karas"), "did you mean 'karras'?"),
            (("--preview-every", "0"), "--preview-every: must be"),
        ],
    )
    def test_what_cannot_be_done_is_said_before_any_call(
        self, points, tmp_path, capsys, monkeypatch, flags, words
    ):
        monkeypatch.setattr(ScoreModel, "denoiser", None)  # no network is to be called
        assert words in refusal(capsys, points, tmp_path / "out", *flags)


class TestWatching:
    def test_previews_and_the_trajectory_cost_no_call(self, wild, tmp_path):
        flags = ("--num", "4", "--class", "2", "--preview-every", "2", "--trajectory")
        out = sample(wild, tmp_path / "out", *flags, "--sample.steps", "5", "--npz")
        assert record(out)["nfe"] == 6
        names = sorted(path.name for path in (out / "previews").iterdir())
        assert names == ["call-0002.png", "call-0004.png", "call-0006.png"]
        with np.load(out / "trajectory.npz") as found:
            assert found["x"].shape == found["x0"].shape == (6, 4, 1, 8, 8)
            assert (np.diff(found["t"]) < 0).all()
            last = torch.from_numpy(found["x0"][-1])
        pixels = load_run(wild).data.scaling.to_uint8(last)
        assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), arrays(out)["arr_0"])
        with Image.open(out / "trajectory.gif") as film:
            assert film.n_frames == 6
        assert set(record(out)["files"]) >= {"trajectory.npz", "trajectory.gif"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_stop_keeps_what_there_is(self, wild, tmp_path, capsys, monkeypatch, number):
        """During call 3 of the second batch: 2 samples finished, 2 as denoised so far, 3 lost."""
        calls = []

        def interrupting(self, *args):
            calls.append(1)
            if len(calls) == 6 + 3:
                os.kill(os.getpid(), number)
            return outputs(self, *args)

        outputs = ScoreModel.outputs
        monkeypatch.setattr(ScoreModel, "outputs", interrupting)
        common = ["--checkpoint", str(wild), "--out", str(tmp_path / "out"), "--device", "cpu"]
        common += ["--num", "7", "--class", "1", "--batch", "2", "--sample.steps", "5", "--npz"]
        assert main(["sample", *common]) == 128 + number
        assert (
            "2 of 7 samples finished; the last 2 written are unfinished" in capsys.readouterr().err
        )
        found = record(tmp_path / "out")
        assert (found["stopped"], found["unfinished"]) == (number.name, 2)
        assert found["seeds"] == [0, 1, 2, 3]
        monkeypatch.undo()
        whole = sample(
            wild, tmp_path / "whole", "--num", "2", "--class", "1", "--sample.steps", "5", "--npz"
        )
        kept = arrays(tmp_path / "out")["arr_0"]
        assert np.array_equal(kept[:2], arrays(whole)["arr_0"])
        assert kept.shape == (4, 8, 8, 1)

    def test_a_failure_names_the_sampler_the_time_and_how_many(self, broken, tmp_path, capsys):
        flags = ("--num", "3", "--class", "1", "--sample.sampler", "ddim")
        text = refusal(capsys, broken, tmp_path / "out", *flags, code=1)
        assert re.search(r"ddim: 3 of 3 samples are not finite at t=1, call 1;", text)


class TestProcesses:
    @pytest.mark.slow
    def test_two_processes_write_the_samples_of_one(self, wild, tmp_path):
        """To the bit; a sampler that looks at its whole batch included."""
        flags = ["--checkpoint", str(wild), "--device", "cpu", "--num", "11", "--batch", "2"]
        flags += ["--classes", "3,1", "--npz", "--trajectory", "--sample.sampler"]
        for kind in ("heun", "ode"):
            one, two = tmp_path / f"one-{kind}", tmp_path / f"two-{kind}"
            line = ["sample", *flags, kind, "--sample.steps", "3", "--out"]
            assert main([*line, str(one)]) == 0
            found = ended(started([*line, str(two)], [*line, str(two)]))
            assert [code for code, _, _ in found] == [0, 0], found
            assert [out.count("11 samples in") for _, out, _ in found] == [1, 0]
            for name in ("arr_0", "arr_1"):
                assert np.array_equal(arrays(one)[name], arrays(two)[name])
            a, b = record(one), record(two)
            assert a["seeds"] == b["seeds"] == list(range(11))
            assert (a["labels"], a["nfe"], a["files"]) == (b["labels"], b["nfe"], b["files"])

    @pytest.mark.slow
    def test_a_failure_in_one_process_ends_both_and_is_said_once(self, broken, tmp_path):
        line = ["sample", "--checkpoint", str(broken), "--device", "cpu", "--num", "2"]
        line += ["--batch", "1", "--out", str(tmp_path / "out")]
        found = ended(started(line, line))
        assert [code for code, _, _ in found] == [1, 1]
        said = [err for _, _, err in found if "not finite" in err]
        assert len(said) == 1
        assert not list((tmp_path / "out").iterdir())


class TestFiles:
    def test_images_with_their_settings(self, images, tmp_path):
        flags = ("--num", "20", "--classes", "all", "--npz", "--batch", "7")
        out = sample(images, tmp_path / "out", *flags)
        found = arrays(out)
        assert found["arr_0"].shape == (20, 8, 8, 1)
        assert found["arr_0"].dtype == np.uint8
        assert found["arr_1"].tolist() == [i // 2 for i in range(20)]
        for i in range(20):
            with Image.open(out / f"{i:06d}.png") as picture:
                assert np.array_equal(np.asarray(picture), found["arr_0"][i, :, :, 0])
                settings = json.loads(picture.text["scoresde"])
            assert (settings["seed"], settings["label"], settings["nfe"]) == (i, i // 2, 4)
        with Image.open(out / "grid.png") as grid:
            assert grid.height > grid.width  # ten rows, a class each, of two

    def test_the_record(self, images, tmp_path):
        flags = ("--seeds", "4-6", "--class", "3", "--sample.sampler", "ddim")
        found = record(sample(images, tmp_path / "out", *flags, "--sample.sampler.eta", "0.5"))
        assert found["sampler"] == {"kind": "ddim", "eta": 0.5, "variance": "small"}
        assert (found["steps"], found["nfe"], found["step"]) == (3, 4, 7)
        assert (found["seeds"], found["labels"]) == ([4, 5, 6], [3, 3, 3])

    def test_points_are_drawn_as_a_scatter(self, points, tmp_path):
        out = sample(points, tmp_path / "out", "--num", "6", "--sample.sampler", "ode")
        assert sorted(p.name for p in out.iterdir()) == [
            "sample.json",
            "samples.npz",
            "scatter.png",
        ]
        found = arrays(out)
        assert list(found) == ["arr_0"]
        alpha = math.exp(-1e-6 * 19.9 / 4 - 0.5e-3 * 0.1)  # of VP at t_eps = 1e-3
        expected = alpha * per_sample_noise(range(6))(torch.empty(6, 2)).numpy()
        assert np.allclose(found["arr_0"], expected, atol=1e-4)

    def test_pixels_do_not_depend_on_the_batch(self, wild, tmp_path):
        first = sample(wild, tmp_path / "a", "--num", "6", "--npz", "--batch", "4")
        second = sample(wild, tmp_path / "b", "--seeds", "3-4", "--npz", "--batch", "1")
        gap = arrays(first)["arr_0"][3:5].astype(int) - arrays(second)["arr_0"]
        assert abs(gap).max() <= 16  # a pixel on the edge of two levels may round either way
        assert (gap == 0).mean() > 0.98

    def test_the_record_lists_every_file(self, images, tmp_path):
        out = sample(images, tmp_path / "out", "--num", "3", "--npz")
        assert {*record(out)["files"], "sample.json"} == {p.name for p in out.iterdir()}

    @pytest.mark.parametrize("name", ["000007.png", "grid.png", "sample.json", "0000001.png"])
    @pytest.mark.parametrize("mine", ["{}", '{"files": ["../grid.png", "grid.png"]}'])
    def test_pictures_of_others_are_never_overwritten(self, images, tmp_path, capsys, name, mine):
        out = tmp_path / "out"
        out.mkdir()
        (tmp_path / "grid.png").write_text("mine")
        (out / name).write_text(mine)
        for flags in ((), ("--overwrite",)):
            assert name in refusal(capsys, images, out, *flags)
        assert {p.name: p.read_text() for p in out.iterdir()} == {name: mine}
        assert (tmp_path / "grid.png").read_text() == "mine"

    def test_a_picture_added_to_samples_is_kept(self, images, tmp_path, capsys):
        out = sample(images, tmp_path / "out", "--num", "2")
        (out / "000005.png").write_text("mine")
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        assert "holds 000005.png" in refusal(capsys, images, out, "--overwrite")
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    @pytest.mark.parametrize("written", [0, 1, 2])
    def test_a_full_disk_keeps_the_earlier_samples(
        self, images, tmp_path, capsys, monkeypatch, written
    ):
        out = sample(images, tmp_path / "out", "--num", "2")
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        save, saved = pictures.save_picture, []

        def full(path, **rest):
            if len(saved) == written:
                path.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            saved.append(path)
            save(path, **rest)

        monkeypatch.setattr(pictures, "save_picture", full)
        message = refusal(capsys, images, out, "--num", "4", "--overwrite", code=1)
        assert f"{out}: No space left on device; free some space" in message
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    @pytest.mark.parametrize("fresh", [True, False])
    @pytest.mark.parametrize("moved", [0, 1, 3])
    def test_an_interrupted_write_can_be_overwritten(
        self, images, tmp_path, monkeypatch, fresh, moved
    ):
        out = tmp_path / "out"
        if not fresh:
            sample(images, out, "--num", "4")
        replace, done = os.replace, []

        def killed(*names):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(names)
            replace(*names)

        with monkeypatch.context() as patched:
            patched.setattr(results.os, "replace", killed)
            flags = ["--checkpoint", str(images), "--out", str(out), "--num", "3", "--overwrite"]
            assert main(["sample", *flags, "--sample.steps", "3"]) == 130
        sample(images, out, "--num", "2", "--overwrite")
        assert {p.name for p in out.iterdir()} == {*record(out)["files"], "sample.json"}
        assert len(list(out.iterdir())) == 4

    def test_overwriting_removes_earlier_samples_and_nothing_else(self, images, tmp_path):
        out = sample(images, tmp_path / "out", "--num", "4")
        (out / "notes.txt").write_text("mine")
        sample(images, out, "--num", "2", "--overwrite")
        assert not (out / "000003.png").exists()
        assert (out / "notes.txt").read_text() == "mine"


class TestRefusals:
    def test_a_folder_in_use(self, images, tmp_path, capsys):
        out = sample(images, tmp_path / "out", "--num", "2")
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        capsys.readouterr()
        assert "--overwrite" in refusal(capsys, images, out)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--num", "0"), "--num"),
            (("--seeds", "3-1"), "--seeds: 3-1 runs backwards"),
            (("--seeds", "a"), "--seeds: cannot read 'a'"),
            (("--seeds", "0-3", "--num", "2"), "leave one of them out"),
            (("--batch", "0"), "--batch"),
            (("--num", "100000000"), "--num: need 1 to 10,000,000"),
            (("--seeds", "0-99999999999"), "holds more than 10,000,000"),
            (("--seeds", str(2**64)), "more than 64 bits"),
            (("--class", "11"), "--class: no class '11'"),
            (("--class", "\u00b2"), "--class: no class"),
            (("--classes", "1,11"), "--classes: no class '11'"),
            (("--class", ""), "--class: empty"),
            (("--class", "1", "--classes", "all"), "give one of them"),
            (("--classes", "all", "--num", "3"), "3 samples for 10 labels"),
            (("--sample.steps", "0"), "--sample.steps"),
            (("--sample.sampler", "hein"), "did you mean 'heun'?"),
            (("--device", "cuda:99"), "--device: cuda:99"),
        ],
    )
    def test_bad_flags(self, images, tmp_path, capsys, flags, words):
        assert words in refusal(capsys, images, tmp_path / "out", *flags)

    def test_classes_of_a_model_without(self, points, tmp_path, capsys):
        message = refusal(capsys, points, tmp_path / "out", "--class", "0")
        assert "trained without classes" in message

    def test_a_model_that_never_did_without_a_class(self, unlabelled, tmp_path, capsys):
        assert "--class is missing" in refusal(capsys, unlabelled, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        sample(unlabelled, tmp_path / "out", "--classes", "all", "--num", "10")

    def test_a_folder_that_cannot_be_made(self, images, tmp_path, capsys, monkeypatch):
        (tmp_path / "file").write_text("mine")
        monkeypatch.setattr(module, "draw", None)  # refused before anything is computed
        message = refusal(capsys, images, tmp_path / "file" / "out")
        assert str(tmp_path / "file" / "out") in message

    def test_a_damaged_checkpoint(self, images, tmp_path, capsys):
        damaged = tmp_path / "damaged.pt"
        damaged.write_bytes(images.read_bytes()[:-50])
        assert "damaged.pt" in refusal(capsys, damaged, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_samples_that_are_not_finite(self, broken, tmp_path, capsys):
        message = refusal(capsys, broken, tmp_path / "out", "--num", "2", code=1)
        assert "2 of 2 samples are not finite" in message
        assert not list((tmp_path / "out").iterdir())
