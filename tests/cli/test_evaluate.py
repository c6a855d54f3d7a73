"""``scoresde evaluate``: known answers, the same answers again, whole reports, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scoresde.cli import evaluate as module
from scoresde.cli.main import main
from scoresde.data import DataError, Scaling, digits, moons
from scoresde.data.foreign import levels_of
from scoresde.evaluation.metrics import METRICS
from scoresde.runs import evaluate_report
from scoresde.runs import features as evaluate_features
from scoresde.runs.samples import read_samples

SOME = ("--num", "24", "--resamples", "4", "--sample.steps", "2")


def evaluate(capsys, *flags: str) -> dict:
    """The JSON of an evaluation."""
    assert main(["evaluate", "--device", "cpu", "--json", *map(str, flags)]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys, *flags: str, code: int = 2) -> str:
    assert main(["evaluate", "--device", "cpu", *map(str, flags)]) == code
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("scoresde: error: ")
    return error.splitlines()[-1]


@pytest.fixture
def plane(tmp_path) -> Path:
    """The training points of the two moons of the fixtures, as samples."""
    np.savez(tmp_path / "plane.npz", x=moons(50, 20).train.x.numpy())
    return tmp_path / "plane.npz"


@pytest.fixture
def copied(tmp_path) -> Path:
    """Pictures of 30 training digits."""
    data, folder = digits(), tmp_path / "copied"
    folder.mkdir()
    shades = data.scaling.to_uint8(data.scaling.encode(data.train.x[:30]))
    for i, image in enumerate(shades):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:06d}.png")
    return folder


class TestNumbers:
    def test_points_against_themselves(self, capsys, plane, points):
        flags = ("--samples", plane, "--checkpoint", points, "--against", "train")
        names = "frechet,wasserstein,precision,recall,copies"
        found = evaluate(capsys, *flags, "--metrics", names)
        value = {name: row["value"] for name, row in found["metrics"].items()}
        assert value["frechet"] == pytest.approx(0, abs=1e-9)
        assert value["wasserstein"] == pytest.approx(0, abs=1e-6)
        assert value["precision"] == value["recall"] == value["copies"] == 1
        assert found["features"] == {"name": "standardised values of moons"}
        assert found["samples"] == found["references"] == 50
        assert found["real"] == 20

    def test_copies_of_digits_are_seen(self, capsys, copied):
        flags = ("--samples", copied, "--data", "digits", "--features", "pixels")
        found = evaluate(capsys, *flags, "--metrics", "copies,frechet")["metrics"]
        assert found["copies"]["value"] == 1
        assert found["copies"]["real"] == pytest.approx(164 / 360)
        assert found["copies"]["references"] == 1437
        assert found["frechet"]["notes"] == ["rank-deficient: 30 items in 64 dimensions"]
        assert found["frechet"]["extrapolated"] is None

    def test_drawing_now_is_sampling_and_evaluating(self, capsys, tmp_path, points):
        folder = tmp_path / "samples"
        steps = ("--sample.steps", "2")
        drawn = ["sample", "--checkpoint", str(points), "--out", str(folder), "--num", "24"]
        assert main([*drawn, *steps, "--device", "cpu"]) == 0
        capsys.readouterr()
        there = evaluate(capsys, "--samples", folder, *SOME[:4])
        now = evaluate(capsys, "--checkpoint", points, *SOME)
        assert there["metrics"] == now["metrics"]
        assert set(now["metrics"]) == {*METRICS} - {"frechet", "kid", "density", "coverage"}
        assert now["source"]["step"] == 7
        assert there["source"] == {"source": str(folder)}

    def test_classes_are_those_of_the_references(self, capsys, monkeypatch, images):
        monkeypatch.setattr(evaluate_features, "FIT_STEPS", 2)
        found = evaluate(capsys, "--checkpoint", images, *SOME)
        assert found["source"]["classes"] == "as in the test split"
        assert found["features"]["name"] == "classifier features of digits"
        assert 0 <= found["features"]["test_accuracy"] <= 1
        assert "FID" not in json.dumps(found)
        noise = found["metrics"]["precision"]
        assert noise["value"] <= noise["real"]

    def test_a_metric_does_not_depend_on_the_others(self, capsys, points, plane):
        flags = ("--samples", plane, "--checkpoint", points, "--resamples", "5")
        every = evaluate(capsys, *flags)
        again = evaluate(capsys, *flags)
        alone = evaluate(capsys, *flags, "--metrics", "sliced")
        other = evaluate(capsys, *flags, "--seed", "1")
        assert every == again
        assert alone["metrics"]["sliced"] == every["metrics"]["sliced"]
        assert other["metrics"]["sliced"]["error"] != every["metrics"]["sliced"]["error"]
        assert other["metrics"]["mmd"]["value"] == pytest.approx(every["metrics"]["mmd"]["value"])

    def test_no_resamples_no_errors(self, capsys, points, plane):
        flags = ("--samples", plane, "--checkpoint", points, "--resamples", "0")
        found = evaluate(capsys, *flags, "--metrics", "sliced")["metrics"]["sliced"]
        assert found["error"] is None
        assert found["value"] >= 0

    def test_fewer_samples_are_chosen_by_the_seed(self, capsys, points, plane):
        flags = ("--samples", plane, "--checkpoint", points, "--num", "40", "--resamples", "0")
        found = [evaluate(capsys, *flags, "--seed", seed) for seed in "01"]
        assert found[0]["samples"] == 40
        assert found[0]["metrics"]["sliced"] != found[1]["metrics"]["sliced"]


class TestStatistics:
    def test_of_the_split_they_give_the_same(self, capsys, tmp_path, points, plane):
        file = tmp_path / "moments.npz"
        flags = ("--samples", plane, "--checkpoint", points, "--metrics", "frechet")
        plain = evaluate(capsys, *flags, "--save-statistics", file)
        given = evaluate(capsys, *flags, "--statistics", file)["metrics"]["frechet"]
        assert given["value"] == pytest.approx(plain["metrics"]["frechet"]["value"], abs=1e-12)
        assert given["references"] is None
        assert given["halves"] is None
        with np.load(file) as found:
            assert found["mu"].shape == (2,)

    def test_of_others_are_refused(self, capsys, tmp_path, points, plane):
        both = ("--samples", plane, "--checkpoint", points)
        flags = (*both, "--metrics", "frechet", "--statistics")
        np.savez(tmp_path / "three.npz", mu=np.zeros(3), sigma=np.eye(3))
        assert "has 3 features, but" in refusal(capsys, *flags, tmp_path / "three.npz")
        np.savez(tmp_path / "b.npz", mu=np.zeros(2), sigma=np.eye(2), features=np.array("mine"))
        assert "was made with mine" in refusal(capsys, *flags, tmp_path / "b.npz")
        assert "no such file" in refusal(capsys, *flags, tmp_path / "none.npz")
        unused = (*both, "--metrics", "sliced", "--statistics", tmp_path / "b.npz")
        assert "only frechet uses them" in refusal(capsys, *unused)


class Inception(nn.Module):
    """The signature of the file that others use, with so many features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.float().mean((2, 3)).repeat(1, self.features)[:, : self.features]


