"""``scoresde evaluate --posterior``: a report, an interruption, refusals in one line."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from scoresde.cli import calibration
from scoresde.cli.main import main

QUICK = ("--num", "12", "--draws", "5", "--nfe", "5", "--device", "cpu")
BOX = ("--operator", "inpaint", "--box", "0,4,8,8")


def evaluate(model, *flags, method="dps", code=0):
    words = ["evaluate", "--checkpoint", model, "--posterior", method, *QUICK, *flags]
    assert main([*map(str, words)]) == code


def test_the_report_is_json_a_page_and_a_plot(capsys, tmp_path, images):
    out = tmp_path / "judged"
    evaluate(images, *BOX, "--noise", "2", "--out", out)
    page = capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "calibration.png", "evaluate.json", "evaluate.txt",
    ]  # fmt: skip
    assert (out / "evaluate.txt").read_text() == page
    assert max(map(len, page.splitlines())) <= 79
    assert "posterior: dps of inpaint, box (0, 4, 8, 8), noise 2" in page
    report = json.loads((out / "evaluate.json").read_text())
    assert report["examples"] == report["asked"] == 12
    assert report["nfe"] == 5
    assert report["classes"] == "as in the test split"
    assert set(report["rows"]) == {
        "coverage 50%", "coverage 90%", "coverage 95%", "p_value", "residual", "crps",
        "prior_crps", "skill", "energy",
    }  # fmt: skip
    rows = [int(name[4]) for name in report["quantities"] if name.startswith("x[")]
    assert min(rows) >= 4
    with Image.open(out / "calibration.png") as image:
        assert min(image.size) > 400
    evaluate(images, *BOX, "--noise", "2", "--out", out, code=2)
    assert "holds evaluate.json" in capsys.readouterr().err
    evaluate(images, *BOX, "--noise", "2", "--out", out, "--overwrite", "--json")
    assert json.loads(capsys.readouterr().out) == report


@pytest.mark.parametrize(
    ("flags", "noise"),
    [(("superres", "--factor", "2"), 1.0), (("deblur",), 1.0), (("inpaint", "--mask"), 0.0)],
)
def test_every_operator_of_grey_pictures_has_its_noise(capsys, tmp_path, images, flags, noise):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = (*flags, tmp_path / "mask.png") if flags[-1] == "--mask" else flags
    evaluate(images, "--operator", *flags, "--json", method="diffpir")
    report = json.loads(capsys.readouterr().out)
    assert report["noise"] == noise
    assert ("residual" in report["rows"]) == (noise > 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_there_is(capsys, tmp_path, monkeypatch, images, number):
    out, plain = tmp_path / "judged", calibration.calibrate

    def interrupted(*args, stopping, after=12, **settings):
        calls = []

        def asked():
            calls.append(1)
            if len(calls) == after:
                os.kill(os.getpid(), number)
            return stopping()

        return plain(*args, stopping=asked, **settings)

    monkeypatch.setattr(calibration, "calibrate", interrupted)
    evaluate(images, *BOX, "--batch", "20", "--out", out, code=128 + number)
    captured = capsys.readouterr()
    assert "8 of 12 test examples" in captured.out
    assert "p-value: needs 10 examples" in captured.out
    assert captured.err.splitlines()[-1] == f"{number.name}: 8 of 12 examples"
    assert json.loads((out / "evaluate.json").read_text())["examples"] == 8
    monkeypatch.setattr(
        calibration, "calibrate", lambda *args, **settings: interrupted(*args, after=1, **settings)
    )
    evaluate(images, *BOX, "--out", tmp_path / "nothing", code=128 + number)
    assert "0 of 12 examples are done" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--operator is missing"),
        (("--operator", "erase"), "erase"),
        (("--operator", "inpaint"), "say what to paint"),
        (("--operator", "inpaint", "--box", "0,0,9,9"), "box: 0,0,9,9 is not inside 8 x 8"),
        (("--operator", "inpaint", "--factor", "2"), "factor: is for superres"),
        (("--operator", "colourise"), "need pictures of 3 channels"),
        (("--operator", "superres", "--factor", "3"), "have no blocks of 3"),
        ((*BOX, "--metrics", "kid"), "--metrics: is for samples"),
        ((*BOX, "--against", "train"), "--against: is for samples"),
        ((*BOX, "--sample.steps", "3"), "--sample.steps: --posterior draws by its own sampler"),
        ((*BOX, "--samples", "x.npz"), "--samples: is for samples"),
        ((*BOX, "--num", "400"), "--num: the test split has 360 examples, got 400"),
        ((*BOX, "--num", "1"), "--num: need 2 or more examples"),
        ((*BOX, "--draws", "1"), "draws"),
        ((*BOX, "--noise", "-1"), "noise"),
    ],
)
def test_bad_input_is_one_line(capsys, images, flags, words):
    evaluate(images, *flags, code=2)
    error = capsys.readouterr().err.splitlines()
    assert words in error[-1]


def test_other_models_methods_and_options_are_refused(capsys, images, points):
    evaluate(images, *BOX, method="dpz", code=2)
    assert "dpz" in capsys.readouterr().err.splitlines()[-1]
    evaluate(points, "--operator", "deblur", code=2)
    assert "deblur needs a model of pictures" in capsys.readouterr().err
    assert main(["evaluate", "--checkpoint", str(images), "--nfe", "4"]) == 2
    assert "--nfe: is for --posterior METHOD" in capsys.readouterr().err
