"""``scoresde edit``: codes of known models, round trips, paths, files, refusals."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scoresde as ss
from scoresde.cli.main import main
from scoresde.config import build_dataset
from scoresde.parameterization import ScoreModel
from scoresde.runs import edit as module
from scoresde.runs.load import load_run
from scoresde.runs.log import Quiet

SMALL = {
    "network": {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": []},
}
LOOSE = ("--tolerance", "1e-3")


def edit(checkpoint: Path, out: Path, *flags: str) -> dict[str, object]:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert main(["edit", *common, *flags]) == 0
    found: dict[str, object] = json.loads((out / "edit.json").read_text())
    return found


def refusal(capsys, checkpoint: Path, out: Path, *flags: str, code: int = 2) -> str:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]
    assert main(["edit", *common, *flags]) == code
    error = capsys.readouterr().err
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1
    return error


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as found:
        return found.size


class TestCodes:
    def test_a_condition_named_label_is_the_class_of_each_example(self, tmp_path, capsys):
        run = tmp_path / "run"
        train = {"steps": 2, "batch": 8, "schedule": "constant"}
        label = {"label": {"kind": "label", "dropout": 0.0}}
        ss.train({**SMALL, "conditions": label, "train": train}, out=run, listener=Quiet())
        edit(run, tmp_path / "codes", "--operation", "encode", "--num", "3")
        test, file = build_dataset(load_run(run).config.data).test, tmp_path / "codes/codes.npz"
        assert arrays(file)["label"].tolist() == test.label[:3].tolist()
        edit(run, tmp_path / "back", "--operation", "decode", "--codes", str(file))
        assert np.array_equal(arrays(tmp_path / "back/edited.npz")["x"], test.x[:3])
        argv = ["--checkpoint", str(run), "--num", "20", "--metrics", "wasserstein", "--json"]
        capsys.readouterr()
        assert main(["evaluate", *argv, "--resamples", "0", "--sample.steps", "2"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["source"]["classes"] == "as in the test split"

    def test_the_code_of_a_normal_law_is_the_sample(self, points, tmp_path):
        record = edit(points, tmp_path, "--operation", "encode", "--num", "8")
        run = load_run(points)
        x = build_dataset(run.config.data).test.x[:8]
        z = arrays(tmp_path / "codes.npz")["z"]
        assert np.allclose(z, x, atol=1e-3)
        assert record["num"] == 8
        assert not (tmp_path / "edit.png").exists()

    def test_codes_decode_to_what_they_came_from(self, wild, tmp_path):
        codes, back = tmp_path / "codes", tmp_path / "back"
        edit(wild, codes, "--operation", "encode", "--num", "3")
        file = str(codes / "codes.npz")
        edit(wild, back, "--operation", "decode", "--codes", file)
        run = load_run(wild)
        split = build_dataset(run.config.data).test.take(torch.arange(3))
        assert (arrays(codes / "codes.npz")["label"] == split.label.numpy()).all()
        assert np.array_equal(arrays(back / "edited.npz")["x"], split.x)
        assert size(back / "edit.png")[0] > 3 * 48

    def test_codes_in_the_folder_itself_are_kept(self, points, tmp_path):
        edit(points, tmp_path, "--operation", "encode", "--num", "2")
        file = str(tmp_path / "codes.npz")
        edit(points, tmp_path, "--operation", "decode", "--codes", file, "--overwrite")
        assert len(arrays(tmp_path / "codes.npz")["z"]) == 2

    def test_the_class_matters(self, wild, tmp_path):
        for name, flags in (("own", ()), ("other", ("--class", "9"))):
            edit(wild, tmp_path / name, "--operation", "encode", "--num", "2", *LOOSE, *flags)
        own, other = (arrays(tmp_path / n / "codes.npz")["z"] for n in ("own", "other"))
        assert not np.allclose(own, other, atol=1e-3)

    def test_batches_do_not_matter_beyond_the_tolerance(self, images, tmp_path):
        for batch in ("2", "3"):
            edit(images, tmp_path / batch, "--operation", "encode", "--num", "3", "--batch", batch)
        two, three = (arrays(tmp_path / b / "codes.npz")["z"] for b in ("2", "3"))
        assert np.allclose(two, three, atol=1e-3)


class TestPaths:
    def test_between_pairs_of_a_normal_law(self, images, tmp_path):
        """Its flow stands still: ends are the images, the middle their sum over its size."""
        record = edit(
            images, tmp_path, "--operation", "interpolate", "--num", "4", "--columns", "5"
        )
        assert (record["pairs"], record["columns"]) == (2, 5)
        run = load_run(images)
        x = run.data.scaling.encode(build_dataset(run.config.data).test.x[:4]).double()
        found = arrays(tmp_path / "edited.npz")["x"].reshape(2, 5, 64).astype(int)
        a, b = x[0::2].flatten(1).numpy(), x[1::2].flatten(1).numpy()
        levels = [run.data.scaling.decode(torch.from_numpy(end)).numpy() for end in (a, b)]
        assert np.array_equal(found[:, 0], levels[0])
        assert np.array_equal(found[:, -1], levels[1])
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        middle = (a + b) / (2 * np.cos(np.arccos(cosine) / 2))[:, None]
        gap = found[:, 2] - run.data.scaling.decode(torch.from_numpy(middle)).numpy().astype(int)
        assert abs(gap).max() <= 1  # on the edge of two levels rounding decides
        assert (gap == 0).mean() > 0.95
        width, height = size(tmp_path / "edit.png")
        assert width > 4 + 5 * 52
        assert height > 4 + 2 * 52

    def test_pairs_need_an_even_number(self, capsys, images, tmp_path):
        flags = ("--operation", "interpolate", "--num", "3")
        assert "even number" in refusal(capsys, images, tmp_path, *flags)
        flags = ("--operation", "interpolate", "--columns", "1")
        assert "--columns: must be" in refusal(capsys, images, tmp_path, *flags)


class TestReconstruction:
    def test_there_and_back(self, capsys, wild, tmp_path):
        record = edit(wild, tmp_path, "--num", "3")
        assert record["error_rms"] < 0.01
        assert len(record["errors"]) == 3
        assert record["levels_changed"] == 0
        assert "3 reconstructed samples" in capsys.readouterr().out
        assert (tmp_path / "edit.png").exists()

    def test_points(self, points, tmp_path):
        record = edit(points, tmp_path, "--num", "4")
        assert "levels_changed" not in record
        assert record["error_max"] < 1e-3


@pytest.fixture
def mask(tmp_path) -> Path:
    """A mask whose lower half is painted."""
    shades = np.zeros((8, 8), np.uint8)
    shades[4:] = 255
    Image.fromarray(shades).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as found:
        return np.asarray(found)


def settings(file: Path) -> dict[str, object]:
    with Image.open(file) as found:
        return json.loads(found.info["scoresde"]) | {"viewers": found.info["parameters"]}


class TestPictures:
    def test_painting_keeps_the_other_pixels_of_the_files(self, wild, mask, tmp_path, capsys):
        drawn, out = tmp_path / "drawn", tmp_path / "out"
        common = ["--checkpoint", str(wild), "--device", "cpu", "--class", "1"]
        assert main(["sample", *common, "--num", "2", "--out", str(drawn)]) == 0
        flags = ["inpaint", "--mask", str(mask), "--nfe", "8", "--num", "3", "--class", "1"]
        record = edit(wild, out, *flags, "--picture", str(drawn), "--preview-every", "4")
        assert "6 results of 2 pictures" in capsys.readouterr().out
        for k in range(6):
            before, after = pixels(drawn / f"{k // 3:06d}.png"), pixels(out / f"{k:06d}.png")
            assert np.array_equal(after[:4], before[:4])
            assert not np.array_equal(after, before)
        assert record["nfe"] == 8
        assert record["seeds"] == [0, 1, 2, 3, 4, 5]
        found = settings(out / "000004.png")
        assert (found["seed"], found["class"], found["operation"]) == (4, "1", "inpaint")
        assert found["picture"] == str(drawn / "000001.png")
        assert "Operation: inpaint" in found["viewers"]
        assert (out / "previews" / "call-0004.png").exists()
        # a folder of results is one of pictures
        again = edit(wild, tmp_path / "again", "img2img", "--strength", "0", "--picture", str(out))
        assert len(again["pictures"]) == 6
        argv = ["sample", "--like", str(out / "000000.png"), "--out", str(tmp_path / "like")]
        assert main(argv) == 2
        assert "edited by scoresde edit" in capsys.readouterr().err

    def test_strength(self, wild, tmp_path):
        common = ["img2img", "--examples", "2,3", "--sample.steps", "3", "--class", "1"]
        common += ["--seeds", "3"]
        for strength in ("0", "0.5", "1"):
            record = edit(wild, tmp_path / strength, *common, "--strength", strength)
            assert record["nfe"] == (0 if strength == "0" else 4)
            assert record["strength"] == float(strength)
        x = build_dataset(load_run(wild).config.data).test.x[2:4]
        found = {s: arrays(tmp_path / s / "edited.npz")["x"] for s in ("0", "0.5", "1")}
        assert np.array_equal(found["0"], x)
        assert not np.array_equal(found["0.5"][0], found["0.5"][1])
        assert np.array_equal(found["1"][0], found["1"][1])
        assert settings(tmp_path / "0.5" / "000000.png")["strength"] == 0.5

    def test_several_files_are_given_by_one_flag(self, wild, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        names = ["a,b.png", "c.png"]
        for k, name in enumerate(names):
            Image.new("L", (8, 8), 255 * k).save(name)
        record = edit(wild, tmp_path / "o", "img2img", "--strength", "0", "--picture", *names)
        assert record["pictures"] == names
        assert arrays(tmp_path / "o" / "edited.npz")["x"].max(axis=(1, 2, 3)).tolist() == [0, 16]

    def test_points_have_variations(self, points, tmp_path):
        edit(points, tmp_path, "img2img", "--strength", "0.4")
        assert arrays(tmp_path / "edited.npz")["x"].shape == (4, 2)
        assert (tmp_path / "edit.png").exists()

    @pytest.mark.parametrize(
        "flags",
        [
            ["outpaint", "--margins", "2,0,0,0"],
            ["superres", "--factor", "2"],
            ["deblur", "--blur", "0.5"],
            ["inpaint", "--painted", "00", "--guidance", "2"],
        ],
    )
    def test_examples_of_the_data(self, wild, tmp_path, flags):
        edit(wild, tmp_path, *flags, "--nfe", "4", "--num", "2", "--class", "3")
        assert arrays(tmp_path / "edited.npz")["x"].shape == (8, 1, 8, 8)
        assert size(tmp_path / "edit.png")[0] > 4 * 48

    def test_a_code_is_decoded_under_another_class(self, wild, tmp_path):
        edit(wild, tmp_path / "same", "invert", "--examples", "0-1")
        found, other = arrays(tmp_path / "same" / "edited.npz")["x"], tmp_path / "other"
        x = build_dataset(load_run(wild).config.data).test.x[:2]
        assert np.array_equal(found, x)
        edit(wild, other, "invert", "--examples", "0-1", "--class", "5", *LOOSE)
        assert not np.array_equal(arrays(other / "edited.npz")["x"], x)
        assert arrays(other / "codes.npz")["label"].tolist() == [5, 5]
        edit(wild, tmp_path / "named", "invert", "--examples", "0", "--source", "label=3", *LOOSE)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_stop_keeps_what_there_is(self, wild, tmp_path, capsys, monkeypatch, number):
        calls, outputs = [], ScoreModel.outputs

        def interrupting(self, *args):
            calls.append(1)
            if len(calls) == 6 + 3:
                os.kill(os.getpid(), number)
            return outputs(self, *args)

        monkeypatch.setattr(ScoreModel, "outputs", interrupting)
        common = ["--checkpoint", str(wild), "--out", str(tmp_path / "out"), "--device", "cpu"]
        common += ["--num", "2", "--class", "1", "--batch", "2", "--sample.steps", "5"]
        assert main(["edit", "img2img", *common]) == 128 + number
        assert "4 of 8 results of 4 pictures" in capsys.readouterr().err
        record = json.loads((tmp_path / "out" / "edit.json").read_text())
        assert (record["stopped"], record["unfinished"]) == (number.name, 2)
        assert record["seeds"] == [0, 1, 2, 3]
        assert arrays(tmp_path / "out" / "edited.npz")["x"].shape == (4, 1, 8, 8)


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["inpaint"], "--mask: say what to paint"),
            (["inpaint", "--mask", "rgb.png"], "rgb.png: its pixels are RGB; save it as grey"),
            (["inpaint", "--mask", "small.png"], "small.png: the mask has 4 x 4 pixels"),
            (["inpaint", "--mask", "black.png"], "black.png: nothing to paint"),
            (["inpaint", "--mask", "none.png"], "none.png: no such file"),
            (["inpaint", "--box", "0,0,9,2"], "--box: 0,0,9,2 is not inside 8 x 8"),
            (["inpaint", "--box", "0,0,2,2", "--method", "dpss"], "did you mean 'dps'"),
            (["inpaint", "--box", "0,0,2,2", "--strength", "0.2"], "--strength: is for img2img"),
            (["inpaint", "--box", "0,0,2,2", "--sample.steps", "2"], "--sample.steps: is for"),
            (["inpaint", "--painted", "red"], "--painted: need two hexadecimal digits"),
            (["img2img", "--strength", "1.5"], "--strength: must be less than or equal to 1"),
            (["img2img", "--nfe", "5"], "--nfe: "),
            (["img2img", "--picture", "rgb.png"], "rgb.png: it has 8 x 8 pixels and 3 channels"),
            (["img2img", "--picture", "small.png"], "small.png: it has 4 x 4 pixels"),
            (["img2img", "--picture"], "--picture: takes one path or more"),
            (["img2img", "--picture", "a", "--examples", "1"], "--picture and --examples"),
            (["img2img", "--examples", "5000"], "--examples: the test split has 0 to"),
            (["colourise"], "colourise needs a model of pictures in colour"),
            (["invert", "--seeds", "1"], "--seeds: invert draws no noise"),
            (["encode", "--mask", "black.png"], "--mask: is for inpaint"),
            (["paint"], "--operation: must be 'inpaint'"),
        ],
    )
    def test_edits(self, capsys, wild, tmp_path, monkeypatch, flags, message):
        monkeypatch.chdir(tmp_path)
        black = Image.new("L", (8, 8))
        black.save("black.png")
        black.convert("RGB").save("rgb.png")
        Image.new("L", (4, 4)).save("small.png")
        assert message in refusal(capsys, wild, tmp_path / "out", *flags)

    def test_files_in_the_way(self, capsys, points, tmp_path):
        edit(points, tmp_path, "--num", "2", *LOOSE)
        assert "--overwrite" in refusal(capsys, points, tmp_path, "--num", "2")
        (tmp_path / "edit.json").unlink()
        flags = ("--num", "2", "--overwrite")
        assert "no edit.json there lists" in refusal(capsys, points, tmp_path, *flags)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("--num", "0"), "--num"),
            (("--num", "100000"), "test split has 20"),
            (("--batch", "0"), "--batch"),
            (("--tolerance", "0"), "--tolerance"),
            (("--class", "1"), "without classes"),
            (("--operation", "decode"), "needs --codes"),
            (("--codes", "codes.npz"), "is for --codes"),
            (("--operation", "decode", "--codes", "absent.npz"), "No such file"),
            (("--data.kind", "digits"), "the model was trained on"),
            (("--operation", "dance"), "dance"),
        ],
    )
    def test_options(self, capsys, points, tmp_path, flags, message):
        assert message in refusal(capsys, points, tmp_path, *flags)

    def test_a_full_disk_keeps_the_earlier_result(self, capsys, points, tmp_path, monkeypatch):
        def full(path: Path, **contents: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        argv = ["edit", "--checkpoint", str(points), "--out", str(tmp_path), "--num", "2"]
        assert main(argv) == 0
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        monkeypatch.setattr(module, "scatter", full)
        assert main([*argv, "--overwrite"]) == 1
        assert "free some space" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_damaged_codes(self, capsys, points, tmp_path):
        argv = ["edit", "--checkpoint", str(points), "--out", str(tmp_path / "o")]
        decode = [*argv, "--operation", "decode", "--codes", str(tmp_path / "codes.npz")]
        for content in (b"", b"PK\x03\x04 torn"):
            (tmp_path / "codes.npz").write_bytes(content)
            assert main(decode) == 2
            assert "not codes" in capsys.readouterr().err
        assert main([*decode, "--num", "1"]) == 2
        assert "leave it out" in capsys.readouterr().err

    def test_codes_of_another_model(self, capsys, points, images, tmp_path):
        file = tmp_path / "codes.npz"
        flags = ("--operation", "decode", "--codes", str(file))
        np.savez(file, z=np.zeros((2, 3)))
        assert "needs (N, 2)" in refusal(capsys, points, tmp_path / "a", *flags)
        np.savez(file, z=np.full((2, 2), np.nan))
        assert "not finite" in refusal(capsys, points, tmp_path / "a", *flags)
        file.write_bytes(b"nothing")
        assert "not codes" in refusal(capsys, points, tmp_path / "a", *flags)
        np.savez(file, z=np.zeros((2, 1, 8, 8)))
        assert "--class is missing" in refusal(capsys, images, tmp_path / "a", *flags)
        edit(images, tmp_path / "b", *flags, "--class", "3", *LOOSE)

    def test_a_model_that_breaks(self, capsys, broken, tmp_path):
        assert "torchdiffeq" in refusal(capsys, broken, tmp_path, "--num", "2", code=1)