@pytest.mark.parametrize(("dimensions", "title"), [(2048, "KID"), (20, "kernel distance")])
def test_the_names_of_inception_are_for_its_features(capsys, tmp_path, copied, dimensions, title):
    file = tmp_path / "net.pt"
    torch.jit.script(Inception(dimensions)).save(str(file))
    flags = ("--samples", copied, "--data", "digits", "--features", file, "--metrics", "kid")
    found = evaluate(capsys, *flags, "--resamples", "0")
    assert found["metrics"]["kid"]["title"] == title
    assert len(found["features"]["sha256"]) == 64


class TestFiles:
    def test_a_report_a_table_and_neighbours(self, capsys, tmp_path, copied):
        out = tmp_path / "out"
        flags = ("--samples", copied, "--data", "digits", "--features", "pixels", "--out", out)
        found = evaluate(capsys, *flags, "--metrics", "precision,copies")
        assert sorted(p.name for p in out.iterdir()) == [
            "evaluate.json",
            "evaluate.txt",
            "neighbours.png",
        ]
        assert json.loads((out / "evaluate.json").read_text()) == found
        page = (out / "evaluate.txt").read_text()
        assert "copy rate" in page
        assert "30 samples against the 360 examples of the test split of digits" in page
        grid, zoom = np.asarray(Image.open(out / "neighbours.png")), 6
        pair = grid[4 * zoom : 12 * zoom, 4 * zoom : 21 * zoom]
        assert np.array_equal(pair[:, : 8 * zoom], pair[:, -8 * zoom :])  # copies, all of them
        assert "holds evaluate.json" in refusal(capsys, *flags)
        evaluate(capsys, *flags, "--metrics", "copies", "--overwrite")
        assert list(json.loads((out / "evaluate.json").read_text())["metrics"]) == ["copies"]

    def test_points_get_a_scatter_plot(self, capsys, tmp_path, points, plane):
        flags = ("--samples", plane, "--checkpoint", points, "--metrics", "sliced")
        evaluate(capsys, *flags, "--out", tmp_path / "out")
        assert (tmp_path / "out" / "scatter.png").stat().st_size > 1000

    def test_an_interruption_leaves_nothing(self, capsys, tmp_path, monkeypatch, points):
        def interrupted(*args, **named):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "draw_samples", interrupted)
        out = tmp_path / "out"
        flags = ("--checkpoint", points, *SOME, "--out", out)
        assert refusal(capsys, *flags, code=130) == "scoresde: error: interrupted"
        assert not out.exists()

    def test_a_full_disk_keeps_the_earlier_report(
        self, capsys, tmp_path, monkeypatch, points, plane
    ):
        out = tmp_path / "out"
        flags = ("--samples", plane, "--checkpoint", points, "--metrics", "sliced", "--out", out)
        evaluate(capsys, *flags)
        before = {p.name: p.read_bytes() for p in out.iterdir()}

        def full(path: Path, data: str) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(evaluate_report.Path, "write_text", full)
        words = refusal(capsys, *flags, "--overwrite", "--seed", "1", code=1)
        assert "No space left on device; free some space" in words
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before


