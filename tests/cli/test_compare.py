"""``scoresde compare``: errors with known answers, calls, files and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from scoresde import registry
from scoresde.cli.main import main
from scoresde.runs.load import load_run


def compare(capsys, checkpoint: Path, *flags: str) -> dict:
    """The JSON of a comparison."""
    common = ["--checkpoint", str(checkpoint), "--device", "cpu", "--num", "4", "--json"]
    assert main(["compare", *common, *flags]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys, checkpoint: Path, *flags: str) -> str:
    assert main(["compare", "--checkpoint", str(checkpoint), "--device", "cpu", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1
    return error


class TestErrors:
    def test_ddim_on_a_normal_law_is_off_by_the_cosines_of_its_steps(self, capsys, points):
        """Its flow stands still, where DDIM multiplies by alpha_s alpha_t + sigma_s sigma_t."""
        flags = ("--samplers", "ddim", "--steps", "7,4", "--grid", "uniform,log_snr")
        trials = compare(capsys, points, *flags)["trials"]
        sde = load_run(points).model.sde
        for trial in trials:
            ts = registry.GRIDS[trial["grid"]]()(sde, trial["steps"])
            alpha, sigma = sde.alpha(ts), sde.sigma(ts)
            error = 1 - float((alpha[1:] * alpha[:-1] + sigma[1:] * sigma[:-1]).prod())
            assert trial["relative"] == pytest.approx(error, rel=1e-3)
            assert trial["median"] == pytest.approx(error, rel=1e-3)
        found = [(trial["grid"], trial["steps"]) for trial in trials]
        assert found == [("uniform", 4), ("uniform", 7), ("log_snr", 4), ("log_snr", 7)]

    def test_more_steps_come_closer_to_the_path_of_a_network(self, capsys, wild):
        flags = ("--samplers", "dpmpp_2m,heun", "--steps", "10,40", "--tolerance", "1e-6")
        trials = compare(capsys, wild, *flags)["trials"]
        for coarse, fine in (trials[:2], trials[2:]):
            assert fine["relative"] < coarse["relative"] / 4

    def test_calls_are_counted_and_the_grid_is_that_of_the_run(self, capsys, points):
        names = "ddim,heun,dpmpp_3m,dpm_fast,dpm_adaptive"
        trials = compare(capsys, points, "--samplers", names, "--steps", "6,9")["trials"]
        calls = [
            (t["sampler"], t["steps"], t["nfe"]) for t in trials if t["grid"] == "recommended"
        ]
        assert calls == [
            ("ddim", 6, 7),
            ("ddim", 9, 10),
            ("heun", 6, 13),
            ("heun", 9, 19),
            ("dpmpp_3m", 6, 8),
            ("dpmpp_3m", 9, 11),
            ("dpm_fast", 6, 16),  # in turn three orders of up to three calls
            ("dpm_fast", 9, 25),
        ]
        (paced,) = [t for t in trials if t["grid"] == "-"]
        assert (paced["sampler"], paced["steps"]) == ("dpm_adaptive", 1)

    def test_samplers_with_noise_are_left_out_and_it_is_said(self, capsys, points):
        common = ["--checkpoint", str(points), "--num", "2", "--steps", "3", "--json"]
        assert main(["compare", *common, "--samplers", "euler_a,ddim"]) == 0
        captured = capsys.readouterr()
        line = "euler_a: left out, with noise there is no path to compare with"
        assert line in captured.err
        found = json.loads(captured.out)
        assert found["left_out"] == [line]
        assert [trial["sampler"] for trial in found["trials"]] == ["ddim"]


class TestFiles:
    def test_the_folder_holds_the_numbers_and_a_picture(self, capsys, points, tmp_path):
        out = tmp_path / "out"
        flags = ("--out", str(out), "--samplers", "ddim,heun", "--grid", "karras,uniform")
        found = compare(capsys, points, *flags, "--steps", "3,6")
        stored = json.loads((out / "compare.json").read_text())
        assert stored == found | {"files": ["compare.png"]}
        assert stored["reference"]["nfe"] > 6
        with Image.open(out / "compare.png") as picture:
            assert picture.width > 1000
        (out / "notes.txt").write_text("mine")
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        assert "--overwrite" in refusal(capsys, points, *flags)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        compare(capsys, points, *flags, "--steps", "2", "--overwrite")
        assert len(json.loads((out / "compare.json").read_text())["trials"]) == 4
        assert (out / "notes.txt").read_text() == "mine"

    def test_the_table_has_a_line_a_trial(self, capsys, points):
        flags = ["--checkpoint", str(points), "--samplers", "ddim,heun", "--steps", "3,4"]
        assert main(["compare", *flags, "--num", "3", "--grid", "karras"]) == 0
        page = capsys.readouterr().out
        assert sum("karras" in line for line in page.splitlines()) == 4
        assert "Distance from the paths of 3 starts to t=0.001" in page


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--samplers", "hein"), "--samplers: unknown name 'hein'; did you mean 'heun'?"),
            (("--samplers", "euler_a,ddpm"), "with noise there is no path"),
            (("--steps", "5,x"), "--steps: cannot read '5,x'"),
            (("--steps", "0"), "--steps: cannot read '0'"),
            (("--grid", "karas"), "--grid: unknown name 'karas'; did you mean 'karras'?"),
            (("--num", "0"), "--num: must be"),
            (("--tolerance", "0"), "--tolerance: must be"),
            (("--tolerance", "1e-9"), "--tolerance: need 1e-08 to 1, got 1e-09"),
            (("--out", __file__), "is a file; give a folder"),
        ],
    )
    def test_bad_flags(self, capsys, points, flags, words):
        assert words in refusal(capsys, points, *flags)

    def test_a_missing_checkpoint(self, capsys, tmp_path):
        assert "none.pt: no such file" in refusal(capsys, tmp_path / "none.pt")