class TestSamples:
    @pytest.mark.parametrize("levels", [2, 17, 255, 256])
    def test_shades_become_levels_again(self, levels):
        level, scaling = torch.arange(levels).reshape(1, 1, 1, -1), Scaling(levels)
        shades = scaling.to_uint8(scaling.encode(level))
        assert torch.equal(levels_of(shades, scaling).long(), level)

    def test_shades_of_other_levels(self):
        with pytest.raises(DataError, match=r"the shade 3, none of the 17 .*\(0, 16, 32"):
            levels_of(torch.tensor([[[[0, 16, 3]]]], dtype=torch.uint8), Scaling(17))
        for levels in (None, 1000):
            with pytest.raises(DataError, match="give arrays of them"):
                levels_of(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), Scaling(levels))

    def test_arrays_of_any_layout(self, tmp_path):
        data = digits()
        shades = data.scaling.to_uint8(data.scaling.encode(data.test.x[:5])).numpy()
        for x in (shades, np.moveaxis(shades, 1, -1), shades[:, 0]):
            np.savez(tmp_path / "a.npz", arr_0=x)
            assert torch.equal(read_samples(tmp_path / "a.npz", data).x, data.test.x[:5])

    def test_unfinished_samples_are_left_out(self, copied):
        names = [f"{i:06d}.png" for i in range(30)]
        record = {"files": names, "unfinished": 4}
        (copied / "sample.json").write_text(json.dumps(record))
        found = read_samples(copied, digits())
        assert torch.equal(found.x, digits().train.x[:26])
        assert found.notes == (f"{copied}: 4 unfinished samples left out",)

    def test_the_record_names_the_run(self, capsys, copied):
        record = {"files": [], "checkpoint": "gone.pt"}
        (copied / "sample.json").write_text(json.dumps(record))
        assert "no record of the data set" in refusal(capsys, "--samples", copied)


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ((), "give --samples FOLDER, or --checkpoint RUN"),
            (("--metrics", "fretchet"), "did you mean 'frechet'?"),
            (("--num", "0"), "--num: must be greater than or equal to 1"),
            (("--num", "51"), "holds 50 samples"),
            (("--seed", "-1"), "--seed"),
            (("--resamples", "1"), "--resamples: need 0, or at least 2"),
            (("--against", "validation"), "--against"),
            (("--features", "clasifier"), "did you mean 'classifier'?"),
            (("--features", "classifier"), "has no images with classes"),
            (("--sample.steps", "3"), "--sample.steps has no effect with --samples"),
            (("--num", "10", "--metrics", "two_sample"), "needs 20 samples"),
            (("--save-statistics", "none/a.npz"), "no such folder"),
            (("--data", "digits"), "the model was trained on"),
        ],
    )
    def test_bad_flags(self, capsys, points, plane, flags, words):
        both = ("--samples", plane, "--checkpoint", points) if flags else ()
        assert words in refusal(capsys, *both, *flags)

    @pytest.mark.parametrize(
        ("x", "words"),
        [
            (np.zeros((9, 3)), "the data needs (N, 2)"),
            (np.zeros((0, 2)), "no examples in an array of shape (0, 2)"),
            (np.array([[0.0, 1.0], [np.nan, 1.0]]), "1 values are NaN"),
            (np.zeros((9, 2), int), "values are torch.int64, the data has real numbers"),
            (np.zeros((2, 2)), "--metrics: precision needs 8 samples"),
        ],
    )
    def test_bad_arrays(self, capsys, tmp_path, points, x, words):
        np.savez(tmp_path / "bad.npz", x=x)
        flags = ("--checkpoint", points, "--samples", tmp_path / "bad.npz")
        assert words in refusal(capsys, *flags, "--metrics", "precision")

    def test_bad_folders(self, capsys, tmp_path, copied):
        flags = ("--data", "digits", "--features", "pixels", "--samples")
        assert "no such file or folder" in refusal(capsys, *flags, tmp_path / "none")
        (tmp_path / "empty").mkdir()
        assert "no pictures" in refusal(capsys, *flags, tmp_path / "empty")
        Image.new("RGB", (8, 8)).save(copied / "000030.png")
        assert "000030.png: (C, H, W) is (3, 8, 8)" in refusal(capsys, *flags, copied)
        (copied / "000030.png").write_bytes(b"cut")
        assert "000030.png: not a usable picture" in refusal(capsys, *flags, copied)

    def test_another_split_of_the_same_data(self, capsys, split_points):
        flags = ("--checkpoint", split_points, "--data.seed", "1")
        assert "would take training examples for new ones" in refusal(capsys, *flags)
        folder = split_points.parent
        path = ("--data.path", folder / ".." / folder.name / "x.npy")
        assert "would take training examples" in refusal(capsys, *flags, *path)

    def test_samples_that_overflow(self, capsys, tmp_path, broken):
        flags = ("--checkpoint", broken, *SOME, "--features", "pixels", "--out", tmp_path / "out")
        assert "finite" in refusal(capsys, *flags, code=1)
        assert not (tmp_path / "out").exists()

    def test_without_scipy(self, capsys, monkeypatch, points):
        monkeypatch.setattr("scoresde.evaluation.metrics.find_spec", lambda name: None)
        flags = ("--checkpoint", points, *SOME)
        assert "needs scipy" in refusal(capsys, *flags, "--metrics", "wasserstein")
        assert "wasserstein" not in evaluate(capsys, *flags)["metrics"]
